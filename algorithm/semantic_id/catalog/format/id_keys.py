"""编号的整数形式：字符串编号散列成 int64，整数编号平移成 int64；排序与查找都在整数上做。编码的键见 `code_keys.py`。

形状字母：N 为行数。
"""

from __future__ import annotations

from typing import Tuple

import numpy as np
import pyarrow as pa

__all__ = ["hash_bytes", "ids_to_bytes", "ids_to_integers"]

_PIECE = 1 << 13


def ids_to_integers(ids: pa.Array) -> np.ndarray:
    """整数编号 → int64，保持大小顺序（uint64 平移半个值域）。"""
    if ids.type == pa.uint64():
        return (ids.to_numpy(zero_copy_only=False) ^ np.uint64(1 << 63)).view(np.int64)
    return ids.to_numpy(zero_copy_only=False).astype(np.int64)


def ids_to_bytes(ids: pa.Array) -> Tuple[np.ndarray, np.ndarray]:
    """字符串或字节串编号 → (N + 1,) int64 偏移与 uint8 字节；偏移从 0 起。"""
    if pa.types.is_fixed_size_binary(ids.type):
        ids = ids.cast(pa.binary())
    ids = ids.cast(pa.large_binary()) if not pa.types.is_large_binary(ids.type) else ids
    _, offsets_buffer, data = ids.buffers()
    if len(ids) == 0:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return offsets - offsets[0], raw[offsets[0] : offsets[-1]]


def hash_bytes(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """每个字节串一个 int64 散列，向量化；它只用来定位，找到之后总要逐字节核对，所以碰撞只费时间，不出错。

    多项式散列模 2⁶⁴：Σ (b_i + 1)·P^i，前缀和之差就是一段的值；再过一遍 splitmix64 打散。

    Args:
        offsets: (N + 1,) int64，从 0 起。
        data: (offsets[-1],) uint8。

    Returns:
        (N,) int64。
    """
    out = np.empty(len(offsets) - 1, np.int64)
    for start in range(0, len(out), _PIECE):  # 一小段一小段算：中间量是字节数的八倍，放得进缓存才快
        piece = offsets[start : start + _PIECE + 1]
        out[start : start + _PIECE] = _hash_piece(piece - piece[0], data[piece[0] : piece[-1]])
    return out


def _hash_piece(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """`hash_bytes` 的一段。"""
    lengths = np.diff(offsets)
    longest = int(lengths.max()) if len(lengths) else 0
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(max(longest, 1), 0x100000001B3, np.uint64), dtype=np.uint64)
        place = np.arange(len(data)) - np.repeat(offsets[:-1], lengths)
        terms = (data.astype(np.uint64) + np.uint64(1)) * powers[place]
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        value = total[offsets[1:]] - total[offsets[:-1]] + lengths.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (value ^ (value >> np.uint64(31))).view(np.int64)
