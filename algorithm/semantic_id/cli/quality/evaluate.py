"""`semid evaluate`：评估一个模型，或任何人的编码；模型与物品表由这里打开，交给 `evaluation/run.py`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict, List, Tuple

import typer

from ...errors import InputError
from ..models.train import show_levels
from ..options import BlockRows, Device, IdColumn, Overwrite, Session, Sizes, VectorColumn
from ..page import Page

__all__ = ["run", "show"]


def run(
    session: Session,
    first: Annotated[Path, typer.Argument(metavar="[MODEL]")],
    second: Annotated[Path | None, typer.Argument(metavar="FEATURES")] = None,
    codes: Path | None = None,
    codebook_sizes: Sizes = None,
    items: Path | None = None,
    labels: Annotated[str | None, typer.Option(metavar="COLUMN")] = None,
    interactions: Path | None = None,
    catalog: Path | None = None,
    unseen: Path | None = None,
    output: Path | None = None,
    overwrite: Overwrite = False,
    block_rows: BlockRows = 8192,
    device: Device = "auto",
    id_column: IdColumn = "item_id",
    vector_column: VectorColumn = "embedding",
) -> Dict[str, Any]:
    """评估；全部指标见 `evaluation/run.py`。

    Raises:
        InputError: MODEL 与 --codes 没有恰好给一个。
    """
    from ...catalog import Catalog
    from ...evaluation.opening import Request
    from ...evaluation.run import run_evaluation
    from ..loading import load_model, parse_sizes

    if codes is None and second is None:
        raise InputError("evaluate needs MODEL and FEATURES, or --codes FILE and FEATURES")
    if codes is not None and second is not None:
        raise InputError("evaluate takes FEATURES only when --codes is given; leave MODEL out")
    request = Request(
        first if second is None else second,
        load_model=None if codes is not None else lambda: load_model(first, device),
        codes=codes,
        codebook_sizes=None if codebook_sizes is None else parse_sizes(codebook_sizes),
        items=items,
        labels=labels,
        interactions=interactions,
        open_catalog=None if catalog is None else lambda: Catalog.open(catalog),
        unseen=unseen,
        id_column=id_column,
        vector_column=vector_column,
    )
    return run_evaluation(request, block_rows=block_rows, output=output, overwrite=overwrite, progress=session.progress)


def show(result: Dict[str, Any], page: Page) -> None:
    """整体、逐层、逐个前缀长度，最后是体检结论。"""
    page.facts(_quality(result, page))
    show_levels(result, page)
    if result.get("neighbour_share") or result.get("label_purity") or result.get("co_consumption_lift"):
        heads = ("word.prefix", "evaluate.neighbours", "evaluate.purity", "evaluate.lift")
        rows = [_prefix_row(result, length) for length in range(len(result["codebook_sizes"]))]
        page.table([page.text(head) for head in heads], rows)
    _show_verdicts(result["verdicts"], page)


def _quality(result: Dict[str, Any], page: Page) -> List[Tuple[str, str]]:
    """整体质量的几行。"""
    relative = result["relative_mse"]
    error = f"{relative:.4f}" if relative is not None else f"– ({result['relative_mse_reason']})"
    if result.get("reconstruction") == "additive_means":
        error = page.text("evaluate.no_decoder", error=error)
    rows = [
        ("word.items", f"{result['num_items']:,}"),
        ("evaluate.mse", f"{result['mse']:.4g}"),
        ("evaluate.relative_mse", error),
        ("evaluate.collision_rate", f"{result['collision_rate']:.2%}"),
        ("evaluate.collided", f"{result['collided_item_rate']:.2%}"),
        ("evaluate.crowded", str(result["max_collision"])),
    ]
    if "assigned_collision_rate" in result:
        rows.append(("evaluate.assigned", f"{result['assigned_collision_rate']:.2%}"))
    if result.get("generalisation_ratio") is not None:
        unseen = f"{result['unseen_relative_mse']:.4f} ({result['generalisation_ratio']:.2f} ×)"
        rows.append(("evaluate.generalisation", unseen))
    if result.get("embedding_hit_rate_10") is not None:
        kept = result.get("reconstruction_hit_rate_10")
        rates = f"{result['embedding_hit_rate_10']:.2%} / " + ("–" if kept is None else f"{kept:.2%}")
        rows.append(("evaluate.hit_rate", rates))
    return rows


def _prefix_row(result: Dict[str, Any], length: int) -> Tuple[str, ...]:
    """一个前缀长度的语义与行为，随机水平在括号里。"""
    lift = (result.get("co_consumption_lift") or {length: None})[length]
    return (
        f"1–{length + 1}",
        _beside(result, "neighbour_share", "prefix_chance", length, ".1%"),
        _beside(result, "label_purity", "label_purity_chance", length, ".2f"),
        "–" if lift is None else f"{lift:.2f}",
    )


def _beside(result: Dict[str, Any], key: str, chance: str, length: int, style: str) -> str:
    """「数字（随机水平）」；没有量的写短横。"""
    if not result.get(key):
        return "–"
    return f"{result[key][length]:{style}} ({result[chance][length]:{style}})"


def _show_verdicts(verdicts: List[Dict[str, str]], page: Page) -> None:
    """体检结论；没有问题也要说出来，否则看不出查过没有。"""
    bad = [verdict for verdict in verdicts if verdict["severity"] != "ok"]
    if not bad:
        page.say("evaluate.healthy", style="green")
    marks = {"bad": ("✗", "red"), "watch": ("!", "yellow")}
    for verdict in bad:
        mark, style = marks[verdict["severity"]]
        page.pairs([(mark, verdict[page.lang], style)])
