// 前缀树的图、路径与清单。app.path 是走到的前缀；画布给眼睛，下面的清单给键盘与读屏软件，两者同样的内容。
const ROWS_AT_FIRST = 30, BRANCHES_AT_FIRST = 10;
const view = { nodes: [], width: 0, height: 0 };

function drawTree(data) {
  const canvas = document.getElementById("treemap");
  const holder = canvas.parentElement;
  view.width = app.printing ? 680 : Math.max(200, holder.clientWidth);
  view.height = app.printing ? 330 : Math.round(Math.min(560, Math.max(420, view.width * 0.5)));
  const [start, end] = rangeOf(data, app.path);
  const depth = app.path.length;
  view.nodes = childNodes(data, start, end, depth);
  layoutCells(view.nodes, view.width, view.height);
  if (depth + 1 < data.levels.length) view.nodes.forEach((node) => layoutInside(data, node, depth + 1));
  const scale = errorScale(view.nodes.flatMap((node) => (node.inside || [node]).map((part) => part.error)));
  const context = openCanvas(canvas, view.width, view.height);
  const colours = palette();
  context.fillStyle = colours.card;
  context.fillRect(0, 0, view.width, view.height);
  for (const node of view.nodes) {
    fillCell(context, node, node.box, scale, 1);
    for (const child of node.inside || []) {
      fillCell(context, child, child.box, scale, Math.min(child.box[2], child.box[3]) > 3 ? 0.7 : 0);
    }
  }
  context.textBaseline = "top";
  context.lineJoin = "round";
  for (const node of view.nodes) writeCell(context, data, node, depth, scale);
  drawCrumbs();
  drawBranches(data, start, end);
  return scale;
}

function cellColour(node, scale) {
  if (app.colour === "error") return errorColour(node.error, scale[0], scale[1]);
  const faded = isFaded(node.label) ? 0.15 : 0.35 + 0.65 * node.share;
  return mixed(rgb(palette().card), labelColour(node.label), app.meta.labels.length ? faded : 0.9);
}

function fillCell(context, node, [x, y, w, h], scale, gap) {
  context.fillStyle = css(cellColour(node, scale));
  context.fillRect(x + gap / 2, y + gap / 2, Math.max(0.4, w - gap), Math.max(0.4, h - gap));
}

// 格子里的下一层；小得看不清的不画
function layoutInside(data, node, depth) {
  const [x, y, w, h] = node.box;
  node.inside = null;
  if (w * h < 60 || node.size < 2) return;
  node.inside = childNodes(data, node.start, node.end, depth);
  const boxes = squarify(node.inside.map((child) => child.size), x + 1.5, y + 1.5, w - 3, h - 3);
  node.inside.forEach((child, i) => { child.box = boxes[i]; });
}

function writeCell(context, data, node, depth, scale) {
  const [x, y, w, h] = node.box;
  if (w < 30 || h < 17) return;
  const leaf = depth + 1 >= data.levels.length;
  const first = depth < data.levels.length ? String(data.levels[depth][node.start]) : titleOf(data, node.start);
  const second = leaf && depth < data.levels.length ? titleOf(data, node.start) : labelName2(node);
  // 单色的格子直接挑黑或白；里面还有小格子的，描一圈底色
  const plain = node.inside ? null : contrasting(cellColour(node, scale));
  halo(context, plain, first, x + 5, y + 4, w - 8, "600 12px ui-monospace, Menlo, Consolas, monospace", 0);
  if (h > 34 && w > 46 && second && first !== second) halo(context, plain, second, x + 5, y + 19, w - 8, "11.5px system-ui, sans-serif", leaf ? 0 : 0.6);
}

function labelName2(node) {
  return node.label === 0 ? "" : app.meta.labels[node.label - 1];
}

// 描一圈底色再写字：下面是什么颜色都读得清；太长的截断，剩下不到 least 的就不写
function halo(context, plain, text, x, y, width, font, least) {
  context.font = font;
  let shown = text;
  if (context.measureText(shown).width > width) {
    let keep = Math.min(shown.length, Math.ceil(width / 5));
    while (keep > 0 && context.measureText(shown.slice(0, keep) + "…").width > width) keep--;
    if (keep < 2 || keep < least * shown.length) return;
    shown = shown.slice(0, keep) + "…";
  }
  context.strokeStyle = palette().card;
  context.lineWidth = 3;
  if (plain === null) context.strokeText(shown, x, y);
  context.fillStyle = plain || palette().ink;
  context.fillText(shown, x, y);
}

function nodeAt(x, y) {
  const inside = (node) => x >= node.box[0] && x < node.box[0] + node.box[2] && y >= node.box[1] && y < node.box[1] + node.box[3];
  const node = view.nodes.find(inside);
  return node === undefined ? [null, null] : [node, (node.inside || []).find(inside) || null];
}

function listenTree() {
  const canvas = document.getElementById("treemap");
  canvas.addEventListener("pointermove", (event) => {
    if (app.data === null || event.pointerType === "touch") return;
    const [node, child] = nodeAt(...pointerAt(canvas, event, view.width));
    if (node === null) return hideTip();
    const target = child || node;
    const depth = Math.min(app.data.levels.length, app.path.length + (child ? 2 : 1));
    const lines = [
      say("nItems", number(target.size)),
      target.label ? say("mostly", app.meta.labels[target.label - 1], percent(target.share)) : "",
      Number.isFinite(target.error) ? say("meanError", short(target.error)) : "",
      sampleTitles(target.start, target.end, 3),
    ];
    showTip(event, sid(app.data, target.start, depth), lines);
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => {
    if (app.data === null) return;
    const [node] = nodeAt(...pointerAt(canvas, event, view.width));
    hideTip();
    if (node === null) return;
    if (app.path.length >= app.data.levels.length) pickItem(node.start, true);
    else openPrefix([...app.path, app.data.levels[app.path.length][node.start]]);
  });
}

function openPrefix(prefix) {
  app.path = prefix;
  drawPictures();
}

function sampleTitles(start, end, most) {
  const names = [];
  for (let row = start; row < end && names.length < most; row++) {
    const title = titleOf(app.data, row);
    names.push(title.length > 48 ? title.slice(0, 46) + "…" : title);
  }
  return names.join(" · ") + (end - start > most ? " …" : "");
}

function drawCrumbs() {
  const crumbs = [element("button", { type: "button", text: say("allItems"), click: () => openPrefix([]) })];
  app.path.forEach((code, i) => {
    crumbs.push(element("span", { class: "quiet", text: "›" }), element("button", {
      type: "button", text: "L" + (i + 1) + " " + code, click: () => openPrefix(app.path.slice(0, i + 1)),
    }));
  });
  document.getElementById("crumbs").replaceChildren(...crumbs);
}

// 只差一层就到完整 ID 时，列物品；否则列下一层的前缀
function drawBranches(data, start, end) {
  const holder = document.getElementById("branches");
  const depth = app.path.length;
  if (depth > 0 && depth >= data.levels.length - 1) {
    const rows = Array.from({ length: end - start }, (_, i) => start + i);
    holder.replaceChildren(itemTable(data, rows));
    return;
  }
  const heads = [["prefix", say("prefix")], ["n", say("count")], ["label", say("label")], ["", say("titles")]];
  if (data.label === null) heads.splice(2, 1);
  const table = tableOf(heads);
  growing(table, view.nodes, BRANCHES_AT_FIRST, (node) => {
    const prefix = [...app.path, data.levels[depth][node.start]];
    const cells = [
      element("td", {}, element("button", { type: "button", class: "sid", text: prefix.join("-"), click: () => openPrefix(prefix) })),
      element("td", { class: "n", text: number(node.size) }),
      element("td", { text: sampleTitles(node.start, node.end, 4) }),
    ];
    if (data.label !== null) {
      const text = node.label ? say("mostly", app.meta.labels[node.label - 1], percent(node.share)) : say("none");
      cells.splice(2, 0, element("td", { class: "label", text }));
    }
    return element("tr", {}, ...cells);
  });
  holder.replaceChildren(table.box);
}
