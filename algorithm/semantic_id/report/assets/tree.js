// 矩形树图的排版：纯函数，不碰页面。做法是 squarified treemap（Bruls, Huizing & van Wijk, 2000）：一行一行地铺，让格子尽量方。
// weights 须从大到小；返回 [x, y, w, h] 的列表，次序相同。
function squarify(weights, x, y, width, height) {
  const out = new Array(weights.length);
  let total = 0;
  for (const weight of weights) total += weight;
  if (!(total > 0) || !(width > 0) || !(height > 0)) return out.fill([x, y, 0, 0]);
  const scale = (width * height) / total;
  let at = 0;
  while (at < weights.length) {
    const side = Math.min(width, height);
    let sum = weights[at] * scale, count = 1, worst = ratio(sum, sum, sum, side);
    while (at + count < weights.length) {
      const next = weights[at + count] * scale;
      const grown = ratio(weights[at] * scale, next, sum + next, side);
      if (grown > worst) break;
      sum += next;
      worst = grown;
      count++;
    }
    const depth = sum / side;
    let offset = 0;
    for (let i = at; i < at + count; i++) {
      const length = (weights[i] * scale) / depth;
      out[i] = width >= height ? [x, y + offset, depth, length] : [x + offset, y, length, depth];
      offset += length;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
    at += count;
  }
  return out;
}

// 一行里最不方的格子的长宽比
function ratio(largest, smallest, sum, side) {
  const square = sum * sum, edge = side * side;
  return Math.max((edge * largest) / square, square / (edge * smallest));
}

// 一段的孩子，带摘要，从大到小（并列取编号小的）
function childNodes(data, start, end, depth) {
  const nodes = childRanges(data, start, end, depth).map(([from, to]) => ({
    start: from, end: to, size: to - from, ...summarise(data, from, to),
  }));
  return nodes.sort((a, b) => b.size - a.size || a.start - b.start);
}

// 标签相同的格子放在一起，颜色才成片；没有标签时只有一组
function layoutCells(nodes, width, height) {
  const groups = new Map();
  for (const node of nodes) {
    const key = Math.min(node.label, PALETTES.light.labels.length + 1);
    if (!groups.has(key)) groups.set(key, { size: 0, nodes: [] });
    const group = groups.get(key);
    group.size += node.size;
    group.nodes.push(node);
  }
  const ordered = [...groups.values()].sort((a, b) => b.size - a.size);
  const boxes = squarify(ordered.map((group) => group.size), 0, 0, width, height);
  ordered.forEach((group, i) => {
    const cells = squarify(group.nodes.map((node) => node.size), ...boxes[i]);
    group.nodes.forEach((node, j) => { node.box = cells[j]; });
  });
}
