"""`semid evaluate`：评估一个模型，或任何人的编码；模型与物品表由这里打开，交给 `evaluation/run.py`。"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Dict, List

import typer

from ...errors import InputError
from ..models.train import show_levels
from ..options import BlockRows, Device, IdColumn, Overwrite, Session, Sizes, VectorColumn
from ..outputs import check_apart
from ..page import Page

__all__ = ["run", "show"]

_MARKS = {"bad": ("✗", "red"), "watch": ("!", "yellow"), "unknown": ("?", "cyan")}


def run(
    session: Session,
    first: Annotated[Path, typer.Argument(metavar="[MODEL]")],
    second: Annotated[Path | None, typer.Argument(metavar="FEATURES")] = None,
    codes: Path | None = None,
    codebook_sizes: Sizes = None,
    items: Path | None = None,
    labels: Annotated[str | None, typer.Option(metavar="COLUMN")] = None,
    interactions: Path | None = None,
    pairs_of: Annotated[str, typer.Option(metavar="valid|test")] = "valid",
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
    features = first if second is None else second
    # 放在模型目录里是说好的：训练目录的 evaluation/
    check_apart(output, features, codes, items, interactions, catalog, unseen)
    request = Request(
        features,
        load_model=None if codes is not None else lambda: load_model(first, device),
        codes=codes,
        codebook_sizes=None if codebook_sizes is None else parse_sizes(codebook_sizes),
        items=items,
        labels=labels,
        interactions=interactions,
        pairs_of=pairs_of,
        open_catalog=None if catalog is None else lambda: Catalog.open(catalog),
        unseen=unseen,
        id_column=id_column,
        vector_column=vector_column,
    )
    return run_evaluation(request, block_rows=block_rows, output=output, overwrite=overwrite, progress=session.progress)


def show(result: Dict[str, Any], page: Page) -> None:
    """整体、逐层、逐个前缀长度，最后是体检结论；名字与写法取自各指标的记录。"""
    from ...evaluation.summary import notes, scalar_rows, split_table

    here = 1 if page.lang == "en" else 0
    rows = [(row.name[here], row.value) for row in scalar_rows(result)]
    page.fields([(page.text("word.items"), f"{result['num_items']:,}"), *rows])
    show_levels(result, page)
    prefixes = split_table(result, "prefix")
    if prefixes.heads:
        heads = [page.text("word.prefix"), *(head[here] for head in prefixes.heads)]
        page.table(heads, [(f"1–{length}", *cells) for length, cells in enumerate(prefixes.cells, start=1)])
    for note in notes(result):
        page.show(f"· {note[here]}")
    _show_verdicts(result["verdicts"], page)


def _show_verdicts(verdicts: List[Dict[str, str]], page: Page) -> None:
    """体检结论；没有问题要说，没法判断的也要说，否则像是没有问题。"""
    found = [verdict for verdict in verdicts if verdict["severity"] != "ok"]
    if all(verdict["severity"] == "unknown" for verdict in found):
        page.say("evaluate.healthy_part" if found else "evaluate.healthy", style="green")
    for verdict in found:
        mark, style = _MARKS.get(verdict["severity"], _MARKS["watch"])
        page.pairs([(mark, verdict[page.lang], style)])
