"""评估目录：`semid evaluate --output` 写，`semid report` 读；两边都只经过这里，格式就只有一处定义。

形状字母：R 为目录里的物品行数（至多十万），L 为层数，K_l 为码本大小。

    evaluation.json    最后才写，没有它就是没写完；里面记着另外两个文件的字节数与 SHA-256，所以新旧混在一起也认得出
    items.parquet      (R 行) item_id, title, label, l1…lL[, suffix], error, map_x, map_y
    codewords.parquet  (ΣK_l 行) level, code, count, label, map_x, map_y

谁可以写：只有 `write_evaluation_folder`。读者不执行代码：JSON 与带页校验和的 Parquet，没有 pickle。
格式的说明见 `docs/artefact.md`。
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError, InputTypeError
from ..files.durable import sync_folder, write_atomically, write_synced

__all__ = [
    "EVALUATION_NAME",
    "MAX_ITEM_ROWS",
    "SCHEMA_VERSION",
    "check_evaluation_folder",
    "codeword_schema",
    "find_evaluation",
    "item_schema",
    "read_evaluation_folder",
    "write_evaluation_folder",
]

EVALUATION_NAME = "evaluation.json"
ITEMS_NAME = "items.parquet"
CODEWORDS_NAME = "codewords.parquet"
# 训练目录里放评估的子目录：`semid report my-model` 会自己找到它
SUBFOLDER = "evaluation"
SCHEMA_VERSION = 1
# 报告要在浏览器里三秒打开，十万行是上限；再多就抽样，最差的与冲突的一定留下
MAX_ITEM_ROWS = 100_000

_NAMES = {EVALUATION_NAME, ITEMS_NAME, CODEWORDS_NAME}
_KEYS: Dict[str, Any] = {
    "name": str, "created": str, "semid_version": str, "fingerprint": (str, type(None)), "features": str,
    "num_items": int, "codebook_sizes": list, "sampled": dict, "metrics": dict, "verdicts": list, "legend": list,
    "items_in_folder": (dict, str, int),
}  # fmt: skip


def item_schema(num_levels: int, suffix: bool) -> pa.Schema:
    """items.parquet 的列与类型。

    Args:
        num_levels: 层数 L。
        suffix: 有没有去重位。

    Returns:
        item_id 不为空；title、label、error 可以为空；error 是 ‖x − x̂‖² 除以每件物品的平均偏差平方（与 relative_mse
        同一单位，全体的平均就是它）；map_x、map_y 是特征的前两个主成分。
    """
    levels = [(f"l{level}", pa.int32()) for level in range(1, num_levels + 1)]
    tail = [("suffix", pa.int32())] if suffix else []
    return pa.schema(
        [("item_id", pa.string()), ("title", pa.string()), ("label", pa.string()), *levels, *tail,
         ("error", pa.float32()), ("map_x", pa.float32()), ("map_y", pa.float32())]
    )  # fmt: skip


def codeword_schema() -> pa.Schema:
    """codewords.parquet 的列与类型：level 从 1 起；count 在全部物品上数；map_x、map_y 只有第一层有，别处为空。"""
    return pa.schema(
        [("level", pa.int32()), ("code", pa.int32()), ("count", pa.int64()), ("label", pa.string()),
         ("map_x", pa.float32()), ("map_y", pa.float32())]
    )  # fmt: skip


def check_evaluation_folder(folder: str | os.PathLike[str], overwrite: bool) -> None:
    """输出目录的门，在花几分钟评估之前先问：须不存在、为空，或是允许替换的评估目录；绝不动别人的文件。

    Raises:
        FileExistsError: 已有评估而没有 overwrite，或里面有别的东西。
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"output {str(path)!r} exists and is a file; choose another folder")
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    names = {name for name in names if not name.endswith(".tmp")}
    strangers = sorted(names - _NAMES)
    if strangers:
        raise FileExistsError(
            f"output folder {str(path)!r} holds {strangers[0]!r}, which is no evaluation; choose another folder"
        )
    if EVALUATION_NAME in names and not overwrite:
        raise FileExistsError(f"evaluation {str(path)!r} exists; pass --overwrite or choose another folder")


def find_evaluation(run: str | os.PathLike[str]) -> Path | None:
    """一个 RUN 的评估在哪里：它自己，或训练目录的 evaluation/ 子目录；都没有写完的就是 None。"""
    for folder in (Path(run), Path(run) / SUBFOLDER):
        if (folder / EVALUATION_NAME).is_file():
            return folder
    return None


def write_evaluation_folder(
    folder: str | os.PathLike[str], evaluation: Mapping[str, Any], items: pa.Table, codewords: pa.Table
) -> None:
    """写一个评估目录；清单最后才换上，任何时刻被杀都不会留下看似完整的半份。

    Args:
        folder: 目录；不存在就建。已有的同名文件会被替换，别的文件不动（要不要替换，先问 `check_evaluation_folder`）。
        evaluation: evaluation.json 的内容；schema_version 与 files 由这里填。
        items: 列见 `item_schema`，至多 `MAX_ITEM_ROWS` 行。
        codewords: 列见 `codeword_schema`，恰好 ΣK_l 行，按 (level, code) 排好。

    Raises:
        TypeError: 某个键或某一列的类型不对。
        ValueError: 缺键、缺列、行数不对，或含 NaN。
    """
    _check_evaluation(evaluation)
    sizes = evaluation["codebook_sizes"]
    _check_items(items, len(sizes))
    _check_columns(codewords, codeword_schema(), CODEWORDS_NAME)
    if codewords.num_rows != sum(sizes):
        raise InputError(f"codewords has {codewords.num_rows} rows, but codebook_sizes={sizes} needs {sum(sizes)}")
    blobs = {ITEMS_NAME: _encoded(items), CODEWORDS_NAME: _encoded(codewords)}
    files = [
        {"name": name, "rows": table.num_rows, "bytes": len(blobs[name]), "sha256": _sha256(blobs[name])}
        for name, table in ((ITEMS_NAME, items), (CODEWORDS_NAME, codewords))
    ]
    whole = {"schema_version": SCHEMA_VERSION, **evaluation, "files": files}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1)  # NaN 在动手写之前就报错
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, blob in blobs.items():
        write_synced(path / (name + ".tmp"), blob)
    # 先撤清单再换数据：从这里到最后一行之间，目录是「没写完」，而不是新旧混杂
    (path / EVALUATION_NAME).unlink(missing_ok=True)
    sync_folder(path)
    for name in blobs:
        os.replace(path / (name + ".tmp"), path / name)
    write_atomically(path / EVALUATION_NAME, (text + "\n").encode())


def read_evaluation_folder(folder: str | os.PathLike[str]) -> Tuple[Dict[str, Any], pa.Table, pa.Table]:
    """读一个写完的评估目录，核对 SHA-256、列、类型与行数。

    Args:
        folder: `write_evaluation_folder` 写的目录。

    Returns:
        (evaluation, items, codewords)。

    Raises:
        FileNotFoundError: 目录不存在，或没有写完。
        ValueError: 版本不认识、清单残缺，或文件与清单不符。
    """
    path = Path(folder)
    try:
        evaluation = json.loads((path / EVALUATION_NAME).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{str(path)!r} has no {EVALUATION_NAME}, so it is no finished evaluation; run `semid evaluate … --output`"
        ) from None
    except ValueError as error:
        raise InputError(f"{path / EVALUATION_NAME} is not valid JSON: {error}; evaluate again") from None
    version = evaluation.get("schema_version") if isinstance(evaluation, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{EVALUATION_NAME} in {str(path)!r} has schema_version={version!r}; this semid reads {SCHEMA_VERSION}"
        )
    _check_evaluation(evaluation)
    items = _read_table(path, evaluation, ITEMS_NAME)
    _check_items(items, len(evaluation["codebook_sizes"]))
    codewords = _read_table(path, evaluation, CODEWORDS_NAME)
    _check_columns(codewords, codeword_schema(), CODEWORDS_NAME)
    return evaluation, items, codewords


def _check_evaluation(evaluation: Mapping[str, Any]) -> None:
    """键要齐、类型要对；多出来的键不管，将来加键不必换版本号。"""
    for key, kind in _KEYS.items():
        if key not in evaluation:
            raise InputError(f"evaluation has no key {key!r}; needed: {', '.join(_KEYS)}")
        if not isinstance(evaluation[key], kind):
            raise InputTypeError(f"evaluation[{key!r}] has type {type(evaluation[key]).__name__}")
    sizes = evaluation["codebook_sizes"]
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise InputError(f"evaluation['codebook_sizes'] must be ints >= 1, got {sizes!r}")


def _check_items(items: pa.Table, num_levels: int) -> None:
    """列、类型、行数上限、编号不为空。"""
    _check_columns(items, item_schema(num_levels, "suffix" in items.column_names), ITEMS_NAME)
    if items.num_rows > MAX_ITEM_ROWS:
        raise InputError(f"items has {items.num_rows} rows; at most {MAX_ITEM_ROWS}: take a sample")
    if items.column("item_id").null_count:
        raise InputError("items has a null item_id; every item needs one")


def _check_columns(table: pa.Table, schema: pa.Schema, name: str) -> None:
    """列名、次序与类型须与约定一致。"""
    if not isinstance(table, pa.Table):
        raise InputTypeError(f"{name}: expected a pyarrow.Table, got {type(table).__name__}")
    if table.column_names != schema.names:
        raise InputError(f"{name} has columns {table.column_names}, expected {schema.names}")
    for field in schema:
        found = table.schema.field(field.name).type
        if found != field.type:
            raise InputTypeError(f"{name} column {field.name!r} has type {found}, expected {field.type}")


def _encoded(table: pa.Table) -> bytes:
    """Parquet 字节：十万行不过几 MB，先在内存里成形，摘要与落盘的就是同一份。"""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _read_table(path: Path, evaluation: Mapping[str, Any], name: str) -> pa.Table:
    """读清单里的一个文件；被截断、改动或与清单不是同一次写的，都在这里认出来。"""
    files: List[Dict[str, Any]] = evaluation.get("files") or []
    entry = next((entry for entry in files if entry.get("name") == name), None)
    if entry is None:
        raise InputError(f"{path / EVALUATION_NAME} does not list {name}; evaluate again")
    try:
        data = (path / name).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path / name} is missing; evaluate again") from None
    if _sha256(data) != entry.get("sha256"):
        raise InputError(f"{path / name} does not match its SHA-256 in {EVALUATION_NAME}; evaluate again")
    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path / name} is not readable: {' '.join(str(error).split())}; evaluate again") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
