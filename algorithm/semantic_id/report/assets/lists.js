// 清单：查物品、误差最大的、冲突组。每行都能点到物品；长的清单先给一截，要多少再给多少。
const MOST_HITS = 50;
const NEIGHBOURS = 8;

// heads: [[列的样式, 标题]]
function tableOf(heads) {
  const body = element("tbody");
  const columns = element("colgroup", {}, ...heads.map(([kind]) => element("col", { class: kind })));
  const head = element("tr", {}, ...heads.map(([kind, text]) => element("th", { class: kind === "n" || kind === "label" ? kind : "", scope: "col", text })));
  const box = element("div", {}, element("table", { class: "rows" }, columns, element("thead", {}, head), body));
  return { box, body };
}

// 先列 first 行，「再看」一次一百行
function growing(table, entries, first, makeRow) {
  let shown = 0;
  const button = element("button", { type: "button", class: "plain" });
  const grow = (count) => {
    table.body.append(...entries.slice(shown, shown + count).map(makeRow));
    shown = Math.min(entries.length, shown + count);
    button.hidden = shown >= entries.length;
    button.textContent = say("more", number(Math.min(100, entries.length - shown)));
  };
  button.addEventListener("click", () => grow(100));
  grow(first);
  table.box.append(button);
}

// 物品的表：完整的 ID、标题、标签、误差
function itemTable(data, rows, first) {
  const heads = [["id", "ID"], ["", say("title")]];
  if (data.label !== null) heads.push(["label", say("label")]);
  if (data.error !== null) heads.push(["n", say("error")]);
  const table = tableOf(heads);
  growing(table, rows, first || ROWS_AT_FIRST, (row) => {
    const cells = [
      element("td", { class: "sid", text: fullId(data, row) }),
      element("td", {}, element("button", { type: "button", text: titleOf(data, row), click: () => pickItem(row, true) })),
    ];
    if (data.label !== null) cells.push(element("td", { class: "label", text: labelName(data, row) || say("none") }));
    if (data.error !== null) cells.push(element("td", { class: "n", text: short(data.error[row]) }));
    return element("tr", row === app.picked ? { class: "chosen" } : {}, ...cells);
  });
  return table.box;
}

function drawWorst(data) {
  const holder = document.getElementById("worst-list");
  if (data.error === null) return holder.replaceChildren(element("p", { class: "quiet", text: say("noError") }));
  if (!data.worst) {
    const known = [];
    for (let row = 0; row < data.rows; row++) if (data.error[row] === data.error[row]) known.push(row);
    data.worst = known.sort((a, b) => data.error[b] - data.error[a] || a - b).slice(0, 200);
  }
  holder.replaceChildren(itemTable(data, data.worst, 15));
}

function drawCrowded(data) {
  const groups = [];
  for (let row = 0; row < data.rows;) {
    let end = row + 1;
    while (end < data.rows && data.levels.every((codes) => codes[end] === codes[row])) end++;
    if (end - row > 1) groups.push([row, end]);
    row = end;
  }
  groups.sort((a, b) => b[1] - b[0] - (a[1] - a[0]) || a[0] - b[0]);
  const note = groups.length ? say("group", number(groups.length)) + (app.lang === "zh" ? "。" : ". ") : "";
  document.getElementById("crowded-note").textContent = note + (data.sampled && groups.length ? say("atLeast") : "");
  const holder = document.getElementById("crowded-list");
  if (groups.length === 0) return holder.replaceChildren(element("p", { class: "quiet", text: say("noCollisions") }));
  const box = element("div");
  growing({ box, body: box }, groups, 15, ([start, end]) => {
    const details = element("details", {}, element("summary", {},
      element("span", { class: "sid", text: sid(data, start) }),
      element("span", { class: "name", text: sampleTitles(start, end, 4) }),
      element("span", { class: "n", text: say("nItems", number(end - start)) })));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1) {
        details.append(itemTable(data, Array.from({ length: end - start }, (_, i) => start + i)));
      }
    });
    return details;
  });
  holder.replaceChildren(box);
}

// 查询 → {rows, total}：像前缀的按前缀；否则编号完全相同的在前，再是标题或编号含有它的
function search(data, query) {
  const text = query.trim().toLowerCase();
  if (text === "") return null;
  const found = [];
  if (/^\d+(\s*[-,，]\s*\d+)+$/.test(text)) {
    const prefix = text.split(/[-,，]/).map(Number).slice(0, data.levels.length);
    const [start, end] = rangeOf(data, prefix);
    if (end > start) {
      for (let row = start; row < Math.min(end, start + MOST_HITS); row++) found.push(row);
      return { rows: found, total: end - start, prefix };
    }
  }
  if (data.lower === null) {
    data.lower = data.ids.map((id, row) => (data.titles === null ? id : id + "\n" + data.titles[row]).toLowerCase());
  }
  const exact = [], starts = [], within = [];
  for (let row = 0; row < data.rows; row++) {
    const at = data.lower[row].indexOf(text);
    if (at < 0) continue;
    if (data.ids[row].toLowerCase() === text) exact.push(row);
    else if (titleOf(data, row).toLowerCase().startsWith(text)) starts.push(row);
    else within.push(row);
  }
  const all = exact.concat(starts, within);
  return { rows: all.slice(0, MOST_HITS), total: all.length, prefix: null };
}

function drawHits() {
  const holder = document.getElementById("hits");
  const result = app.data === null ? null : search(app.data, document.getElementById("query").value);
  if (result === null) return holder.replaceChildren();
  const { rows, total, prefix } = result;
  const head = total === 0 ? say("noHit") : prefix ? say("inPrefix", prefix.join("-"), number(total)) : say("hits", number(total), rows.length);
  holder.replaceChildren(element("li", { class: "quiet", text: head }), ...rows.map((row) => element("li", {}, element("button", {
    type: "button", click: () => pickItem(row, true),
  }, element("span", { class: "name", text: titleOf(app.data, row) }), element("span", { class: "sid", text: fullId(app.data, row) })))));
}

// 选中一个物品：详情写在「查一个物品」里，地图上画一圈
function pickItem(row, scroll) {
  app.picked = row;
  drawItem();
  redrawMap();
  const box = document.getElementById("item");
  if (scroll) box.scrollIntoView({ block: "center", behavior: "auto" });
}

function drawItem() {
  const holder = document.getElementById("item"), data = app.data, row = app.picked;
  if (data === null || row < 0) return holder.replaceChildren();
  const count = data.levels.length;
  const chips = data.levels.map((codes, level) => {
    const prefix = data.levels.slice(0, level + 1).map((column) => column[row]);
    return element("button", { type: "button", title: say("inTree"), click: () => { openPrefix(prefix); document.getElementById("tree").scrollIntoView(); } },
      element("span", { text: "L" + (level + 1) }), element("b", { text: codes[row] }));
  });
  if (data.suffix !== null) chips.push(element("button", { type: "button", disabled: "" }, element("span", { text: say("suffix") }), element("b", { text: data.suffix[row] })));
  const facts = [say("itemId") + " " + data.ids[row], labelName(data, row), data.error === null ? "" : say("error") + " " + short(data.error[row])];
  holder.replaceChildren(
    element("h3", { text: (data.titles !== null && data.titles[row]) || say("noTitle") }),
    element("p", { class: "quiet", text: facts.filter(Boolean).join(" · ") }),
    element("div", { class: "chips" }, ...chips));
  let inner = [row, row + 1];
  for (let length = count; length >= 1; length--) {
    const prefix = data.levels.slice(0, length).map((column) => column[row]);
    const [start, end] = rangeOf(data, prefix);
    const rows = [];
    // 已经在更长的前缀里列过的不再列；按编号次序，离得近的在前
    for (let step = 1; rows.length < NEIGHBOURS && (inner[0] - step >= start || inner[1] - 1 + step < end); step++) {
      if (inner[1] - 1 + step < end) rows.push(inner[1] - 1 + step);
      if (inner[0] - step >= start && rows.length < NEIGHBOURS) rows.push(inner[0] - step);
    }
    inner = [start, end];
    if (rows.length === 0 && length < count) continue;
    const name = length === count ? say("sameId") : say("share", length === 1 ? "L1" : "L1–L" + length);
    const size = end - start === 1 ? say("alone") : say("nItems", number(end - start));
    holder.append(element("h4", { "data-shared": length }, element("span", { text: name }), element("span", { class: "sid", text: prefix.join("-") }),
      element("span", { class: "quiet", text: size })));
    if (rows.length) holder.append(itemTable(data, rows));
  }
}
