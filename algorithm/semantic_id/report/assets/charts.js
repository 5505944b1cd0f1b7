// 折线图：训练曲线与码字用量，用 uPlot（uplot/ 里附着它的许可证）。主题、语言、宽度一变就整组重画，状态只在 app 里。
const charts = { usage: [], curves: [] };

function chartWidth(holder) {
  if (app.printing) return 320; // A4 上并排两张
  const columns = getComputedStyle(holder).gridTemplateColumns.split(" ").length || 1;
  return Math.max(220, Math.floor((holder.clientWidth - 28 * (columns - 1)) / columns));
}

function lineColour(index) {
  return palette().labels[index % palette().labels.length];
}

function tick(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size > 0 && size < 0.001) return value.toExponential(1);
  return size >= 1000 ? number(Math.round(value)) : String(+value.toPrecision(3));
}

// lines: [{label, values, colour, dash, fill, width}]；x 是共用的横坐标
function addChart(group, holder, title, x, lines, axisNames, options) {
  const colours = palette();
  const axis = (name) => ({
    stroke: colours.soft, font: "11px system-ui, sans-serif", ticks: { stroke: colours.line, width: 1 }, size: name === "y" ? 62 : 28,
    grid: { stroke: colours.line, width: 1 }, values: (_, values) => values.map((v) => (v === null ? "" : tick(v))),
    space: name === "y" ? 34 : 52, ...(name === "x" ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000] } : {}),
  });
  const box = element("div", { class: "chart" }, element("h3", { text: title }));
  holder.append(box);
  const chart = new uPlot({
    width: chartWidth(holder), height: 190, padding: [10, 12, 0, 0],
    cursor: { drag: { setScale: false }, points: { size: 6 } },
    legend: { live: !app.printing },
    scales: { x: { time: false }, y: { range: (_, low, high) => paddedRange(low, high, options.floor) } },
    axes: [axis("x"), axis("y")],
    series: [
      { label: axisNames[0], value: (_, v) => (v === null ? "–" : number(v)) },
      ...lines.map((line) => ({
        label: line.label, stroke: line.colour, width: line.width || 2, dash: line.dash, fill: line.fill,
        points: { show: options.points === true, size: 5, fill: line.colour }, spanGaps: true, value: (_, v) => tick(v),
      })),
    ],
  }, [x, ...lines.map((line) => line.values)], box);
  charts[group].push(chart);
}

// 纵轴：floor 为 true 时从 0 起；一条水平线也要有高度
function paddedRange(low, high, floor) {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  return [floor ? 0 : low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

function clearCharts(group, holder) {
  charts[group].forEach((chart) => chart.destroy());
  charts[group] = [];
  holder.replaceChildren();
}

// 每层一张：码字按用量从多到少，旁边是人人一样多的那条线。物品数与码本都相同的其他运行用细线叠上
async function drawUsage(data) {
  const holder = document.getElementById("usage-charts");
  if (holder === null) return;
  clearCharts("usage", holder);
  if (data === null) return;
  const sorted = (counts) => Array.from(Uint32Array.from(counts).sort().reverse());
  const others = await Promise.all(app.meta.runs.map(async (run, i) => {
    if (i === app.run || run.items === null || run.num_items !== data.total) return null;
    return { name: run.name, index: i, sizes: run.sizes, counts: await Promise.all(run.codewords.counts.map(column)) };
  }));
  data.counts.forEach((counts, level) => {
    const size = data.sizes[level];
    const mine = rgb(lineColour(app.run));
    const lines = [
      { label: app.meta.runs[app.run].name, values: sorted(counts), colour: css(mine), fill: "rgba(" + mine.join(",") + ",.16)" },
      { label: say("ideal"), values: new Array(size).fill(data.total / size), colour: palette().ink, dash: [5, 4], width: 1.5 },
    ];
    for (const other of others) {
      if (other !== null && other.sizes[level] === size) {
        lines.push({ label: other.name, values: sorted(other.counts[level]), colour: lineColour(other.index), width: 1.2 });
      }
    }
    const x = Array.from({ length: size }, (_, i) => i + 1);
    addChart("usage", holder, say("level", level + 1, number(size)), x, lines, [say("rank")], { floor: true });
  });
}

// 整体的数字每个运行一条线；逐层的只画选中的运行
function drawCurves() {
  const holder = document.getElementById("curves");
  if (holder === null) return;
  clearCharts("curves", holder);
  const runs = app.meta.runs;
  for (const key of ["holdout_relative_mse", "holdout_collision_rate", "reconstruction_loss"]) {
    const shown = runs.map((run, i) => [run, i]).filter(([run]) => run.curves !== null && key in run.curves.series);
    if (shown.length === 0) continue;
    const epochs = [...new Set(shown.flatMap(([run]) => run.curves.epoch))].sort((a, b) => a - b);
    const lines = shown.map(([run, i]) => {
      const at = new Map(run.curves.epoch.map((epoch, row) => [epoch, run.curves.series[key][row]]));
      return { label: run.name, colour: lineColour(i), values: epochs.map((epoch) => at.get(epoch) ?? null), width: i === app.run ? 2.4 : 1.4 };
    });
    addChart("curves", holder, say(key), epochs, lines, [say("epoch")], { points: epochs.length <= 40 });
  }
  const { curves, sizes } = runs[app.run];
  document.getElementById("no-curves").hidden = curves !== null;
  if (curves === null) return;
  for (const key of ["utilization", "perplexity"]) {
    const names = Object.keys(curves.series).filter((name) => name.startsWith(key + "/L"));
    if (names.length === 0 || (key === "perplexity" && sizes === undefined)) continue;
    const lines = names.map((name, level) => ({
      label: "L" + (level + 1), colour: lineColour(level),
      values: curves.series[name].map((value) => (value === null || key !== "perplexity" ? value : value / sizes[level])),
    }));
    addChart("curves", holder, say(key), curves.epoch, lines, [say("epoch")], { floor: true, points: curves.epoch.length <= 40 });
  }
}
