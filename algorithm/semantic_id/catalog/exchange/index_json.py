"""LC-Rec、MiniOneRec 的 `.index.json` ↔ 物品表：`{"0": ["<a_12>", "<b_3>", "<c_9>"], …}`，一个字母一层。

形状字母：N 为物品数，L 为层数。导入的物品表没有模型，清单里的指纹是源文件的 SHA-256；所以能查、能导出、能拿去解码约束，
但不能 `update`。
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ...files.durable import FileTarget, one_writer
from ...token_text import MAX_LEVELS, TOKEN, token
from ..encoding import seal
from ..encoding.encode import DEFAULT_ROWS_PER_PART
from ..encoding.shards import plan_shards, shard_name, write_staged
from ..format.manifest import STAGING_NAME, CatalogError
from ..format.parts import check_range, full_ids_of, id_table
from ..format.publish import new_catalog
from ..table import Catalog

__all__ = ["export_index_json", "import_index_json"]


def import_index_json(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    codebook_sizes: Sequence[int] | None = None,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
) -> Dict[str, Any]:
    """读 `.index.json`，写成物品表；item_id 是字符串，行序同文件。

    Args:
        path: 文件。
        output: 物品表目录，须不存在或为空。
        codebook_sizes: 各层码本大小；None 取出现过的最大编号加一。
        rows_per_part: 一个分片多少行。

    Returns:
        摘要：output, num_items, codebook_sizes, fingerprint, num_shared（与别的物品同 ID 的物品数）。

    Raises:
        FileNotFoundError: 文件不存在。
        FileExistsError: 输出已存在。
        ValueError: 不是这种文件；点名第一个不对的物品。
    """
    file, target = Path(path), Path(os.path.realpath(output))
    if not file.is_file():
        raise FileNotFoundError(f"index file {str(file)!r} does not exist; give an LC-Rec style .index.json")
    data = file.read_bytes()
    items, codes = _parse(data, file.name)
    sizes = tuple(int(top) + 1 for top in codes.max(axis=0)) if codebook_sizes is None else tuple(codebook_sizes)
    check_range(codes, sizes, file.name, 0)
    with new_catalog(target, {"features": file.name}) as folder:
        shards = plan_shards(len(items), rows_per_part)
        for shard in shards:
            rows = slice(shard.start, shard.stop)
            table = id_table(pa.array(items[rows], pa.string()), codes[rows])
            note = {"rows": 0, "error_sum": []}
            write_staged(folder / STAGING_NAME / shard_name(shard), table, note)
        manifest = seal.seal(
            folder,
            folder / STAGING_NAME,
            shards,
            sizes=sizes,
            fingerprint=hashlib.sha256(data).hexdigest(),
            features=f"{file.name} ({len(items)} items, imported)",
            unique="none",
            dim=1,
        )
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return {
        "output": os.fspath(output),
        "num_items": len(items),
        "codebook_sizes": list(sizes),
        "fingerprint": manifest["model_fingerprint"],
        "num_shared": int(counts[counts > 1].sum()),
    }


def export_index_json(catalog: Catalog, path: str | os.PathLike[str], *, overwrite: bool = False) -> Dict[str, Any]:
    """写 `.index.json`；去重位接在最后，作为下一个字母。逐分片写，内存只占一个分片。

    Raises:
        FileExistsError: 文件已存在而没有 overwrite。
        ValueError: 层数超过字母表，或编号是字节串。
    """
    target = FileTarget(Path(path), overwrite)
    if len(catalog.id_columns) > MAX_LEVELS:
        raise InputError(
            f"an ID of {len(catalog.id_columns)} codes has no letter for each; .index.json allows {MAX_LEVELS}"
        )
    if pa.types.is_binary(catalog.id_type) or pa.types.is_fixed_size_binary(catalog.id_type):
        raise InputError("item ids are bytes, which JSON cannot hold; encode with string or integer ids")
    with one_writer(target.path), target.writing() as file:
        file.write(b"{")
        comma = ""
        for table in catalog.tables():
            lines = []
            for item, row in zip(table.column("item_id").to_pylist(), full_ids_of(table).tolist(), strict=True):
                tokens = [token(level, code) for level, code in enumerate(row)]
                lines.append(f"{comma}{json.dumps(str(item), ensure_ascii=False)}: {json.dumps(tokens)}")
                comma = ", "
            file.write("".join(lines).encode("utf-8"))
        file.write(b"}\n")
    return {"output": os.fspath(path), "num_items": catalog.num_items}


def _parse(data: bytes, name: str) -> tuple[List[str], np.ndarray]:
    """字节 → 物品编号与 (N, L) 编码。"""
    try:
        pairs = json.loads(data, object_pairs_hook=list)  # 字典会悄悄吞掉重复的键
    except RecursionError:
        raise InputError(f"{name} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(pairs, list) or not pairs or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(
            f'{name} must hold a JSON object like {{"0": ["<a_1>", "<b_2>", "<c_3>"]}} with at least one item'
        )
    codes = [_codes_of(item, tokens, name) for item, tokens in pairs]
    items = [item for item, _ in pairs]
    odd = next((i for i, row in enumerate(codes) if len(row) != len(codes[0])), None)
    if odd is not None:
        raise InputError(f"{name} item {items[odd]!r} has {len(codes[odd])} levels, the first has {len(codes[0])}")
    if len(set(items)) != len(items):
        seen: Set[str] = set()
        twice = next(item for item in items if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise CatalogError(f"{name} has item {twice!r} twice; item ids must be unique")
    return items, np.array(codes, np.int32)


def _codes_of(item: str, tokens: Any, name: str) -> List[int]:
    """一个物品的词 → 编号；每层正好一种写法。"""
    if any("\ud800" <= letter <= "\udfff" for letter in item):
        raise InputError(f"{name} item {item!r} is no Unicode text: it holds half of a surrogate pair")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f'{name} item {item!r} has {repr(tokens)[:200]}; write a list like ["<a_0>", "<b_0>"]')
    codes = []
    for level, text in enumerate(tokens):
        match = TOKEN.fullmatch(text) if isinstance(text, str) else None
        if match is None or ord(match[1]) - ord("a") != level or int(match[2]) >= 1 << 31:
            raise InputError(
                f"{name} item {item!r} has {repr(text)[:200]} for L{level + 1}; write {token(level % 26, 0)} and on: "
                "N in [0, 2**31) in plain digits, no leading zero"
            )
        codes.append(int(match[2]))
    return codes
