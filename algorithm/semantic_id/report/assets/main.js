// 起步：读元数据，解开第一个运行，画全部的图；换语言、换运行、换主题、改宽度、打印，都是同一个 drawAll。
function drawPictures() {
  const data = app.data;
  if (data === null) return;
  const scales = { tree: [0, 1], map: [0, 1] };
  colourControls(data, scales); // 先定下上色方式，再画
  scales.tree = drawTree(data);
  scales.map = drawMap(data);
  colourControls(data, scales);
}

async function drawAll() {
  document.documentElement.lang = app.lang;
  for (const button of document.querySelectorAll("[data-lang]")) button.setAttribute("aria-pressed", String(button.dataset.lang === app.lang));
  for (const [name, attribute] of [["ph", "placeholder"], ["label", "aria-label"]]) {
    const key = name + (app.lang === "en" ? "En" : "Zh");
    for (const node of document.querySelectorAll("[data-" + name + "-zh]")) node.setAttribute(attribute, node.dataset[key]);
  }
  for (const node of document.querySelectorAll("[data-run]")) node.hidden = Number(node.dataset.run) !== app.run;
  for (const node of document.querySelectorAll(".needs-items")) node.hidden = app.data === null;
  if (app.data !== null) {
    drawPictures();
    drawWorst(app.data);
    drawCrowded(app.data);
    drawHits();
    drawItem();
  }
  drawCurves();
  await drawUsage(app.data);
}

async function chooseRun(index) {
  document.body.classList.add("busy");
  const data = await loadRun(index);
  Object.assign(app, { run: index, data, path: [], picked: -1, highlight: 0 });
  lens.grid = null;
  resetLens();
  await drawAll();
  document.body.classList.remove("busy");
}

function trouble(text) {
  const box = document.getElementById("trouble");
  box.textContent = text;
  box.hidden = false;
}

function later(action, delay) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, delay); };
}

function listen() {
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.addEventListener("click", () => { app.lang = button.dataset.lang; drawAll(); });
  }
  const picker = document.getElementById("run");
  if (picker !== null) picker.addEventListener("change", () => chooseRun(Number(picker.value)));
  const rows = document.getElementById("all-rows");
  if (rows !== null) rows.addEventListener("click", () => {
    const open = document.querySelector(".compare").classList.toggle("all");
    rows.setAttribute("aria-expanded", String(open));
  });
  const query = document.getElementById("query");
  if (query !== null) {
    query.addEventListener("input", later(drawHits, 80));
    listenTree();
    listenMap();
  }
  let width = innerWidth;
  addEventListener("resize", later(() => { if (innerWidth !== width) { width = innerWidth; drawAll(); } }, 120));
  darkQuery.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { app.printing = true; drawAll(); });
  addEventListener("afterprint", () => { app.printing = false; drawAll(); });
}

async function start() {
  app.meta = JSON.parse(document.getElementById("data").textContent);
  listen();
  if (typeof DecompressionStream === "undefined" && app.meta.runs.some((run) => run.items !== null)) {
    trouble(say("tooOld"));
    for (const node of document.querySelectorAll(".needs-items")) node.hidden = true;
    return;
  }
  await chooseRun(0);
  document.documentElement.dataset.ready = String(Math.round(performance.now())); // 打开到画完的毫秒；基准与测试读它
}

start().catch((error) => {
  trouble(say("broken", String(error)));
  throw error;
});
