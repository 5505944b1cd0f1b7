// 数据块：base64 → gzip → 定宽数组或一列文字。形状与来历见 report/data.py。
const blockCache = new Map();

function unpackBlock(index) {
  if (!blockCache.has(index)) {
    const holder = document.getElementById("block-" + index);
    const text = atob(holder.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    blockCache.set(index, new Response(stream).arrayBuffer());
  }
  return blockCache.get(index);
}

async function column(spec) {
  if (spec === null) return null;
  const buffer = await unpackBlock(spec.block);
  if (spec.type === "text") return new TextDecoder().decode(buffer).split("\n");
  const kinds = { Uint8Array, Uint16Array, Uint32Array, Float32Array };
  return new kinds[spec.type](buffer);
}

// 一次运行的全部列；没有评估的运行得到 null
async function loadRun(index) {
  const run = app.meta.runs[index];
  if (run.items === null) return null;
  const { items, codewords } = run;
  const [ids, titles, label, suffix, error, x, y, levels, counts, cx, cy, clabel] = await Promise.all([
    column(items.ids), column(items.titles), column(items.label), column(items.suffix), column(items.error),
    column(items.x), column(items.y), Promise.all(items.levels.map(column)),
    Promise.all(codewords.counts.map(column)), column(codewords.x), column(codewords.y), column(codewords.label),
  ]);
  return {
    rows: items.rows, sizes: run.sizes, total: run.num_items, sampled: run.sampled, frame: items.frame,
    ids, titles, label, suffix, error, x, y, levels, counts, cx, cy, clabel, lower: null,
  };
}

function sid(data, row, length) {
  const parts = [];
  for (let level = 0; level < (length || data.levels.length); level++) parts.push(data.levels[level][row]);
  return parts.join("-");
}

// 完整的 ID；有去重位的写在点后面
function fullId(data, row) {
  return sid(data, row) + (data.suffix === null ? "" : "." + data.suffix[row]);
}

function titleOf(data, row) {
  return (data.titles !== null && data.titles[row]) || data.ids[row];
}

function labelName(data, row) {
  const found = data.label === null ? 0 : data.label[row];
  return found === 0 ? "" : app.meta.labels[found - 1];
}

// 物品按编号排好，所以一个前缀是一段 [start, end)：逐层二分
function rangeOf(data, prefix) {
  let start = 0, end = data.rows;
  for (let level = 0; level < prefix.length; level++) {
    const codes = data.levels[level];
    start = lowerBound(codes, prefix[level], start, end);
    end = lowerBound(codes, prefix[level] + 1, start, end);
  }
  return [start, end];
}

function lowerBound(codes, value, low, high) {
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (codes[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// 一段之内下一层的各个前缀：[start, end) 的列表，按编号升序
function childRanges(data, start, end, depth) {
  const out = [];
  if (depth >= data.levels.length) {
    for (let row = start; row < end; row++) out.push([row, row + 1]);
    return out;
  }
  const codes = data.levels[depth];
  while (start < end) {
    const next = lowerBound(codes, codes[start] + 1, start, end);
    out.push([start, next]);
    start = next;
  }
  return out;
}

// 一段的摘要：最常见的标签（号加一，0 为没有）、它的占比、平均误差
const tally = { counts: null };
function summarise(data, start, end) {
  let label = 0, share = 0, error = NaN;
  if (data.label !== null) {
    if (tally.counts === null) tally.counts = new Uint32Array(app.meta.labels.length + 1);
    let best = 0;
    for (let row = start; row < end; row++) {
      const mine = data.label[row];
      const count = ++tally.counts[mine];
      if (count > best) { best = count; label = mine; }
    }
    share = best / (end - start);
    for (let row = start; row < end; row++) tally.counts[data.label[row]] = 0;
  }
  if (data.error !== null) {
    let sum = 0, known = 0;
    for (let row = start; row < end; row++) if (data.error[row] === data.error[row]) { sum += data.error[row]; known++; }
    error = known ? sum / known : NaN;
  }
  return { label, share, error };
}
