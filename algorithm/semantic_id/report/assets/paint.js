// 颜色、画布、提示框。颜色与 style.css 的两套一致；标签只有前八种上色，其余一律「其他」，色盲也分得开。
const PALETTES = {
  light: {
    page: "#f5f5f2", card: "#fdfdfc", ink: "#17171a", soft: "#5b5b63", line: "#e2e2dc", other: "#b4b4ae", empty: "#d8d8d2",
    labels: ["#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#4a3aa7", "#008300", "#e34948"],
    ramp: ["#dcebfb", "#8fbcec", "#3f83cf", "#1c4e94", "#0c2a5c"],
  },
  dark: {
    page: "#121214", card: "#1b1b1e", ink: "#ececef", soft: "#a2a2ab", line: "#313137", other: "#66666e", empty: "#3b3b41",
    labels: ["#3987e5", "#d95926", "#199e70", "#c98500", "#d55181", "#9085e9", "#008300", "#e66767"],
    ramp: ["#12294a", "#1d4a86", "#3a7bc8", "#84b5ee", "#d9e9fc"],
  },
};
const darkQuery = matchMedia("(prefers-color-scheme: dark)");

function palette() {
  return PALETTES[darkQuery.matches && !app.printing ? "dark" : "light"];
}

function rgb(hex) {
  const value = parseInt(hex.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

function css(parts) {
  return "rgb(" + parts.map(Math.round).join(",") + ")";
}

function mixed(from, to, share) {
  return from.map((value, i) => value + (to[i] - value) * share);
}

// 这个底色上该用黑字还是白字（WCAG 的相对亮度，分界 0.24，略偏白字）
function contrasting([r, g, b]) {
  const linear = (v) => Math.pow(v / 255, 2.2);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) > 0.24 ? "#17171a" : "#ffffff";
}

// 标签号加一 → [r, g, b]
function labelColour(label) {
  const colours = palette();
  if (label === 0) return rgb(colours.empty);
  return rgb(label <= colours.labels.length ? colours.labels[label - 1] : colours.other);
}

// 误差在 [low, high] 里的位置 → [r, g, b]；没有误差的是 empty
function errorColour(value, low, high) {
  const colours = palette();
  if (!Number.isFinite(value)) return rgb(colours.empty);
  const at = Math.min(1, Math.max(0, (value - low) / (high - low || 1))) * (colours.ramp.length - 1);
  const step = Math.min(colours.ramp.length - 2, Math.floor(at));
  return mixed(rgb(colours.ramp[step]), rgb(colours.ramp[step + 1]), at - step);
}

// 一组误差的 2% 与 98% 分位：几个异常值不该吃掉整个色阶
function errorScale(values) {
  const known = Float32Array.from(values).filter((value) => value === value).sort();
  if (known.length === 0) return [0, 1];
  return [known[Math.floor(0.02 * (known.length - 1))], known[Math.ceil(0.98 * (known.length - 1))]];
}

// 按设备像素铺好画布；返回 2D 上下文，坐标仍是 CSS 像素
function openCanvas(canvas, width, height) {
  const scale = Math.min(3, devicePixelRatio || 1);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = width + "px";
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

// 指针在画布里的位置，CSS 像素；画布被缩小显示时也对
function pointerAt(canvas, event, width) {
  const box = canvas.getBoundingClientRect();
  const scale = width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

const tip = document.getElementById("tip");
function showTip(event, heading, lines) {
  tip.replaceChildren(element("b", { text: heading }), ...lines.filter(Boolean).map((line) => element("div", { text: line })));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 12 : event.clientX + 16;
  const top = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, top) + "px";
}
function hideTip() { tip.hidden = true; }

// 上色方式的开关与图例；两张图共用同一个选择
function colourControls(data, scales) {
  const modes = [];
  if (data.label !== null) modes.push(["label", "byLabel"]);
  if (data.error !== null) modes.push(["error", "byError"]);
  if (!modes.some(([mode]) => mode === app.colour)) app.colour = modes.length ? modes[0][0] : "label";
  for (const holder of document.querySelectorAll(".switch.colour")) {
    holder.hidden = modes.length < 2;
    holder.replaceChildren(...modes.map(([mode, key]) => element("button", {
      type: "button", text: say(key), "data-colour": mode, "aria-pressed": String(app.colour === mode),
      click: () => { app.colour = mode; app.highlight = 0; drawPictures(); },
    })));
  }
  for (const [id, scale] of Object.entries(scales)) {
    document.querySelector("#" + id + " .key").replaceChildren(...(app.colour === "label" ? labelKey(data) : errorKey(scale)));
  }
}

function labelKey(data) {
  if (data.label === null) return [];
  const colours = palette(), names = app.meta.labels;
  const entries = names.slice(0, colours.labels.length).map((name, i) => [i + 1, name, colours.labels[i]]);
  if (names.length > colours.labels.length) entries.push([colours.labels.length + 1, say("other"), colours.other]);
  return entries.map(([label, name, colour]) => {
    const swatch = element("i");
    swatch.style.background = colour;
    return element("button", {
      type: "button", "aria-pressed": String(app.highlight === label),
      click: () => { app.highlight = app.highlight === label ? 0 : label; drawPictures(); },
    }, swatch, element("span", { text: name }));
  });
}

// 图例里点了一个标签时，别的都淡下去；「其他」是第九种起的全部
function isFaded(label) {
  if (app.highlight === 0 || app.colour !== "label") return false;
  return Math.min(label, palette().labels.length + 1) !== app.highlight;
}

function errorKey(scale) {
  const ramp = element("span", { class: "ramp" });
  ramp.style.background = "linear-gradient(90deg," + palette().ramp.join(",") + ")";
  return [element("span", { text: say("low", short(scale[0])) }), ramp, element("span", { text: say("high", short(scale[1])) })];
}
