"""命令行的结果：表格、体检结论、演示。只做排版，不做计算；只依赖 rich。"""

from __future__ import annotations

import sys
from typing import Any, Dict, List, Tuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .language import both, pick

__all__ = [
    "facts",
    "new_console",
    "show_demo",
    "show_evaluation",
    "show_info",
    "show_tokens",
    "show_trained",
    "show_written",
]


def show_trained(result: Dict[str, Any], lang: str) -> None:
    """`train` 的摘要。"""
    console = new_console()
    rows = [
        (
            both("训练行 / 留出行", "train / held-back rows"),
            f"{result['num_train_rows']} / {result['num_holdout_rows']}",
        ),
        (both("相对误差（训练 / 留出）", "relative MSE (train / held back)"), _pair(result, "relative_mse")),
        (both("冲突率（训练 / 留出）", "collision rate (train / held back)"), _pair(result, "collision_rate")),
        (both("留下的 epoch", "epoch kept"), f"{result['best_epoch']} / {result['num_epochs']}"),
        (both("指纹", "fingerprint"), result["fingerprint"][:16]),
    ]
    console.print(facts(rows, lang))
    console.print(_levels(result, lang))
    for note in result["notes"]:
        console.print(f"· {escape(note)}")
    console.print(pick(both("模型写在", "Model written to"), lang), escape(result["output"]))


def show_written(result: Dict[str, Any], lang: str) -> None:
    """`encode`、`decode` 的一行摘要。"""
    text = pick(both("{n} 个物品，写在 {out}", "{n} items written to {out}"), lang)
    new_console().print(escape(text.format(n=result["num_items"], out=result["output"])))


def show_tokens(result: Dict[str, Any], lang: str) -> None:
    """`tokens` 的一行摘要。"""
    text = pick(
        both("{n} 个语义 ID 词，词号从 {first} 起，写在 {out}", "{n} tokens from id {first} on, in {out}"), lang
    )
    values = {"n": result["num_tokens"], "first": result["offsets"][0], "out": result["output"]}
    new_console().print(escape(text.format(**values)))


def show_evaluation(result: Dict[str, Any], lang: str) -> None:
    """`evaluate` 的表格与体检结论。"""
    console = new_console()
    console.print(facts(_quality_rows(result, lang), lang))
    console.print(_levels(result, lang))
    if result.get("neighbour_share") or result.get("label_purity") or result.get("co_consumption_lift"):
        console.print(_prefixes(result, lang))
    _show_verdicts(console, result["verdicts"], lang)


def show_info(result: Dict[str, Any], lang: str) -> None:
    """`info` 的表格。"""
    console = new_console()
    config, training = result["config"], result["training"]
    rows = [
        (both("指纹", "fingerprint"), result["fingerprint"]),
        (both("特征维度", "embedding_dim"), str(config["embedding_dim"])),
        (both("码本大小", "codebook sizes"), " / ".join(map(str, config["codebook_sizes"]))),
        (both("参数个数", "parameters"), f"{result['num_parameters']:,}"),
        (both("磁盘占用", "size on disk"), f"{result['bytes'] / 1e6:.1f} MB"),
    ]
    rows += [(key, str(value)) for key, value in config.items() if key not in ("embedding_dim", "codebook_sizes")]
    console.print(facts(rows, lang))
    if not training:
        console.print(pick(both("这个模型从未训练过。", "This model was never trained."), lang))
        return
    console.print(facts([(key, _plain(value)) for key, value in training.items()], lang))


def show_demo(result: Dict[str, Any], lang: str) -> None:
    """`demo` 的展示：数字、共享前缀的物品、下一步。"""
    console = new_console()
    show_evaluation(result, lang)
    chance, *agreement = (f"{value:.0%}" if value is not None else "–" for value in result["prefix_agreement"])
    text = both(
        "两件物品属于同一类的概率：随机 {chance}；共享 L1 {l1}；共享 L1、L2 {l2}。",
        "Two items are of the same category: at random {chance}; sharing L1 {l1}; sharing L1 and L2 {l2}.",
    )
    console.print()
    console.print(f"[bold]{pick(both('相似物品共享前缀', 'Similar items share a prefix'), lang)}[/bold]")
    console.print(pick(text, lang).format(chance=chance, l1=agreement[0], l2=agreement[1]))
    rule = both(
        "下面每个类别取规模居中的一个 L1 前缀，展开其中最大的几个 (L1, L2)：",
        "For each category, its L1 prefix of median size, and the largest (L1, L2) inside it:",
    )
    console.print(pick(rule, lang))
    for group in result["prefixes"]:
        _show_group(console, group, lang)
    console.print()
    console.print(f"[bold]{pick(both('接下来', 'Next'), lang)}[/bold]")
    for line in _next_steps(result, lang):
        console.print(line, soft_wrap=True)
    console.print()
    if result["report"] is not None:
        console.print(
            pick(both("报告（用浏览器打开）", "Report (open it in a browser)"), lang),
            escape(result["report"]),
            soft_wrap=True,
        )
    else:
        how = both(
            "想要网页报告：pip install 'semid[report]'，再跑一遍",
            "For a web report: pip install 'semid[report]' and run again",
        )
        console.print(escape(pick(how, lang)), soft_wrap=True)


def _show_group(console: Console, group: Dict[str, Any], lang: str) -> None:
    """一个 L1 前缀与它的分支。"""
    head = both("{label}：{n} 个物品，{purity:.0%} 是 {label}", "{label}: {n} items, {purity:.0%} {label}")
    values = {"label": group["label"], "n": group["num_items"], "purity": group["purity"]}
    console.print(f"\n[cyan]{_sid(group['prefix'])}[/cyan]  {escape(pick(head, lang).format(**values))}")
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1, 0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for branch in group["branches"]:
        more = " …" if branch["num_items"] > len(branch["titles"]) else ""
        table.add_row(_sid(branch["prefix"]), escape(" · ".join(branch["titles"]) + more))
    console.print(table)


def _next_steps(result: Dict[str, Any], lang: str) -> List[str]:
    """可以直接复制的命令。"""
    items = pick(both("你的物品.parquet", "your_items.parquet"), lang)
    return [
        f"  semid info {escape(result['model'])}",
        f"  semid train {items} --output my-model",
        f"  semid encode my-model {items} --output my-catalog",
        f"  semid evaluate my-model {items}",
    ]


def _sid(prefix: List[int]) -> str:
    """`<a_3><b_12>` 太长；表格里用 `3-12`。"""
    return "-".join(map(str, prefix))


def _quality_rows(result: Dict[str, Any], lang: str) -> List[Tuple[str, str]]:
    """整体质量的几行。"""
    relative = result["relative_mse"]
    shown = f"{relative:.4f}" if relative is not None else f"– ({result['relative_mse_reason']})"
    source = both("（没有解码器：每层编号的平均相加）", " (no decoder: sum of code means)")
    shown += pick(source, lang) if result.get("reconstruction") == "additive_means" else ""
    extra = []
    if "assigned_collision_rate" in result:
        extra.append((both("冲突率（物品表）", "collision rate (catalog)"), f"{result['assigned_collision_rate']:.2%}"))
    if result.get("generalisation_ratio") is not None:
        unseen = f"{result['unseen_relative_mse']:.4f} ({result['generalisation_ratio']:.2f} ×)"
        extra.append((both("没见过的物品的相对误差", "relative MSE, unseen"), unseen))
    if result.get("embedding_hit_rate_10") is not None:
        kept = result.get("reconstruction_hit_rate_10")
        rates = f"{result['embedding_hit_rate_10']:.2%} / " + ("–" if kept is None else f"{kept:.2%}")
        extra.append((both("嵌入命中率@10（特征 / 重建）", "hit rate@10 (features / reconstructions)"), rates))
    return [
        (both("物品数", "items"), f"{result['num_items']:,}"),
        (both("均方误差", "MSE"), f"{result['mse']:.4g}"),
        (both("相对误差（0 完美，1 等于全猜均值）", "relative MSE (0 perfect, 1 the mean)"), shown),
        (both("冲突率", "collision rate"), f"{result['collision_rate']:.2%}"),
        (both("与别人共用 ID 的物品", "items that share an ID"), f"{result['collided_item_rate']:.2%}"),
        (both("最拥挤的 ID 上的物品数", "items on the most crowded ID"), str(result["max_collision"])),
        *extra,
    ]


def _levels(result: Dict[str, Any], lang: str) -> Table:
    """逐层的码本使用。"""
    table = Table(box=None, pad_edge=False)
    heads = (both("层", "level"), both("码字", "codewords"), both("利用率", "utilization"))
    for head in (*heads, both("困惑度", "perplexity"), both("基尼系数", "Gini")):
        table.add_column(pick(head, lang), justify="right")
    for i, size in enumerate(result["codebook_sizes"]):
        figures = (f"{result['utilization'][i]:.1%}", f"{result['perplexity'][i]:.1f}", f"{result['gini'][i]:.3f}")
        table.add_row(f"L{i + 1}", str(size), *figures)
    return table


def _prefixes(result: Dict[str, Any], lang: str) -> Table:
    """逐个前缀长度：语义与行为，随机水平在括号里。"""
    table = Table(box=None, pad_edge=False)
    heads = [both("前缀", "prefix"), both("邻居占比（随机）", "neighbours (chance)")]
    heads += [both("标签纯度（打乱）", "label purity (shuffled)"), both("共同消费提升", "co-consumption lift")]
    for head in heads:
        table.add_column(pick(head, lang), justify="right")
    for length in range(len(result["codebook_sizes"])):
        near = _beside(result, "neighbour_share", "prefix_chance", length, ".1%")
        pure = _beside(result, "label_purity", "label_purity_chance", length, ".2f")
        lift = (result.get("co_consumption_lift") or {length: None})[length]
        table.add_row(f"1–{length + 1}", near, pure, "–" if lift is None else f"{lift:.2f}")
    return table


def _beside(result: Dict[str, Any], key: str, chance: str, length: int, style: str) -> str:
    """「数字（随机水平）」；没有量的写短横。"""
    if not result.get(key):
        return "–"
    return f"{result[key][length]:{style}} ({result[chance][length]:{style}})"


def _show_verdicts(console: Console, verdicts: List[Dict[str, str]], lang: str) -> None:
    """体检结论；没有问题也要说出来，否则看不出查过没有。"""
    verdicts = [verdict for verdict in verdicts if verdict["severity"] != "ok"]
    if not verdicts:
        ok = both("体检：没有发现问题。", "Health check: nothing to worry about.")
        console.print(f"[green]✓[/green] {pick(ok, lang)}")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for verdict in verdicts:
        mark = "[red]✗[/red]" if verdict["severity"] == "bad" else "[yellow]![/yellow]"
        table.add_row(mark, escape(verdict["en" if lang == "en" else "zh"]))
    console.print(table)


def facts(rows: List[Tuple[str, str]], lang: str) -> Table:
    """两列：名称、值。"""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(pick(name, lang), escape(value))
    return table


def _pair(result: Dict[str, Any], key: str) -> str:
    """训练行与留出行的同一个数字；没有定义的写成短横。"""
    values = (result[key], result[f"holdout_{key}"])
    return " / ".join("–" if value is None else f"{value:.4f}" for value in values)


def _plain(value: Any) -> str:
    """浮点数留四位有效数字。"""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " / ".join(map(_plain, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return str(value)


def new_console() -> Console:
    """每次新建：测试与管道会换掉 sys.stdout。"""
    return Console(file=sys.stdout, highlight=False)
