"""`semid lookup`：查物品表：物品的 ID、ID 的物品、前缀下的物品；只读。"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Dict, List, Tuple

import typer

from ...errors import InputError
from ..options import CatalogFolder, Session
from ..page import Page

if TYPE_CHECKING:
    from ...catalog import Catalog

__all__ = ["run", "show"]


def run(
    session: Session,
    catalog: CatalogFolder,
    item: List[str] | None = None,
    prefix: Annotated[str | None, typer.Option(metavar="C1,C2,…")] = None,
    sid: Annotated[str | None, typer.Option(metavar="C1,C2,C3")] = None,
    limit: int = 20,
) -> Dict[str, Any]:
    """三种问法恰好用一种；编号按表里的类型解释。

    Returns:
        columns（ID 各位的名字）、rows（item_id 与 ID；没有的 ID 是 None）、num_items（前缀下共有多少）。

    Raises:
        InputError: 三样没有恰好给一样，或写法不对。
    """
    from ...catalog import Catalog

    if sum((bool(item), prefix is not None, sid is not None)) != 1:
        raise InputError("give exactly one of --item, --prefix and --sid")
    if limit < 0:
        raise InputError(f"--limit {limit} is out of range; use an int >= 0")
    opened = Catalog.open(catalog)
    if item:
        found = opened.find([_as_id(opened, text) for text in item])
        ids = [row if row[0] >= 0 else None for row in found.tolist()]
        rows = [{"item_id": text, "id": row} for text, row in zip(item, ids, strict=True)]
        return {"columns": opened.id_columns, "rows": rows, "num_items": sum(row is not None for row in ids)}
    codes = _codes(prefix, "--prefix") if sid is None else _codes(sid, "--sid")
    if sid is not None and len(codes) != len(opened.id_columns):
        raise InputError(f"--sid {sid!r} has {len(codes)} codes; an ID here is {','.join(opened.id_columns)}")
    table = opened.with_prefix(codes, limit)
    columns = [table.column(name).to_pylist() for name in ("item_id", *opened.id_columns)]
    rows = [{"item_id": _shown(name), "id": list(row)} for name, *row in zip(*columns, strict=True)]
    return {"columns": opened.id_columns, "rows": rows, "num_items": opened.count(codes)}


def show(result: Dict[str, Any], page: Page) -> None:
    """一张表；没列完要说出来。"""
    if not result["rows"]:
        page.say("lookup.nothing")
        return
    missing = ["–"] * len(result["columns"])
    rows = [(str(row["item_id"]), *(missing if row["id"] is None else map(str, row["id"]))) for row in result["rows"]]
    page.table(["item_id", *result["columns"]], rows, left=1)
    if result["num_items"] > len(rows):
        page.say("lookup.more", n=result["num_items"], k=len(rows))


def _as_id(catalog: Catalog, text: str) -> Any:
    """命令行上的编号 → 表里的类型。"""
    kind = str(catalog.id_type)
    if "int" not in kind:
        return text.encode() if "binary" in kind else text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--item {text!r} is no integer, but item ids of this catalog are {kind}") from None


def _shown(item: Any) -> Any:
    return item.decode(errors="replace") if isinstance(item, bytes) else item


def _codes(text: str | None, name: str) -> Tuple[int, ...]:
    """`12,7` → (12, 7)；空串是空前缀。"""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{name} {text!r} must be ints separated by commas, e.g. 12,7") from None
