"""评估目录里的两张表：挑哪些物品、码字落在图上哪里。纯函数。

形状字母：N 物品数，R 挑出的行数，L 层数，K_l 码本大小。
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pyarrow as pa

from ..metrics.meaning import prefix_groups
from ..metrics.neighbours import sample_rows
from .folder import MAX_ITEM_ROWS, codeword_schema, item_schema

__all__ = ["choose_items", "codeword_table", "item_table"]

NUM_WORST = 200
NUM_CROWDED = 50
NUM_OF_A_CROWD = 200  # 一个冲突组至多留这么多：四万个同 ID 的物品没有必要都画


def choose_items(
    codes: np.ndarray, errors: np.ndarray | None, limit: int = MAX_ITEM_ROWS
) -> Tuple[np.ndarray, Dict[str, Any]]:
    """挑哪些物品写进目录。

    Args:
        codes: (N, L) 整数编码。
        errors: (N,) 误差，NaN 为没有；None 为全都没有。
        limit: 至多几行。

    Returns:
        (行号升序 (R,), 说明)；不超过 limit 时是全部，否则是误差最大的 200 个、最拥挤的 50 个 ID 的成员（每个至多 200
        个）与种子 0 的抽样。limit 小时前两样各占一半，总装得下。
    """
    total = len(codes)
    if total <= limit:
        return np.arange(total), {"rows": total, "how": "all"}
    must: List[np.ndarray] = []
    if errors is not None:
        known = np.where(np.isnan(errors), -np.inf, errors)
        must.append(np.argsort(-known, kind="stable")[: min(NUM_WORST, limit // 2)])
    groups = prefix_groups(codes, codes.shape[1])
    counts = np.bincount(groups)
    crowded = np.argsort(-counts, kind="stable")[:NUM_CROWDED]
    crowded = crowded[counts[crowded] > 1]
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    most = min(NUM_OF_A_CROWD, max(2, limit // (2 * max(1, len(crowded)))))
    must += [order[starts[g] : min(starts[g + 1], starts[g] + most)] for g in crowded]
    fixed = np.unique(np.concatenate(must)[: limit - 1]) if must else np.zeros(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(total), fixed)
    rows = np.union1d(fixed, rest[sample_rows(len(rest), limit - len(fixed), 0)])
    how = f"sample of {len(rows)} by seed 0, with the {NUM_WORST} worst and the {NUM_CROWDED} most crowded IDs"
    return rows, {"rows": len(rows), "how": how}


def item_table(
    rows: np.ndarray,
    ids: pa.Array,
    codes: np.ndarray,
    plane: np.ndarray,
    *,
    titles: pa.Array | None,
    labels: pa.Array | None,
    errors: np.ndarray | None,
    suffix: np.ndarray | None,
) -> pa.Table:
    """items.parquet 的表；各参数都是全部 N 行的，这里取 `rows`。errors 已经除以平均偏差。"""
    picked = pa.array(rows)
    empty = pa.nulls(len(rows), pa.string())
    columns: Dict[str, Any] = {
        "item_id": _strings(ids.take(picked)),
        "title": empty if titles is None else titles.take(picked),
        "label": empty if labels is None else labels.take(picked),
    }
    for level in range(codes.shape[1]):
        columns[f"l{level + 1}"] = codes[rows, level].astype(np.int32)
    if suffix is not None:
        columns["suffix"] = suffix[rows].astype(np.int32)
    # 没有误差的（NaN）写成空值：JSON 与网页都不认 NaN
    columns["error"] = (
        pa.nulls(len(rows), pa.float32())
        if errors is None
        else pa.array(errors[rows].astype(np.float32), from_pandas=True)
    )
    columns["map_x"], columns["map_y"] = plane[rows, 0], plane[rows, 1]
    schema = item_schema(codes.shape[1], suffix is not None)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def codeword_table(codes: np.ndarray, sizes: Sequence[int], plane: np.ndarray, labels: pa.Array | None) -> pa.Table:
    """codewords.parquet 的表，在全部物品上数；第一层的位置是用它的物品的平均，没用过的为空。"""
    names, numbers = _label_numbers(labels, len(codes))
    columns: Dict[str, List[Any]] = {name: [] for name in codeword_schema().names}
    for level, size in enumerate(sizes):
        counts = np.bincount(codes[:, level], minlength=size)
        columns["level"].append(np.full(size, level + 1))
        columns["code"].append(np.arange(size))
        columns["count"].append(counts)
        columns["label"].append(_commonest(codes[:, level], size, numbers, names))
        for axis, name in enumerate(("map_x", "map_y")):
            where = np.full(size, np.nan)
            if level == 0:
                used = counts > 0
                where[used] = np.bincount(codes[:, 0], plane[:, axis], minlength=size)[used] / counts[used]
            columns[name].append(where)
    arrays = [
        pa.array(np.concatenate(columns[field.name]), field.type, from_pandas=True) for field in codeword_schema()
    ]
    return pa.Table.from_arrays(arrays, schema=codeword_schema())


def _label_numbers(labels: pa.Array | None, total: int) -> Tuple[np.ndarray, np.ndarray]:
    """(标签名, 每个物品的标签号，没有的为 −1)。"""
    if labels is None:
        return np.zeros(0, dtype=object), np.full(total, -1)
    coded = labels.dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), dtype=object), coded.indices.fill_null(-1).to_numpy()


def _commonest(codes: np.ndarray, size: int, numbers: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(K,) 每个码字最常见的标签，没有的是 None；并列取先出现的标签。"""
    out = np.full(size, None, dtype=object)
    known = numbers >= 0
    if len(names) and known.any():
        cells, counts = np.unique(codes[known].astype(np.int64) * len(names) + numbers[known], return_counts=True)
        order = np.lexsort((cells, -counts, cells // len(names)))
        owner = cells[order] // len(names)
        first = np.concatenate([[True], owner[1:] != owner[:-1]])
        out[owner[first]] = names[cells[order][first] % len(names)]
    return out


def _strings(ids: pa.Array) -> pa.Array:
    """编号转成字符串；字节串不是 UTF-8 时写成十六进制。"""
    try:
        return ids.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([value.hex() if isinstance(value, bytes) else str(value) for value in ids.to_pylist()])
