"""物品表命令的结果：只做排版，不做计算。"""

from __future__ import annotations

from typing import Any, Dict

from rich.markup import escape
from rich.table import Table

from .language import both, pick
from .text import facts, new_console, show_written

__all__ = ["show_drift", "show_encoded", "show_import", "show_lookup", "show_migrate", "show_update", "show_written"]


def show_lookup(result: Dict[str, Any], lang: str) -> None:
    """`lookup` 的表格。"""
    table = Table(box=None, pad_edge=False)
    for name in ("item_id", *result["columns"]):
        table.add_column(name, justify="left" if name == "item_id" else "right")
    for row in result["rows"]:
        codes = ["–"] * len(result["columns"]) if row["id"] is None else list(map(str, row["id"]))
        table.add_row(escape(str(row["item_id"])), *codes)
    out = new_console()
    if not result["rows"]:
        out.print(pick(both("没有这样的物品", "no such item"), lang))
        return
    out.print(table)
    if result["num_items"] > len(result["rows"]):
        more = both("共 {n} 个物品，只列出 {k} 个（--limit）", "{k} of {n} items (--limit)")
        out.print(pick(more, lang).format(n=result["num_items"], k=len(result["rows"])))


def show_encoded(result: Dict[str, Any], lang: str) -> None:
    """`encode` 的摘要：一行写在哪里，去重时再加一行它的代价。"""
    show_written(result, lang)
    if result["unique"] == "suffix":
        text = both("同码的物品 {n}，去重位最大 {m}", "{n} items share codes; largest suffix {m}")
        values = {"n": f"{result['num_contenders']:,}", "m": result["max_suffix"]}
    elif result["unique"] == "nearest-free":
        text = both(
            "同码的物品 {n}，挪动 {m}（其中换前缀 {p}，贪心安置 {g}），MSE 增加 {e:.3g}",
            "{n} items share codes; moved {m} (prefix changed {p}, placed greedily {g}); MSE grew by {e:.3g}",
        )
        keys = {"n": "num_contenders", "m": "num_moved", "p": "num_prefix_changed", "g": "num_greedy"}
        values = {key: f"{result[name]:,}" for key, name in keys.items()} | {"e": result["added_mse"]}
    else:
        return
    new_console().print(pick(text, lang).format(**values))


def show_update(result: Dict[str, Any], lang: str) -> None:
    """`update` 的摘要。"""
    rows = [
        (both("第几代", "generation"), str(result["generation"])),
        (both("物品数", "items"), f"{result['num_items']:,}"),
        (both("新加入", "added"), f"{result['num_added']:,}"),
        (both("已有、ID 不变", "kept their IDs"), f"{result['num_kept']:,}"),
        (both("其中现在编码会不同", "of these, would encode differently now"), _share(result["drifted_rate"])),
        (both("拿回原来的 ID", "got their old IDs back"), f"{result['num_readded']:,}"),
        (both("退役", "retired"), f"{result['num_retired']:,}"),
        (both("退役而保留着的 ID", "IDs held back"), f"{result['num_reserved']:,}"),
    ]
    new_console().print(facts(rows, lang))


def show_migrate(result: Dict[str, Any], lang: str) -> None:
    """`migrate` 的摘要。"""
    rows = [
        (both("两边都有的物品", "items in both"), f"{result['num_common']:,}"),
        (both("ID 变了的", "changed IDs"), f"{result['num_changed']:,} ({_share(result['changed_rate'])})"),
        (both("不对齐的话", "without alignment"), _share(result["unaligned_changed_rate"])),
        (both("新加入 / 没有了", "added / dropped"), f"{result['num_added']:,} / {result['num_dropped']:,}"),
        (both("新模型的指纹", "fingerprint of the new model"), result["fingerprint"][:16]),
    ]
    new_console().print(facts(rows, lang))
    place = both("模型、物品表与对照表写在", "Model, catalog and moves.parquet written to")
    new_console().print(pick(place, lang), escape(result["output"]))


def show_drift(result: Dict[str, Any], lang: str) -> None:
    """`drift` 的表格与一行结论。"""
    out, table = new_console(), Table(box=None, pad_edge=False)
    heads = (both("层", "level"), both("误差", "MSE"), both("编码时", "at encoding"), both("之比", "ratio"))
    for head in (*heads, "PSI", both("PSI 的噪声", "PSI noise")):
        table.add_column(pick(head, lang), justify="right")
    for i, mse in enumerate(result["level_mse"]):
        values = (
            mse,
            result["reference_level_mse"][i],
            result["error_ratio"][i],
            result["psi"][i],
            result["psi_noise"][i],
        )
        table.add_row(f"L{i + 1}", *("–" if value is None else f"{value:.4g}" for value in values))
    out.print(table)
    words = {
        "ok": both("没有变", "nothing moved"),
        "watch": both("有些变化，留意", "some movement, keep an eye on it"),
        "drifted": both("变了，该重新训练", "it moved: train again"),
    }
    reasons = f" ({'; '.join(result['reasons'])})" if result["reasons"] else ""
    out.print(f"{result['verdict']}: {pick(words[result['verdict']], lang)}{escape(reasons)}", soft_wrap=True)


def show_import(result: Dict[str, Any], lang: str) -> None:
    """`import` 的一行摘要。"""
    if result["kind"] == "catalog":
        show_written(result, lang)
        return
    sizes = "/".join(map(str, result["codebook_sizes"]))
    new_console().print(
        pick(both("模型（{s}）写在", "Model ({s}) written to"), lang).format(s=sizes), escape(result["output"])
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
