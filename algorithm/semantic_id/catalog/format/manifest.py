"""清单 MANIFEST.json：物品表唯一的入口；没有它就没有物品表，它列出的文件才属于物品表。

清单最后写、原子地换，所以读者看到的总是完整的一代；它带着自身的校验和，翻转任何一个比特都认得出来。里面没有时间、没有路径：
同样的输入在任何机器上写出同样的字节。清单里的文件名只能是本目录里按固定写法命名的普通文件，指不到目录之外。

版本 1（只有分片）、2（没有自身的校验和，索引没有逐块的校验和）、3 都读，只写 3；缺的东西见 `old_format_note`。

形状字母：L 为层数。
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

from ...errors import InputError
from ...files.durable import is_temporary, write_atomically
from ...files.sealed import seal, unseal
from ...limits import check_int

__all__ = [
    "MANIFEST_NAME",
    "STAGING_NAME",
    "SUFFIX",
    "UNIQUE_POLICIES",
    "CatalogError",
    "files_of",
    "find_stranger",
    "gone",
    "id_columns",
    "is_replaced",
    "level_columns",
    "names_of",
    "old_format_note",
    "read_manifest",
    "write_manifest",
]

MANIFEST_NAME = "MANIFEST.json"
STAGING_NAME = "staging"
SUFFIX = "suffix"
UNIQUE_POLICIES = ("none", "suffix", "nearest-free")
_FORMAT, _FORMAT_VERSION, _READABLE = "semid-catalog", 3, (1, 2, 3)
# 编码与去重位落盘是 int32
_MOST_CODES, _MOST = (1 << 31) - 1, 1 << 62
# 文件名的全部写法；别的名字（含任何路径分隔符）一律拒绝
_PART_NAME = re.compile(r"part-(\d{5,9})\.parquet")
_RETIRED_NAME = re.compile(r"retired-\d{5,9}\.parquet")
_INDEX_NAME = re.compile(r"index-\d{5,9}-[a-z]+\.npy")
_INDEX_ROLES = {"codes", "keys", "positions"}
_ITEM_ROLES = ({"items"}, {"offsets", "strings"})  # 整数编号，或字符串与字节串编号
_KINDS = {
    "codebook_sizes": list, "columns": list, "model_fingerprint": str, "parts": list, "unique": str,
    "item_id_type": str, "index": dict, "history": list,
}  # fmt: skip
_COUNTS = ("num_items", "generation", "next_part", "max_suffix")
# 读者必须认得才能读对的扩展，写在清单的 `needs` 里；现在还没有
_KNOWN_NEEDS: Set[str] = set()


class CatalogError(InputError):
    """不是物品表、没写完、被改过、被换掉了，或与要求不符。"""


def level_columns(num_levels: int) -> List[str]:
    """L 层的列名：l1, l2, …。"""
    return [f"l{i + 1}" for i in range(num_levels)]


def id_columns(num_levels: int, unique: str) -> List[str]:
    """一个 ID 的列名：各层，策略为 suffix 时再加去重位。"""
    return [*level_columns(num_levels), *([SUFFIX] if unique == "suffix" else [])]


def write_manifest(folder: Path, fields: Dict[str, Any]) -> Dict[str, Any]:
    """写清单；此后目录才是（新一代的）物品表。不认识的字段原样写出。返回清单内容。"""
    rest = {key: value for key, value in fields.items() if key not in ("format", "format_version")}
    manifest = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **rest}
    write_atomically(folder / MANIFEST_NAME, seal(manifest))
    return manifest


def read_manifest(folder: Path) -> Dict[str, Any]:
    """读清单并验收：校验和、格式、版本、字段、文件名与文件是否都在；旧版本缺的字段补上。

    Raises:
        FileNotFoundError: 目录不存在。
        CatalogError: 没有清单、清单损坏、版本不认识、文件缺失或名字越界。
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"catalog folder {str(folder)!r} does not exist; write one with `semid encode`")
    where = folder / MANIFEST_NAME
    try:
        data = where.read_bytes()
    except FileNotFoundError:
        raise CatalogError(
            f"{str(folder)!r} has no {MANIFEST_NAME}: it is no catalog, or its encoding never finished; "
            "run `semid encode` again"
        ) from None
    manifest, is_sealed = unseal(data, str(where), CatalogError)
    if manifest.get("format") != _FORMAT:
        raise CatalogError(f"{where} is not a catalog manifest; give a folder written by `semid encode`")
    version = manifest.get("format_version")
    if version not in _READABLE or isinstance(version, bool):
        raise CatalogError(
            f"{where} has format_version={version!r}; this semid reads {', '.join(map(str, _READABLE))}: "
            "use the version that wrote it or encode again"
        )
    if is_sealed != (version >= 3):
        raise CatalogError(f"{where} was changed after it was written (its checksum is gone); copy it again")
    if version == 1:
        manifest = _with_fields_of_version_2(manifest)
    _check_manifest(folder, manifest)
    return manifest


def files_of(manifest: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """清单列出的全部文件：分片、索引、已退役的编号。"""
    yield from manifest["parts"]
    yield from manifest["index"].values()
    if manifest["retired"] is not None:
        yield manifest["retired"]


def names_of(manifest: Dict[str, Any]) -> Set[str]:
    """这一代要留着的文件名：清单、它列出的、上一代的。"""
    return {MANIFEST_NAME, *(entry["name"] for entry in files_of(manifest)), *manifest.get("previous", [])}


def old_format_note(folder: Path, manifest: Dict[str, Any]) -> str | None:
    """旧版本缺什么，一句英文；现在的版本没有，返回 None。"""
    version = manifest["format_version"]
    if version == _FORMAT_VERSION:
        return None
    lacks = "no lookup index (it is built in a temporary folder)" if version == 1 else "no block checksums in its index"
    return (
        f"catalog {str(folder)!r} has the old format {version}: no checksum of its {MANIFEST_NAME}, {lacks}; "
        f"`semid update` or `semid encode` writes format {_FORMAT_VERSION}"
    )


def is_replaced(folder: Path, manifest: Dict[str, Any]) -> bool:
    """目录里现在的清单是不是已经不是打开时的那一份。"""
    try:
        return read_manifest(folder) != manifest
    except (OSError, CatalogError):
        return True


def gone(path: Path) -> CatalogError:
    """清单列出的文件不见了。"""
    return CatalogError(
        f"{path} is gone: the catalog moved on to a later generation or was replaced while this one was open; "
        "open it again"
    )


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


def _with_fields_of_version_2(manifest: Dict[str, Any]) -> Dict[str, Any]:
    """版本 1 只有分片：没有索引、没有去重、只有一代。"""
    parts = manifest.get("parts")
    history = [{"generation": 0, "features": manifest.get("features"), "added": manifest.get("num_items")}]
    extra = {"generation": 0, "max_suffix": 0, "index": {}, "retired": None, "history": history}
    return {**manifest, **extra, "next_part": len(parts) if isinstance(parts, list) else 0}


def _is_count(value: Any) -> bool:
    """非负整数，而且界内：在它撑大任何数组之前。"""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _check_manifest(folder: Path, manifest: Dict[str, Any]) -> None:
    """验收清单的字段。"""
    where = folder / MANIFEST_NAME
    for key, kind in _KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise CatalogError(f"{where} has no valid {key!r}; encode the catalog again")
    for key in _COUNTS:
        if not _is_count(manifest.get(key)):
            raise CatalogError(f"{where} has no valid {key!r}; encode the catalog again")
    sizes = manifest["codebook_sizes"]
    try:
        for size in sizes or [0]:
            check_int("codebook_sizes", size, 1, _MOST_CODES)
        check_int("max_suffix", manifest["max_suffix"], 0, _MOST_CODES)
    except (TypeError, ValueError) as error:
        raise CatalogError(f"{where} is damaged: {error}; encode again") from None
    if manifest["unique"] not in UNIQUE_POLICIES:
        raise CatalogError(f"{where} has unique={manifest['unique']!r}; known: {', '.join(UNIQUE_POLICIES)}")
    if manifest["columns"] != ["item_id", *id_columns(len(sizes), manifest["unique"])]:
        raise CatalogError(
            f"{where} has columns {manifest['columns']} that contradict its codebook_sizes; encode again"
        )
    if not manifest["history"] or not all(isinstance(entry, dict) for entry in manifest["history"]):
        raise CatalogError(f"{where} has no valid 'history'; encode the catalog again")
    needs = manifest.get("needs", [])
    unknown = [name for name in needs if name not in _KNOWN_NEEDS] if isinstance(needs, list) else [needs]
    if unknown:
        raise CatalogError(f"{where} needs {unknown[0]!r}, which this semid does not know; upgrade semid")
    _check_files(folder, manifest)


def _check_files(folder: Path, manifest: Dict[str, Any]) -> None:
    """分片、索引、退役表：每个都是本目录里按规矩命名的普通文件，行数互相对得上。"""
    where, index, total = folder / MANIFEST_NAME, manifest["index"], manifest["num_items"]
    for part in manifest["parts"]:
        _check_file(folder, part, _PART_NAME, "part-NNNNN.parquet")
    rows = sum(part["rows"] for part in manifest["parts"])
    if rows != total:
        raise CatalogError(f"{where} says num_items={total}, but its parts have {rows} rows; encode again")
    numbers = [int(part["name"][5:-8]) for part in manifest["parts"]]
    if len(set(numbers)) != len(numbers) or max(numbers, default=-1) >= manifest["next_part"]:
        raise CatalogError(f"{where} has next_part={manifest['next_part']}, which its parts contradict; encode again")
    for entry in index.values():
        _check_file(folder, entry, _INDEX_NAME, "index-NNNNN-ROLE.npy")
    version, roles = manifest["format_version"], set(index) - ({"blocks"} if manifest["format_version"] >= 3 else set())
    whole = any(roles == _INDEX_ROLES | more for more in _ITEM_ROLES) and (version < 3 or "blocks" in index)
    if not (whole if total and version > 1 else not index):
        raise CatalogError(f"{where} lists an index of {sorted(index)}; encode the catalog again")
    for role in roles - {"strings"}:
        if index[role]["rows"] != total + (role == "offsets"):
            raise CatalogError(f"{where} has an index of {index[role]['rows']} {role}; encode the catalog again")
    manifest.setdefault("retired", None)
    if manifest["retired"] is not None:
        _check_file(folder, manifest["retired"], _RETIRED_NAME, "retired-NNNNN.parquet")


def _check_file(folder: Path, entry: Any, pattern: re.Pattern[str], shape: str) -> None:
    """清单里的一个文件：字段齐全，名字只能是本目录里的普通文件。"""
    if (
        not isinstance(entry, dict)
        or not all(isinstance(entry.get(key), str) for key in ("name", "sha256"))
        or not all(_is_count(entry.get(key)) for key in ("rows", "bytes"))
    ):
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
