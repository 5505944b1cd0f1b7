"""清单 MANIFEST.json：物品表唯一的入口；没有它就没有物品表，它列出的文件才属于物品表。

清单最后写、原子地换，所以读者看到的总是完整的一代。里面没有时间、没有路径：同样的输入在任何机器上写出同样的字节。
清单里的文件名只能是本目录里按固定写法命名的普通文件，指不到目录之外。

形状字母：L 为层数。
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List

from ...files.durable import is_temporary, write_atomically

__all__ = [
    "MANIFEST_NAME",
    "STAGING_NAME",
    "SUFFIX",
    "UNIQUE_POLICIES",
    "CatalogError",
    "files_of",
    "find_stranger",
    "id_columns",
    "level_columns",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "MANIFEST.json"
STAGING_NAME = "staging"
SUFFIX = "suffix"
UNIQUE_POLICIES = ("none", "suffix", "nearest-free")
_FORMAT, _FORMAT_VERSION = "semid-catalog", 2
# 文件名的全部写法；别的名字（含任何路径分隔符）一律拒绝
_PART_NAME = re.compile(r"part-\d{5,9}\.parquet")
_RETIRED_NAME = re.compile(r"retired-\d{5,9}\.parquet")
_INDEX_NAME = re.compile(r"index-\d{5,9}-[a-z]+\.npy")
_INDEX_ROLES = {"codes", "items", "offsets", "strings", "keys", "positions"}


class CatalogError(ValueError):
    """不是物品表、没写完、被改过，或与要求不符。"""


def level_columns(num_levels: int) -> List[str]:
    """L 层的列名：l1, l2, …。"""
    return [f"l{i + 1}" for i in range(num_levels)]


def id_columns(num_levels: int, unique: str) -> List[str]:
    """一个 ID 的列名：各层，策略为 suffix 时再加去重位。"""
    return [*level_columns(num_levels), *([SUFFIX] if unique == "suffix" else [])]


def write_manifest(folder: Path, fields: Dict[str, Any]) -> Dict[str, Any]:
    """写清单；此后目录才是（新一代的）物品表。返回清单内容。"""
    manifest = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **fields}
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / MANIFEST_NAME, text.encode())
    return manifest


def read_manifest(folder: Path) -> Dict[str, Any]:
    """读清单并验收：格式、版本、字段、文件名与文件是否都在。

    Raises:
        FileNotFoundError: 目录不存在。
        CatalogError: 没有清单、清单损坏、版本不认识、文件缺失或名字越界。
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"catalog folder {str(folder)!r} does not exist; write one with `semid encode`")
    where = folder / MANIFEST_NAME
    try:
        text = where.read_bytes()
    except FileNotFoundError:
        raise CatalogError(
            f"{str(folder)!r} has no {MANIFEST_NAME}: it is no catalog, or its encoding never finished; "
            "run `semid encode` again"
        ) from None
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise CatalogError(f"{where} is not valid JSON: {error}; encode the catalog again") from None
    _check_manifest(folder, manifest)
    return manifest


def files_of(manifest: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """清单列出的全部文件：分片、索引、已退役的编号。"""
    yield from manifest["parts"]
    yield from manifest["index"].values()
    if manifest["retired"] is not None:
        yield manifest["retired"]


def find_stranger(folder: Path) -> str | None:
    """目录里第一个不属于物品表的名字；None 表示全是我们的，可以放心清掉。"""
    names = "|".join(pattern.pattern for pattern in (_PART_NAME, _RETIRED_NAME, _INDEX_NAME))
    ours = re.compile(rf"({names}|{re.escape(MANIFEST_NAME)})(\.tmp)?")
    staged = re.compile(r"(PLAN\.json|(shard|candidates)-\d{5,9}\.parquet)(\.[0-9a-z-]+)?(\.tmp)?|scratch-[\w.-]+")
    for path in sorted(folder.iterdir()):
        if path.name == STAGING_NAME and path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                if inner.is_dir() or not (staged.fullmatch(inner.name) or is_temporary(inner.name)):
                    return f"{STAGING_NAME}/{inner.name}"
        elif path.is_dir() or not (ours.fullmatch(path.name) or is_temporary(path.name)):
            return path.name
    return None


def _check_manifest(folder: Path, manifest: Any) -> None:
    """清单的门。"""
    where = folder / MANIFEST_NAME
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CatalogError(f"{where} is not a catalog manifest; give a folder written by `semid encode`")
    if manifest.get("format_version") != _FORMAT_VERSION:
        raise CatalogError(
            f"{where} has format_version={manifest.get('format_version')!r}; this semid reads {_FORMAT_VERSION}: "
            "use the version that wrote it or encode again"
        )
    kinds = {
        "num_items": int, "codebook_sizes": list, "columns": list, "model_fingerprint": str, "parts": list,
        "unique": str, "generation": int, "item_id_type": str, "index": dict, "next_part": int, "history": list,
        "max_suffix": int,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise CatalogError(f"{where} has no valid {key!r}; encode the catalog again")
    sizes = manifest["codebook_sizes"]
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CatalogError(f"{where} has codebook_sizes={sizes}; use ints >= 1: encode again")
    if manifest["unique"] not in UNIQUE_POLICIES:
        raise CatalogError(f"{where} has unique={manifest['unique']!r}; known: {', '.join(UNIQUE_POLICIES)}")
    if manifest["columns"] != ["item_id", *id_columns(len(sizes), manifest["unique"])]:
        raise CatalogError(
            f"{where} has columns {manifest['columns']} that contradict its codebook_sizes; encode again"
        )
    _check_files(folder, manifest)
    total = sum(part["rows"] for part in manifest["parts"])
    if total != manifest["num_items"]:
        raise CatalogError(
            f"{where} says num_items={manifest['num_items']}, but its parts have {total} rows; encode again"
        )


def _check_files(folder: Path, manifest: Dict[str, Any]) -> None:
    """分片、索引、退役表：每个都是本目录里按规矩命名的普通文件。"""
    for part in manifest["parts"]:
        _check_file(folder, part, _PART_NAME, "part-NNNNN.parquet")
    index = manifest["index"]
    roles = {"codes", "keys", "positions"}
    if index and (not roles <= set(index) or not set(index) <= _INDEX_ROLES):
        raise CatalogError(f"{folder / MANIFEST_NAME} lists an index of {sorted(index)}; encode the catalog again")
    for entry in index.values():
        _check_file(folder, entry, _INDEX_NAME, "index-NNNNN-ROLE.npy")
    if manifest.get("retired") is not None:
        _check_file(folder, manifest["retired"], _RETIRED_NAME, "retired-NNNNN.parquet")
    manifest.setdefault("retired", None)


def _check_file(folder: Path, entry: Any, pattern: re.Pattern[str], shape: str) -> None:
    """清单里的一个文件：字段齐全，名字只能是本目录里的普通文件，长度与清单一致。"""
    kinds = {"name": str, "rows": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds.items()):
        raise CatalogError(
            f"{MANIFEST_NAME} of {str(folder)!r} has a malformed part {entry!r}; encode the catalog again"
        )
    name = entry["name"]
    if not pattern.fullmatch(name) or (folder / name).is_symlink():
        raise CatalogError(
            f"{MANIFEST_NAME} of {str(folder)!r} names the part {name!r}; parts must be plain files called "
            f"{shape}: encode the catalog again"
        )
    if not (folder / name).is_file():
        raise CatalogError(f"{str(folder)!r} lacks {name!r}, which its {MANIFEST_NAME} lists; copy or encode it again")
