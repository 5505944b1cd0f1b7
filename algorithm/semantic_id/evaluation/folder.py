"""评估目录：`semid evaluate --output` 写，`semid report` 读；两边都只经过这里，格式就只有一处定义。

形状字母：R 为目录里的物品行数（至多十万），L 为层数，K_l 为码本大小。

    evaluation.json    最后才写，没有它就是没写完；带自身校验和，又记着另外两个文件的字节数与 SHA-256，所以翻转的比特、
                       新旧混在一起都认得出
    items.parquet      (R 行) item_id, title, label, l1…lL[, suffix], error, map_x, map_y
    codewords.parquet  (ΣK_l 行) level, code, count, label, map_x, map_y

谁可以写：只有 `EvaluationTarget`，而且只换它验收过的文件。读者不执行代码：JSON 与带页校验和的 Parquet，没有 pickle。
格式的说明见 `docs/artefact.md`。
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError, InputTypeError
from ..files.durable import is_temporary, one_writer, replacing, stamp_of, sync_folder
from ..files.parquet_bytes import describe_bytes, table_from_bytes, table_to_bytes
from ..files.sealed import SEAL, seal, unseal
from ..metrics.records import by_key

__all__ = [
    "EVALUATION_NAME",
    "MAX_ITEM_ROWS",
    "SCHEMA_VERSION",
    "EvaluationTarget",
    "codeword_schema",
    "find_evaluation",
    "item_schema",
    "read_evaluation_folder",
]

EVALUATION_NAME = "evaluation.json"
ITEMS_NAME = "items.parquet"
CODEWORDS_NAME = "codewords.parquet"
# 训练目录里放评估的子目录：`semid report my-model` 会自己找到它
SUBFOLDER = "evaluation"
SCHEMA_VERSION = 2
_UNSEALED = 1  # 第一版的清单没有自身校验和：照常读，但说明没法核对
# 报告要在浏览器里三秒打开，十万行是上限；再多就抽样，最差的与冲突的一定留下
MAX_ITEM_ROWS = 100_000

_NAMES = {EVALUATION_NAME, ITEMS_NAME, CODEWORDS_NAME}
_NUMBERS = (int, float, type(None))
_SCALARS = (*_NUMBERS, str)
_ENTRIES = {
    "verdicts": ("code", "severity", "zh", "en", "metric"),
    "legend": ("key", "zh", "en", "definition_zh", "definition_en", "unit", "range", "population", "source"),
}
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


class EvaluationTarget:
    """输出目录的门，在花几分钟评估之前先问：须不存在、为空，或是允许替换的评估目录；写的时候只换验收过的文件。

    Args:
        folder: 输出目录。
        overwrite: 允许替换已有的评估。

    Raises:
        FileExistsError: 已有评估而没有 overwrite，或里面有别的东西（同名而不是本包写的也算）。
    """

    def __init__(self, folder: str | os.PathLike[str], overwrite: bool) -> None:
        self.path = Path(folder)
        self._before = _own_files(self.path)
        if self._before.get(EVALUATION_NAME) and not overwrite:
            raise FileExistsError(f"evaluation {str(self.path)!r} exists; pass --overwrite or choose another folder")

    def write(self, evaluation: Mapping[str, Any], items: pa.Table, codewords: pa.Table) -> None:
        """写一个评估目录；清单最后才换上，任何时刻被杀都不会留下看似完整的半份。

        Args:
            evaluation: evaluation.json 的内容；schema_version 与 files 由这里填。
            items: 列见 `item_schema`，至多 `MAX_ITEM_ROWS` 行。
            codewords: 列见 `codeword_schema`，恰好 ΣK_l 行，按 (level, code) 排好。

        Raises:
            FileExistsError: 验收之后这里出现了、或变成了别的东西；都留着不动。
            InputTypeError: 某个键或某一列的类型不对。
            InputError: 缺键、缺列、行数不对，或含 NaN。
        """
        _check_evaluation(evaluation)
        _check_items(items, evaluation["codebook_sizes"])
        _check_codewords(codewords, evaluation["codebook_sizes"])
        tables = {ITEMS_NAME: items, CODEWORDS_NAME: codewords}
        blobs = {name: table_to_bytes(table) for name, table in tables.items()}
        files = [describe_bytes(name, tables[name].num_rows, blob) for name, blob in blobs.items()]
        manifest = seal({"schema_version": SCHEMA_VERSION, **evaluation, "files": files})  # NaN 在动手写之前就报错
        with one_writer(self.path):
            self._publish(blobs, manifest)

    def _publish(self, blobs: Mapping[str, pa.Buffer], manifest: bytes) -> None:
        """两张表先写在旁边，撤清单，换上两张表，最后换上清单。"""
        if _own_files(self.path) != self._before:
            raise FileExistsError(
                f"output folder {str(self.path)!r} was changed while this command ran; it is left as it is: choose "
                "another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as written:
            for name, blob in blobs.items():
                before = self._before.get(name)
                written.enter_context(replacing(self.path / name, before, new=before is None)).write(blob)
            # 先撤清单再换数据：从这里到最后一行之间，目录是「没写完」，而不是新旧混杂
            (self.path / EVALUATION_NAME).unlink(missing_ok=True)
            sync_folder(self.path)
        with replacing(self.path / EVALUATION_NAME, new=True) as file:
            file.write(manifest)
        for name in _NAMES:  # 从前的版本被杀时留下的
            (self.path / f"{name}.tmp").unlink(missing_ok=True)


def _own_files(path: Path) -> Dict[str, Tuple[int, ...]]:
    """目录里本包写的文件 → 认出它的记号；不存在的目录为空。

    Raises:
        FileExistsError: 不是目录，或里面有别的东西。
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"output {str(path)!r} exists and is a file; choose another folder")
    found: Dict[str, Tuple[int, ...]] = {}
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        if is_temporary(entry.name) or entry.name in {f"{name}.tmp" for name in _NAMES}:
            continue
        if entry.name not in _NAMES or not _is_own(entry):
            raise FileExistsError(
                f"output folder {str(path)!r} holds {entry.name!r}, which no evaluation of ours wrote; choose another"
            )
        found[entry.name] = stamp_of(entry)
    return found


def _is_own(path: Path) -> bool:
    """同名的文件是不是本包写的：用户自己的 items.parquet 绝不能被换掉。"""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name == EVALUATION_NAME:
        return b'"semid_version"' in path.read_bytes()
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    if path.name == CODEWORDS_NAME:
        return bool(names == codeword_schema().names)
    levels = [name for name in names if re.fullmatch(r"l\d+", name)]
    return any(names == item_schema(len(levels), suffix).names for suffix in (False, True))


def find_evaluation(run: str | os.PathLike[str]) -> Path | None:
    """一个 RUN 的评估在哪里：它自己，或训练目录的 evaluation/ 子目录；都没有写完的就是 None。"""
    for folder in (Path(run), Path(run) / SUBFOLDER):
        if (folder / EVALUATION_NAME).is_file():
            return folder
    return None


def read_evaluation_folder(folder: str | os.PathLike[str]) -> Tuple[Dict[str, Any], pa.Table, pa.Table]:
    """读一个写完的评估目录，核对 SHA-256、列、类型与行数。

    Args:
        folder: 评估目录。

    Returns:
        (evaluation, items, codewords)；evaluation 里的 `sealed` 说清单有没有自身校验和（第一版没有）。

    Raises:
        FileNotFoundError: 目录不存在，或没有写完。
        InputError: 版本不认识、清单残缺，或文件被改动过。
    """
    path = Path(folder)
    where = str(path / EVALUATION_NAME)
    try:
        data = (path / EVALUATION_NAME).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{str(path)!r} has no {EVALUATION_NAME}, so it is no finished evaluation; run `semid evaluate … --output`"
        ) from None
    evaluation, sealed = unseal(data, where, InputError)
    version = evaluation.get("schema_version")
    if version not in (_UNSEALED, SCHEMA_VERSION):
        raise InputError(
            f"{EVALUATION_NAME} in {str(path)!r} has schema_version={version!r}; this semid reads "
            f"{_UNSEALED} and {SCHEMA_VERSION}"
        )
    if version == SCHEMA_VERSION and not sealed:
        raise InputError(f"{where} lost its checksum {SEAL!r}, so it was changed after it was written; evaluate again")
    _check_evaluation(evaluation, where)
    items = _read_table(path, evaluation, ITEMS_NAME)
    _check_items(items, evaluation["codebook_sizes"])
    codewords = _read_table(path, evaluation, CODEWORDS_NAME)
    _check_codewords(codewords, evaluation["codebook_sizes"])
    return {**evaluation, "sealed": sealed}, items, codewords


def _check_evaluation(evaluation: Mapping[str, Any], where: str = "evaluation") -> None:
    """键要齐、类型要对，逐层的数字要与层数一样长；多出来的键不管，将来加键不必换版本号。"""
    for key, kind in _KEYS.items():
        if key not in evaluation:
            raise InputError(f"{where} has no key {key!r}; needed: {', '.join(_KEYS)}")
        if not isinstance(evaluation[key], kind):
            raise InputTypeError(f"{where} key {key!r} has type {type(evaluation[key]).__name__}; evaluate again")
    sizes = evaluation["codebook_sizes"]
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise InputError(f"{where} key 'codebook_sizes' must hold ints >= 1, got {sizes!r}")
    known = by_key()
    for key, value in evaluation["metrics"].items():
        listed = isinstance(value, list)
        if listed and len(value) != len(sizes):
            raise InputError(f"{where} metric {key!r} has {len(value)} values, but there are {len(sizes)} levels")
        good = all(isinstance(part, _NUMBERS) for part in value) if listed else isinstance(value, _SCALARS)
        if key in known and value is not None:  # 认得的指标：逐层的是列表，其余是一个数
            good = good and not isinstance(value, str) and listed == bool(known[key].per)
        if not good:
            raise InputTypeError(f"{where} metric {key!r} holds {value!r:.60}; numbers are needed: evaluate again")
    for name, needed in _ENTRIES.items():
        for entry in evaluation[name]:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in needed):
                raise InputError(f"{where} has an entry of {name!r} without {', '.join(needed)}; evaluate again")


def _check_items(items: pa.Table, sizes: List[int]) -> None:
    """列、类型、行数上限、编号不为空、各层编号在码本之内。"""
    _check_columns(items, item_schema(len(sizes), "suffix" in items.column_names), ITEMS_NAME)
    if items.num_rows > MAX_ITEM_ROWS:
        raise InputError(f"items has {items.num_rows} rows; at most {MAX_ITEM_ROWS}: take a sample")
    if items.column("item_id").null_count:
        raise InputError("items has a null item_id; every item needs one")
    for level, size in enumerate(sizes, 1):
        column = items.column(f"l{level}")
        found = pc.min_max(column)
        low, high = found["min"].as_py(), found["max"].as_py()
        if column.null_count or (low is not None and not 0 <= low <= high < size):
            raise InputError(f"{ITEMS_NAME} column l{level} must hold codes in [0, {size}); evaluate again")


def _check_codewords(codewords: pa.Table, sizes: List[int]) -> None:
    """列、类型，恰好 ΣK_l 行。"""
    _check_columns(codewords, codeword_schema(), CODEWORDS_NAME)
    if codewords.num_rows != sum(sizes):
        raise InputError(f"codewords has {codewords.num_rows} rows, but codebook_sizes={sizes} needs {sum(sizes)}")


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


def _read_table(path: Path, evaluation: Mapping[str, Any], name: str) -> pa.Table:
    """读清单里的一个文件；被截断、改动或与清单不是同一次写的，都在这里认出来。"""
    listed = evaluation.get("files")
    files: List[Any] = listed if isinstance(listed, list) else []
    entry = next((entry for entry in files if isinstance(entry, dict) and entry.get("name") == name), None)
    if entry is None or type(entry.get("rows")) is not int:
        raise InputError(f"{path / EVALUATION_NAME} does not list {name}; evaluate again")
    try:
        data = (path / name).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path / name} is missing; evaluate again") from None
    return table_from_bytes(data, entry, str(path / name), InputError)
