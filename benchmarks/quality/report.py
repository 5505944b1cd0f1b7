"""由缓存的格子写出总表：每份数据、每种码本大小两张表，种子之间取平均 ± 样本标准差。"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import Any, Callable, Sequence

from quality import columns
from quality import row as rows
from quality.tools import TOOLS

# 列名 → 说明；表里的次序
COST = ("relative MSE train", "relative MSE unseen", "collision rate", "collision rate, distinct", "utilization")
COST += ("perplexity / K", "Gini", "train CPU s", "peak MB", "encode items / CPU s")
NOTES = """\
- relative MSE：平方误差 ÷ 到训练行均值的平方偏差，训练行与未见行各一列；分母的均值都取训练行的。
- collision rate：1 − 不同 ID 数 / 行数，训练行，去重之前；distinct 一列先把逐位相同的向量各留一行（它们冲突是应当的）。
- utilization、perplexity / K、Gini：逐层 L1 L2 L3，训练行。
- train CPU s：训练的 CPU 秒，单线程，不含导入与读数据；peak MB：训练期间常驻内存的峰值，含导入的库与数据。
- encode items / CPU s：训练行与未见行一起，每 CPU 秒编码并解码几件。
- purity、NMI：前缀组对类目，「L1 / L1+L2」；NMI 用两个熵的算术平均归一。WordNet 只看名词；缺的不到 5% 的深度才用。
- neighbour share：特征空间十个精确近邻里共享 L1 / L1+L2 的比例，括号里是随机水平；训练行多于 {queries:,} 时抽样
  {queries:,} 个查询物品（种子同划分），对全部训练行。
- lift：共同消费的对共享 L1 / L1+L2 的比例，与流行度相同的随机对（第二个物品重排，取精确期望）之比。train 是每个用户
  train_items 里前后相邻的两个，held-out 是（valid_item, test_item）；两个物品都在训练行里。
- ± 是种子之间的样本标准差；划分的排列与训练用同一个种子。「not finished」：训练超过 CPU 秒上限。
- beauty 的特征里有类目的词，它的 purity、NMI 只供参考；语义看 beauty_title。"""


def number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def digits_of(name: str) -> int:
    if name in ("train CPU s", "peak MB", "encode items / CPU s"):
        return 0
    return 4 if name.startswith(("relative", "collision")) else 2 if name.startswith("lift") else 3


def cell(values: Sequence[Any], digits: int) -> str:
    """几个种子的同一个数字（或同一个列表）→ 「平均 ± 标准差」。"""
    if isinstance(values[0], list):
        return " / ".join(cell(part, digits) for part in zip(*values, strict=True))
    if any(value is None for value in values):
        return "–"
    text = number(statistics.fmean(values), digits)
    return f"{text} ± {number(statistics.stdev(values), digits)}" if len(values) > 1 else text


def table(heads: Sequence[str], lines: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
    ]


class Sheet:
    """一份数据、一种码本大小：每个（工具, 读法）收齐各种子的数字。"""

    def __init__(self, dataset: str, sizes: tuple[int, ...]):
        self.dataset, self.sizes = dataset, sizes
        self.values: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.trouble: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}

    def add(self, cell_: rows.Cell, row: dict[str, Any], folder: Path, reference: columns.Reference) -> None:
        if row["status"] != "finished":
            what = row["status"] + (f" in {row['cpu_limit']} CPU s" if row["status"] == "not finished" else "")
            self.trouble.setdefault(cell_.tool, []).append(f"seed {cell_.seed}: {what}")
            return
        self.versions.update(row["versions"])
        self.versions[TOOLS[cell_.tool].package] = row["key"]["version"]
        for reading in row["readings"]:
            values = columns.figures(row, folder, reading, reference)
            self.values.setdefault((cell_.tool, reading), {})[cell_.seed] = values

    def lines(self, names: Sequence[str], form: Callable[[list[dict], str], str]) -> list[list[str]]:
        out = []
        for (tool, reading), by_seed in self.values.items():
            found = [by_seed[seed] for seed in sorted(by_seed)]
            out.append([tool, reading, *(form(found, name) for name in names)])
        return out

    def text(self) -> list[str]:
        if not (self.values or self.trouble):
            return []
        seeds = sorted({seed for by_seed in self.values.values() for seed in by_seed})
        title = f"## {self.dataset}，{' / '.join(map(str, self.sizes))}，种子 {', '.join(map(str, seeds))}"
        out = [title, "", "误差、冲突、均匀、时间：", ""]
        stopped = [[tool, "; ".join(reasons), *("" for _ in COST)] for tool, reasons in self.trouble.items()]
        out += table(["工具", "读法", *COST], self.lines(COST, _plain) + stopped)
        every = {name: None for by_seed in self.values.values() for values in by_seed.values() for name in values}
        names = [name for name in every if name.startswith(("purity", "NMI", "neighbour share", "lift"))]
        out += ["语义（L1 / L1+L2）：", "", *table(["工具", "读法", *names], self.lines(names, _with_chance))]
        return out


def _plain(found: list[dict], name: str) -> str:
    return cell([values[name] for values in found], digits_of(name))


def _with_chance(found: list[dict], name: str) -> str:
    text = _plain(found, name)
    if name == "neighbour share":
        text += f"（{cell([values['neighbour chance'] for values in found][:1], 4)}）"
    return text


def write(cells: list[rows.Cell], data_folder: Path, cache: Path, output: Path, hardware: str, command: str) -> str:
    """收集缓存里有的格子，写出 output；返回全文。"""
    sheets: dict[tuple[str, tuple[int, ...]], Sheet] = {}
    for cell_ in cells:
        folder = rows.folder_of(cell_, data_folder, cache)
        row = rows.read_row(folder)
        if row is not None:
            sheet = sheets.setdefault((cell_.dataset, cell_.sizes), Sheet(cell_.dataset, cell_.sizes))
            reference = columns.reference(cell_.dataset, cell_.seed, cell_.inner, data_folder, cache)
            sheet.add(cell_, row, folder, reference)
    if not sheets:
        raise SystemExit("no cached rows match; run without --report first")
    versions: dict[str, str] = {}
    for sheet in sheets.values():
        versions.update(sheet.versions)
    seen = {tool for sheet in sheets.values() for tool in [*(tool for tool, _ in sheet.values), *sheet.trouble]}
    inner_split = any(cell_.inner for cell_ in cells)
    inner = ["- **内部划分：只在训练行里再切 85 / 15，「unseen」是训练行的后 15%**"] if inner_split else []
    machine = f"{hardware}（{platform.machine()}，{os.cpu_count()} 核），一个线程"
    notes = NOTES.format(queries=columns.MAX_QUERIES)
    settings = [f"- `{name}`：{TOOLS[name].settings}" for name in TOOLS if name in seen]
    text = "\n".join(
        [
            "# 质量总表" + ("（内部划分）" if inner_split else ""),
            "",
            f"- 日期：{datetime.date.today()}；硬件：{machine}",
            *inner,
            "- 版本：" + "，".join(f"{name} {version}" for name, version in sorted(versions.items())),
            f"- 命令：`{command}`",
            "",
            "各列：",
            "",
            notes,
            "",
            "各工具与默认不同、或值得写明的设置：",
            "",
            *settings,
            "",
            *(line for sheet in sheets.values() for line in sheet.text()),
        ]
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    return text
