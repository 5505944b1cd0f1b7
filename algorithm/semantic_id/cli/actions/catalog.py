"""物品表的命令背后的动作：查找、更新、迁移、漂移、导入导出；参数进，可写成 JSON 的字典出，不打印。

与 `actions.py` 一样同时认识模型与物品表；被 `catalog_commands.py` 在命令执行时才导入。
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch

from ...catalog import Catalog, encode_catalog
from ...catalog.changes.drift import measure_drift
from ...catalog.changes.migrate import align_codes, encode_known, write_moves
from ...catalog.changes.update import read_ids, update_catalog
from ...catalog.exchange.index_json import export_index_json, import_index_json
from ...files.durable import sync_folder
from ...files.progress import Progress
from ...files.vectors import open_vectors
from ..loading import load_model, parse_sizes

__all__ = ["drift", "export", "import_", "lookup", "migrate", "update"]

_MIGRATED = ("model", "catalog", "moves.parquet")


def lookup(catalog: Path, *, items: List[str], prefix: str | None, sid: str | None, limit: int) -> Dict[str, Any]:
    """查物品表。

    Args:
        catalog: 物品表目录。
        items: 物品编号，按表里的类型解释。
        prefix: 逗号分隔的前几位。
        sid: 逗号分隔的完整 ID。
        limit: 前缀下至多列几个。

    Returns:
        columns（ID 各位的名字）、rows（item_id 与 ID；没有的 ID 是 None）、num_items（前缀下共有多少）。

    Raises:
        ValueError: 三样没有恰好给一样，或写法不对。
    """
    if sum((bool(items), prefix is not None, sid is not None)) != 1:
        raise ValueError("give exactly one of --item, --prefix and --sid")
    if limit < 0:
        raise ValueError(f"--limit {limit} is out of range; use an int >= 0")
    opened = Catalog.open(catalog)
    if items:
        wanted: List[Any] = [_as_id(opened, item) for item in items]
        found = opened.find(wanted)
        ids = [row if row[0] >= 0 else None for row in found.tolist()]
        rows = [{"item_id": item, "id": row} for item, row in zip(items, ids, strict=True)]
        return {"columns": opened.id_columns, "rows": rows, "num_items": sum(row is not None for row in ids)}
    if sid is not None:
        code = _codes(sid, "--sid")
        if len(code) != len(opened.id_columns):
            raise ValueError(f"--sid {sid!r} has {len(code)} codes; an ID here is {','.join(opened.id_columns)}")
        prefix = sid
    codes = _codes(prefix or "", "--prefix")
    table = opened.with_prefix(codes, limit)
    columns = [table.column(name).to_pylist() for name in opened.id_columns]
    ids = [list(row) for row in zip(*columns, strict=True)]
    names = [_shown(item) for item in table.column("item_id").to_pylist()]
    rows = [{"item_id": item, "id": row} for item, row in zip(names, ids, strict=True)]
    return {"columns": opened.id_columns, "rows": rows, "num_items": opened.count(codes)}


def update(
    catalog: Path,
    features: Path | None,
    model: Path,
    *,
    retire: Path | None,
    reuse_after: int | None,
    block_rows: int,
    device: str,
    id_column: str,
    vector_column: str,
    progress: bool,
) -> Dict[str, Any]:
    """写物品表新的一代。"""
    encoder = load_model(model, device)
    source = None if features is None else open_vectors(features, id_column=id_column, vector_column=vector_column)
    leaving = None if retire is None else read_ids(retire, id_column)
    rows = source.num_rows if source is not None else 1
    with Progress(progress) as bar, bar.task("update", rows) as report:
        return update_catalog(
            encoder,
            catalog,
            source,
            retire=leaving,
            reuse_after=reuse_after,
            block_rows=block_rows,
            progress=report,
        )


def migrate(
    catalog: Path,
    features: Path,
    model: Path,
    output: Path,
    *,
    block_rows: int,
    device: str,
    id_column: str,
    vector_column: str,
    progress: bool,
) -> Dict[str, Any]:
    """把物品表搬到重新训练的模型上：对齐码字的编号，写出对齐后的模型、新物品表与对照表。

    Returns:
        摘要：output, num_common, num_changed, changed_rate, unaligned_changed_rate（不对齐的话会变多少，只看各层编
        码），num_added, num_dropped, fingerprint。

    Raises:
        ValueError: 码本大小与物品表不同；维度不符。
        FileExistsError: 输出已存在。
    """
    before = Catalog.open(catalog)
    encoder = load_model(model, device)
    if tuple(encoder.codebook_sizes) != before.codebook_sizes:
        raise ValueError(
            f"the model has codebook_sizes={encoder.codebook_sizes}, but the catalog has {before.codebook_sizes}; "
            "train with the same sizes, or encode a new catalog"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {str(output)!r} exists; choose another folder")
    source = open_vectors(
        features, expected_dim=encoder.embedding_dim, id_column=id_column, vector_column=vector_column
    )
    folder = _fresh_partial(output)
    try:
        with Progress(progress) as bar, bar.task("migrate", source.num_rows) as report:
            old, new = encode_known(encoder, before, source, block_rows)
            labels = align_codes(old, new, encoder.codebook_sizes)
            encoder.relabel_([torch.from_numpy(label).to(encoder.feature_mean.device) for label in labels])
            encoder.save_pretrained(folder / "model")
            price = before.manifest["history"][0].get("prefix_price", "1.0")
            encode_catalog(
                encoder,
                source,
                folder / "catalog",
                unique=before.unique,
                prefix_price=float(price),
                block_rows=block_rows,
                progress=report,
            )
        moves = write_moves(before, Catalog.open(folder / "catalog"), folder / _MIGRATED[2])
        os.replace(folder, output)
    except BaseException:  # 迁移不能续跑，半成品没有用
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_folder(output.resolve().parent)
    unaligned = float((old != new).any(axis=1).mean()) if len(old) else None
    return {
        "output": os.fspath(output),
        **moves,
        "unaligned_changed_rate": unaligned,
        "fingerprint": encoder.fingerprint(),
    }


def drift(
    catalog: Path,
    features: Path,
    model: Path,
    *,
    block_rows: int,
    device: str,
    id_column: str,
    vector_column: str,
    progress: bool,
) -> Dict[str, Any]:
    """量新特征离建物品表时有多远。"""
    encoder = load_model(model, device)
    source = open_vectors(features, id_column=id_column, vector_column=vector_column)
    with Progress(progress) as bar, bar.task("drift", source.num_rows) as report:
        return measure_drift(
            encoder,
            Catalog.open(catalog),
            source,
            block_rows=block_rows,
            progress=report,
        )


def import_(source: Path, output: Path, *, codebook_sizes: str | None) -> Dict[str, Any]:
    """`.json` 导入成物品表；别的当作 faiss 残差量化器，导入成模型。"""
    if source.suffix == ".json":
        sizes = None if codebook_sizes is None else parse_sizes(codebook_sizes)
        return {"kind": "catalog", **import_index_json(source, output, codebook_sizes=sizes)}
    if codebook_sizes is not None:
        raise ValueError("--codebook-sizes is only for .index.json; a faiss index knows its sizes")
    from ...catalog.exchange.faiss_model import read_faiss

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {str(output)!r} exists; choose another folder")
    model = read_faiss(source)
    model.save_pretrained(output)
    return {
        "kind": "model",
        "output": os.fspath(output),
        "codebook_sizes": list(model.codebook_sizes),
        "embedding_dim": model.embedding_dim,
        "fingerprint": model.fingerprint(),
    }


def export(catalog: Path, index_json: Path, *, overwrite: bool) -> Dict[str, Any]:
    """写 LC-Rec 的 `.index.json`。"""
    return export_index_json(Catalog.open(catalog), index_json, overwrite=overwrite)


def _fresh_partial(output: Path) -> Path:
    """旁边的 `OUTPUT.partial`；上次被打断留下的清掉，别人的不动。"""
    folder = output.with_name(output.name + ".partial")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {*_MIGRATED, "catalog.partial", f"{_MIGRATED[2]}.tmp", f"{_MIGRATED[2]}.writing"}
    if names - ours or (folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"{str(folder)!r} is not ours; move it away")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _as_id(catalog: Catalog, text: str) -> Any:
    """命令行上的编号 → 表里的类型。"""
    kind = str(catalog.id_type)
    if "int" not in kind:
        return text.encode() if "binary" in kind else text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--item {text!r} is no integer, but item ids of this catalog are {kind}") from None


def _shown(item: Any) -> Any:
    return item.decode(errors="replace") if isinstance(item, bytes) else item


def _codes(text: str, name: str) -> Tuple[int, ...]:
    """`12,7` → (12, 7)；空串是空前缀。"""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{name} {text!r} must be ints separated by commas, e.g. 12,7") from None
