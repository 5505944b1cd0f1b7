// 脚本里出现的文字，两种语言；模板里的文字写在模板里。{} 依次换成参数。
const TEXT = {
  zh: {
    allItems: "全部", byLabel: "按标签", byError: "按误差", other: "其他", none: "无标签", items: "物品", item: "物品",
    count: "物品数", label: "标签", error: "误差", title: "标题", titles: "里面有", prefix: "前缀", more: "再看 {} 个",
    nItems: "{} 个物品", nCodes: "{} 个下一级前缀", meanError: "平均误差 {}", mostly: "{}（{}）",
    low: "低 {}", high: "高 {}", noTitle: "（没有标题）", noHit: "没有找到。试试标题里的一个词，或前缀如 12-7。",
    hits: "找到 {} 个，列出前 {} 个", inPrefix: "前缀 {} 下有 {} 个物品", suffix: "去重位", itemId: "编号",
    sameId: "ID 完全相同", share: "共享 {}", alone: "没有别的物品", inTree: "在前缀树里看", codeword: "L1 码字 {}",
    noCollisions: "没有：每个物品的 ID 都不同。", group: "共 {} 组", atLeast: "抽样里的，全体只多不少。", noError: "没有误差可看。",
    tooOld: "这个浏览器太旧，解不开页面里的数据；请用 2023 年以后的浏览器。", broken: "页面里的数据读不出来：{}",
    rank: "第几个码字", usage: "物品数", ideal: "人人一样多", level: "第 {} 层：{} 个码字", epoch: "epoch",
    holdout_relative_mse: "留出行的相对误差", holdout_collision_rate: "留出行的冲突率", reconstruction_loss: "训练时的重建损失",
    utilization: "利用率", perplexity: "困惑度 / K", zoomIn: "放大", zoomOut: "缩小", reset: "复原",
  },
  en: {
    allItems: "All", byLabel: "by label", byError: "by error", other: "other", none: "no label", items: "items", item: "Item",
    count: "items", label: "Label", error: "Error", title: "Title", titles: "Holds", prefix: "Prefix", more: "{} more",
    nItems: "{} items", nCodes: "{} longer prefixes", meanError: "mean error {}", mostly: "{} ({})",
    low: "low {}", high: "high {}", noTitle: "(no title)", noHit: "Nothing found. Try a word of the title, or a prefix such as 12-7.",
    hits: "{} found, first {} shown", inPrefix: "{} holds {} items", suffix: "suffix", itemId: "item id",
    sameId: "The very same ID", share: "Share {}", alone: "no other item", inTree: "show in the tree", codeword: "L1 codeword {}",
    noCollisions: "None: every item has its own ID.", group: "{} groups", atLeast: "Counted in the sample; the whole has no fewer.",
    noError: "No errors to show.",
    tooOld: "This browser is too old to unpack the data of this page; use one from 2023 or later.", broken: "The data of this page cannot be read: {}",
    rank: "codeword", usage: "items", ideal: "even use", level: "Level {}: {} codewords", epoch: "epoch",
    holdout_relative_mse: "Relative MSE, held-back rows", holdout_collision_rate: "Collision rate, held-back rows",
    reconstruction_loss: "Reconstruction loss in training", utilization: "Utilization", perplexity: "Perplexity / K",
    zoomIn: "zoom in", zoomOut: "zoom out", reset: "reset",
  },
};

// 全页的状态，只有这一份
const app = {
  lang: document.documentElement.lang === "en" ? "en" : "zh",
  meta: null, run: 0, data: null, colour: "label", path: [], picked: -1, highlight: 0, printing: false,
};

function say(key, ...values) {
  let at = 0;
  return TEXT[app.lang][key].replace(/\{\}/g, () => values[at++]);
}

function number(value) {
  return Number(value).toLocaleString("en-US");
}

function short(value) {
  return Number.isFinite(value) ? Number(value).toPrecision(3) : "–";
}

function percent(value) {
  return (100 * value).toFixed(value < 0.1 ? 1 : 0) + "%";
}

// 建元素：文字一律走 textContent，标题里的 <script> 只会是文字
function element(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "text") node.textContent = value;
    else if (key === "click") node.addEventListener("click", value);
    else if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
