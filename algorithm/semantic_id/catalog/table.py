"""物品表在磁盘上的样子：一个目录，若干 Parquet 分片，最后写的 MANIFEST.json。

形状字母：N 为物品数，L 为层数，R 为一个分片的行数。
谁能写：只有 `CatalogWriter`。没有清单就没有物品表，读者一律拒绝，所以写到一半断电也不会被误用。

    part-00000.parquet   item_id（类型同输入）, l1, l2, …（int32，从 0 起），每页带校验和
    MANIFEST.json        行数、列、码本大小、去重策略、模型指纹、每个分片的行数、字节数与 SHA-256

清单里没有时间、没有路径：同样的输入在任何机器上写出同样的字节。
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..durable import write_atomically

__all__ = ["MANIFEST_NAME", "Catalog", "CatalogError", "CatalogWriter"]

MANIFEST_NAME = "MANIFEST.json"
DEFAULT_ROWS_PER_PART = 1 << 20
_FORMAT, _FORMAT_VERSION = "semid-catalog", 1
# 分片名的唯一写法；别的名字（含任何路径分隔符）一律拒绝，清单就指不到目录之外
_PART_NAME = re.compile(r"part-\d{5,9}\.parquet")
# 行组长度固定，文件字节就不随编码时的块长变化
_ROW_GROUP_ROWS = 1 << 17


class CatalogError(ValueError):
    """不是物品表、没写完、被改过，或与要求不符。"""


class CatalogWriter:
    """往一个空目录里写物品表：`append` 若干次，然后 `seal` 一次。

    分片满 `rows_per_part` 行才落盘，因此文件只由行的内容与先后决定，与 `append` 怎么分批无关。
    """

    def __init__(
        self,
        folder: Path,
        *,
        codebook_sizes: Sequence[int],
        fingerprint: str,
        features: str,
        rows_per_part: int = DEFAULT_ROWS_PER_PART,
    ) -> None:
        if isinstance(rows_per_part, bool) or not hasattr(rows_per_part, "__index__") or rows_per_part < 1:
            raise ValueError(f"rows_per_part={rows_per_part!r} is out of range; use an int >= 1")
        self._folder, self._rows_per_part = folder, int(rows_per_part)
        self._sizes, self._fingerprint, self._features = tuple(codebook_sizes), fingerprint, features
        self._ids: List[pa.Array] = []
        self._codes: List[np.ndarray] = []
        self._pending, self.num_items = 0, 0
        self._parts: List[Dict[str, Any]] = []
        self._id_type = ""

    def append(self, ids: pa.Array, codes: np.ndarray) -> None:
        """接上一批行。

        Args:
            ids: (B,) 物品编号。
            codes: (B, L) 整数编码。

        Raises:
            CatalogError: 形状或取值不符；模型若交来越界的编码，绝不能落盘。
        """
        codes = np.asarray(codes)
        if codes.shape != (len(ids), len(self._sizes)) or codes.dtype.kind not in "iu":
            raise CatalogError(f"codes have shape {codes.shape} and dtype {codes.dtype}; need {len(ids)} rows of ints")
        check_range(codes, self._sizes, "codes", self.num_items)
        self._id_type = self._id_type or str(ids.type)
        self._ids.append(ids)
        self._codes.append(codes.astype(np.int32))
        self._pending += len(ids)
        self.num_items += len(ids)
        while self._pending >= self._rows_per_part:
            self._write_part(self._rows_per_part)

    def seal(self) -> Dict[str, Any]:
        """写出余下的行与清单；此后目录才是物品表。返回清单内容。"""
        if self._pending:
            self._write_part(self._pending)
        manifest = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "num_items": self.num_items,
            "columns": ["item_id", *level_columns(len(self._sizes))],
            "item_id_type": self._id_type,
            "codebook_sizes": list(self._sizes),
            "unique": "none",
            "model_fingerprint": self._fingerprint,
            "features": self._features,
            "parts": self._parts,
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self._folder / MANIFEST_NAME, text.encode())
        return manifest

    def _write_part(self, rows: int) -> None:
        """取出前 `rows` 行落盘；先在内存里成形，一个分片不过几十 MB。"""
        ids = pa.concat_arrays(self._ids)
        codes = np.concatenate(self._codes)  # (≥ rows, L)
        columns = {"item_id": ids.slice(0, rows)}
        for i, name in enumerate(level_columns(len(self._sizes))):
            columns[name] = pa.array(np.ascontiguousarray(codes[:rows, i]))
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table(columns), sink, row_group_size=_ROW_GROUP_ROWS, compression="zstd", write_page_checksum=True
        )
        data = sink.getvalue()
        name = f"part-{len(self._parts):05d}.parquet"
        write_atomically(self._folder / name, data)
        digest = hashlib.sha256(data).hexdigest()
        self._parts.append({"name": name, "rows": rows, "bytes": data.size, "sha256": digest})
        self._ids, self._codes = [ids.slice(rows)], [codes[rows:]]
        self._pending -= rows


class Catalog:
    """读物品表。打开只看清单；内容在读到时核对 SHA-256 与页校验和。

    Attributes:
        folder: 目录。
        manifest: 清单原文。
        num_items: 物品数 N。
        codebook_sizes: (K_1, …, K_L)。
        fingerprint: 写它的模型的指纹。
    """

    def __init__(self, folder: Path, manifest: Dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.num_items: int = manifest["num_items"]
        self.codebook_sizes: Tuple[int, ...] = tuple(manifest["codebook_sizes"])
        self.fingerprint: str = manifest["model_fingerprint"]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Catalog:
        """打开一个写完的物品表。

        Raises:
            FileNotFoundError: 目录不存在。
            CatalogError: 没有清单、清单损坏、版本不认识、分片缺失或名字越界。
        """
        path = Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(f"catalog folder {str(path)!r} does not exist; write one with `semid encode`")
        try:
            text = (path / MANIFEST_NAME).read_bytes()
        except FileNotFoundError:
            raise CatalogError(
                f"{str(path)!r} has no {MANIFEST_NAME}: it is no catalog, or its encoding never finished; "
                "run `semid encode` again"
            ) from None
        try:
            manifest = json.loads(text)
        except ValueError as error:
            raise CatalogError(f"{path / MANIFEST_NAME} is not valid JSON: {error}; encode the catalog again") from None
        _check_manifest(path, manifest)
        return cls(path, manifest)

    def tables(self) -> Iterator[pa.Table]:
        """逐分片读出并核对；内存只占一个分片。

        Raises:
            CatalogError: 分片被改动、截断，或内容与清单不符。
        """
        columns = self.manifest["columns"]
        row = 0
        for part in self.manifest["parts"]:
            path = self.folder / part["name"]
            data = path.read_bytes()  # 只读一次：校验的与解析的是同一份字节
            if len(data) != part["bytes"] or hashlib.sha256(data).hexdigest() != part["sha256"]:
                raise CatalogError(f"{path} does not match its SHA-256 in {MANIFEST_NAME}; copy or encode it again")
            try:
                table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
            except (pa.ArrowException, OSError) as error:
                raise CatalogError(f"{path} is not readable: {error}; encode the catalog again") from None
            if table.column_names != columns or table.num_rows != part["rows"]:
                raise CatalogError(f"{path} has columns or rows other than {MANIFEST_NAME} says; encode it again")
            check_range(codes_of(table), self.codebook_sizes, path.name, row)
            row += table.num_rows
            yield table

    def read(self) -> pa.Table:
        """整张表：item_id, l1, l2, …，行序与编码时的输入相同。"""
        return pa.concat_tables(list(self.tables()))


def level_columns(num_levels: int) -> List[str]:
    """L 层的列名：l1, l2, …。"""
    return [f"l{i + 1}" for i in range(num_levels)]


def codes_of(table: pa.Table) -> np.ndarray:
    """取出 l1, l2, … 列，得到 (R, L) int32。"""
    names = level_columns(sum(1 for name in table.column_names if re.fullmatch(r"l\d+", name)))
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def find_stranger(folder: Path) -> str | None:
    """目录里第一个不属于物品表的名字；None 表示全是我们的，可以放心清掉。"""
    ours = re.compile(rf"({_PART_NAME.pattern}|{re.escape(MANIFEST_NAME)})(\.tmp)?")
    return next((p.name for p in sorted(folder.iterdir()) if not ours.fullmatch(p.name) or p.is_dir()), None)


def check_range(codes: np.ndarray, sizes: Sequence[int], name: str, row_offset: int) -> None:
    """编码须在各层码本之内。"""
    if codes.shape[1] != len(sizes):
        raise CatalogError(f"{name} has {codes.shape[1]} levels, but codebook_sizes has {len(sizes)}")
    bad = (codes < 0) | (codes >= np.asarray(sizes))  # (B, L)
    if bool(bad.any()):
        row, level = (int(i) for i in np.argwhere(bad)[0])
        value, size = codes[row, level], sizes[level]
        raise CatalogError(f"{name} row {row_offset + row} has L{level + 1} code {value}; codes must be in [0, {size})")


def _check_manifest(folder: Path, manifest: Any) -> None:
    """清单的门：格式、版本、字段、分片名与分片是否都在。"""
    where = folder / MANIFEST_NAME
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CatalogError(f"{where} is not a catalog manifest; give a folder written by `semid encode`")
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise CatalogError(
            f"{where} has format_version={manifest.get('format_version')!r}; this semid reads {_FORMAT_VERSION}: "
            "use the version that wrote it or encode again"
        )
    kinds = {"num_items": int, "codebook_sizes": list, "columns": list, "model_fingerprint": str, "parts": list}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise CatalogError(f"{where} has no valid {key!r}; encode the catalog again")
    if not all(isinstance(size, int) and size > 0 for size in manifest["codebook_sizes"]):
        raise CatalogError(f"{where} has codebook_sizes={manifest['codebook_sizes']}; use ints >= 1: encode again")
    if manifest["columns"] != ["item_id", *level_columns(len(manifest["codebook_sizes"]))]:
        raise CatalogError(
            f"{where} has columns {manifest['columns']} that contradict its codebook_sizes; encode again"
        )
    for part in manifest["parts"]:
        _check_part(folder, part)
    total = sum(part["rows"] for part in manifest["parts"])
    if total != manifest["num_items"]:
        raise CatalogError(
            f"{where} says num_items={manifest['num_items']}, but its parts have {total} rows; encode again"
        )


def _check_part(folder: Path, part: Any) -> None:
    """清单里的一个分片：名字只能是本目录里的普通文件。"""
    kinds = {"name": str, "rows": int, "bytes": int, "sha256": str}
    if not isinstance(part, dict) or not all(isinstance(part.get(key), kind) for key, kind in kinds.items()):
        raise CatalogError(
            f"{MANIFEST_NAME} of {str(folder)!r} has a malformed part {part!r}; encode the catalog again"
        )
    name = part["name"]
    if not _PART_NAME.fullmatch(name) or (folder / name).is_symlink():
        raise CatalogError(
            f"{MANIFEST_NAME} of {str(folder)!r} names the part {name!r}; parts must be plain files called "
            "part-NNNNN.parquet: encode the catalog again"
        )
    if not (folder / name).is_file():
        raise CatalogError(f"{str(folder)!r} lacks {name!r}, which its {MANIFEST_NAME} lists; copy or encode it again")
