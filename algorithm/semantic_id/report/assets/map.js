// 二维地图：十万个点直接写像素（fillRect 十万次会卡），码字的圆圈画在上面。坐标 0…65534，65535 为缺失。
const MISSING = 65535;
const lens = { zoom: 1, x: 0.5, y: 0.5, fx: 1, fy: 1, width: 0, height: 0, grid: null, pointers: new Map() };

// 数据坐标（0…1）→ 屏幕；y 朝上。fx、fy 让两个主成分用同一把尺，距离才看得
function project(u, v) {
  return [((u - lens.x) * lens.zoom * lens.fx + 0.5) * lens.width, (0.5 - (v - lens.y) * lens.zoom * lens.fy) * lens.height];
}

function fitAxes(frame) {
  const across = frame[1] - frame[0], up = frame[3] - frame[2];
  lens.fx = Math.min(1, (lens.height * across) / (up * lens.width));
  lens.fy = Math.min(1, (lens.width * up) / (across * lens.height));
}

function drawMap(data) {
  const canvas = document.getElementById("plane");
  lens.width = app.printing ? 680 : Math.max(200, canvas.parentElement.clientWidth);
  lens.height = app.printing ? 400 : Math.round(Math.min(620, Math.max(340, lens.width * 0.56)));
  fitAxes(data.frame);
  const context = openCanvas(canvas, lens.width, lens.height);
  const scale = data.error === null ? [0, 1] : (data.scale = data.scale || errorScale(data.error));
  const image = context.createImageData(canvas.width, canvas.height);
  paintPoints(image, data, scale, canvas.width / lens.width);
  context.putImageData(image, 0, 0);
  drawCodewords(context, data);
  if (app.picked >= 0 && data.x[app.picked] !== MISSING) ring(context, data, app.picked);
  return scale;
}

// 半透明地叠：密的地方颜色才实。次序打散，免得后面的标签盖住前面的
function paintPoints(image, data, scale, ratio) {
  const { width, height, data: pixels } = image;
  const background = rgb(palette().card);
  for (let i = 0; i < pixels.length; i += 4) {
    pixels[i] = background[0]; pixels[i + 1] = background[1]; pixels[i + 2] = background[2]; pixels[i + 3] = 255;
  }
  const table = pointColours(data, scale);
  const size = Math.max(2, Math.round(ratio * (data.rows > 30000 ? 1.5 : data.rows > 10000 ? 2 : 3) * Math.min(2, Math.sqrt(lens.zoom))));
  const alpha = data.rows > 30000 ? 0.5 : 0.7;
  // 步长与行数互质，一圈恰好走遍每一行
  let step = Math.max(1, Math.floor(data.rows * 0.618) | 1);
  while (gcd(step, data.rows) !== 1) step++;
  for (let i = 0, row = 0; i < data.rows; i++, row = (row + step) % data.rows) {
    if (data.x[row] === MISSING || data.y[row] === MISSING) continue;
    const at = project(data.x[row] / 65534, data.y[row] / 65534);
    const left = Math.round(at[0] * ratio - size / 2), top = Math.round(at[1] * ratio - size / 2);
    if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
    const colour = table(row);
    const strength = app.highlight && app.colour === "label" && isFaded(data.label[row]) ? 0.06 : alpha;
    for (let py = top; py < top + size; py++) {
      for (let px = left, p = 4 * (py * width + left); px < left + size; px++, p += 4) {
        pixels[p] += (colour[0] - pixels[p]) * strength;
        pixels[p + 1] += (colour[1] - pixels[p + 1]) * strength;
        pixels[p + 2] += (colour[2] - pixels[p + 2]) * strength;
      }
    }
  }
}

function gcd(a, b) {
  while (b) [a, b] = [b, a % b];
  return a;
}

// 行号 → 颜色；颜色先算好一张小表
function pointColours(data, scale) {
  if (app.colour === "error" && data.error !== null) {
    const steps = Array.from({ length: 65 }, (_, i) => errorColour(i, 0, 64));
    const empty = rgb(palette().empty);
    const span = scale[1] - scale[0] || 1;
    return (row) => {
      const value = data.error[row];
      return value === value ? steps[Math.min(64, Math.max(0, Math.round((64 * (value - scale[0])) / span)))] : empty;
    };
  }
  if (data.label === null) {
    const single = rgb(palette().labels[0]);
    return () => single;
  }
  const most = palette().labels.length + 1;
  const colours = Array.from({ length: most + 1 }, (_, i) => labelColour(i));
  return (row) => colours[Math.min(most, data.label[row])];
}

function codewordRadius(count, data) {
  return 2 + 7 * Math.min(1, 8 / Math.sqrt(data.cx.length)) * Math.sqrt(count / Math.max(1, data.mostUsed));
}

function drawCodewords(context, data) {
  data.mostUsed = data.mostUsed || data.counts[0].reduce((a, b) => Math.max(a, b), 1);
  const colours = palette();
  for (let code = 0; code < data.cx.length; code++) {
    if (data.cx[code] === MISSING || data.cy[code] === MISSING) continue;
    const [x, y] = project(data.cx[code] / 65534, data.cy[code] / 65534);
    if (x < 0 || y < 0 || x > lens.width || y > lens.height) continue;
    context.beginPath();
    context.arc(x, y, codewordRadius(data.counts[0][code], data), 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = colours.card;
    context.stroke();
    context.lineWidth = 1.3;
    context.strokeStyle = colours.ink;
    context.stroke();
  }
}

function ring(context, data, row) {
  const [x, y] = project(data.x[row] / 65534, data.y[row] / 65534);
  for (const [width, colour] of [[6, palette().card], [3, palette().labels[7]]]) {
    context.beginPath();
    context.arc(x, y, 11, 0, 2 * Math.PI);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

// 最近的点用格子找：64 × 64 个桶
function nearestPoint(data, u, v, reach) {
  if (lens.grid === null) {
    lens.grid = Array.from({ length: 4096 }, () => []);
    for (let row = 0; row < data.rows; row++) {
      if (data.x[row] === MISSING || data.y[row] === MISSING) continue;
      lens.grid[64 * Math.min(63, data.y[row] >> 10) + Math.min(63, data.x[row] >> 10)].push(row);
    }
  }
  let best = -1, least = Infinity;
  const [ru, rv] = reach;
  const cells = (at, r) => [Math.max(0, Math.floor((at - r) * 64)), Math.min(63, Math.floor((at + r) * 64))];
  const [u0, u1] = cells(u, ru), [v0, v1] = cells(v, rv);
  for (let j = v0; j <= v1; j++) for (let i = u0; i <= u1; i++) for (const row of lens.grid[64 * j + i]) {
    const du = (data.x[row] / 65534 - u) / ru, dv = (data.y[row] / 65534 - v) / rv;
    const distance = du * du + dv * dv;
    if (distance < least && distance <= 1) { least = distance; best = row; }
  }
  return best;
}

function unproject(x, y) {
  return [(x / lens.width - 0.5) / lens.zoom / lens.fx + lens.x, (0.5 - y / lens.height) / lens.zoom / lens.fy + lens.y];
}

function zoomAt(x, y, factor) {
  const [u, v] = unproject(x, y);
  lens.zoom = Math.min(64, Math.max(0.94, lens.zoom * factor));
  const [u2, v2] = unproject(x, y);
  lens.x += u - u2;
  lens.y += v - v2;
  clampLens();
  redrawMap();
}

// 视野不离开数据
function clampLens() {
  for (const [axis, factor] of [["x", lens.fx], ["y", lens.fy]]) {
    const half = 0.5 / lens.zoom / factor, slack = 0.04 / lens.zoom;
    lens[axis] = half >= 0.5 ? 0.5 : Math.min(1 - half + slack, Math.max(half - slack, lens[axis]));
  }
}

function resetLens() {
  // 四周各留一点，边上的点不贴边
  Object.assign(lens, { zoom: 0.94, x: 0.5, y: 0.5 });
}

let mapFrame = 0;
function redrawMap() {
  cancelAnimationFrame(mapFrame);
  mapFrame = requestAnimationFrame(() => { if (app.data !== null) drawMap(app.data); });
}

function listenMap() {
  const canvas = document.getElementById("plane");
  const at = (event) => pointerAt(canvas, event, lens.width);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // 不抢页面的滚动；触控板的捏合就是 ctrl + 滚轮
    event.preventDefault();
    zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.01)));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { resetLens(); redrawMap(); });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    lens.pointers.set(event.pointerId, { at: at(event), from: at(event) });
  });
  canvas.addEventListener("pointermove", (event) => {
    const pointer = lens.pointers.get(event.pointerId);
    if (pointer === undefined) return hoverMap(event, at(event));
    dragMap(event.pointerId, pointer, at(event));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => {
    const pointer = lens.pointers.get(event.pointerId);
    lens.pointers.delete(event.pointerId);
    if (name === "pointerup" && pointer && Math.hypot(pointer.at[0] - pointer.from[0], pointer.at[1] - pointer.from[1]) < 4) {
      const row = pointUnder(pointer.at);
      if (row >= 0) pickItem(row, false);
    }
  });
  canvas.addEventListener("pointerleave", hideTip);
}

function dragMap(id, pointer, now) {
  hideTip();
  const others = [...lens.pointers.entries()].filter(([other]) => other !== id);
  if (others.length === 1) {
    const anchor = others[0][1].at;
    const before = Math.hypot(pointer.at[0] - anchor[0], pointer.at[1] - anchor[1]);
    const after = Math.hypot(now[0] - anchor[0], now[1] - anchor[1]);
    if (before > 0) zoomAt((now[0] + anchor[0]) / 2, (now[1] + anchor[1]) / 2, after / before);
  } else {
    lens.x -= (now[0] - pointer.at[0]) / lens.width / lens.zoom / lens.fx;
    lens.y += (now[1] - pointer.at[1]) / lens.height / lens.zoom / lens.fy;
    clampLens();
    redrawMap();
  }
  pointer.at = now;
}

function pointUnder([x, y]) {
  if (app.data === null) return -1;
  const reach = 9;
  return nearestPoint(app.data, ...unproject(x, y), [reach / lens.width / lens.zoom / lens.fx, reach / lens.height / lens.zoom / lens.fy]);
}

function hoverMap(event, [x, y]) {
  const data = app.data;
  if (data === null || event.pointerType === "touch") return;
  for (let code = 0; code < data.cx.length; code++) {
    if (data.cx[code] === MISSING) continue;
    const [cx, cy] = project(data.cx[code] / 65534, data.cy[code] / 65534);
    if (Math.abs(Math.hypot(x - cx, y - cy) - codewordRadius(data.counts[0][code], data)) < 3) {
      const label = data.clabel === null || data.clabel[code] === 0 ? "" : app.meta.labels[data.clabel[code] - 1];
      return showTip(event, say("codeword", code), [say("nItems", number(data.counts[0][code])), label]);
    }
  }
  const row = pointUnder([x, y]);
  if (row < 0) return hideTip();
  showTip(event, fullId(data, row), [titleOf(data, row), labelName(data, row), data.error === null ? "" : say("error") + " " + short(data.error[row])]);
}
