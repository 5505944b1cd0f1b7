"""编码打包成整数键：排序、去重、取前缀、二分查找都在整数上做。全包只有这一处会打包。

形状字母：N 行数，L 列数（各层，带去重位或行号时再加一列），W 一个键占几个 int64。

规则（`tests/test_code_keys.py` 逐条核对）：
- 第 i 列取值 [0, size_i)，占 ⌈log₂ size_i⌉ 位；靠前的列在高位，所以键的大小就是 (l1, l2, …) 的字典序，
  一个前缀是一段连续的键；
- 一个字只用 63 位：符号位永远是 0，int64 的大小就是无符号的大小；
- 放不下时按列切成几个字，一列不跨两个字；单独一列超过 63 位是错误；
- 取值须已在 [0, size_i) 之内：越界的值会盖到相邻的列上，所以由调用者先验收。
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from .limits import check_int

__all__ = ["Packing", "comparable", "lexical_keys"]

_WORD_BITS = 63
# 一次处理多少行：中间结果留在缓存里，也不会多出一整列 int64
_CHUNK = 1 << 18


class Packing:
    """(N, L) 编码 ↔ (N, W) int64 键。

    Args:
        sizes: 各列的取值个数，[1, 2⁶³]。

    Raises:
        TypeError: 不是整数。
        ValueError: 越界：一列放不进一个字。

    Examples:
        >>> Packing((2, 4)).pack(np.array([[1, 2], [0, 3]])).tolist()
        [[6], [3]]
        >>> Packing((1 << 40, 1 << 40)).num_words
        2
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(check_int("sizes", size, 1, 1 << _WORD_BITS) for size in sizes)
        self.bits = [(size - 1).bit_length() for size in self.sizes]
        self.words: List[List[int]] = [[]]  # 每个字里有哪几列
        used = 0
        for column, bits in enumerate(self.bits):
            if used + bits > _WORD_BITS:
                self.words.append([])
                used = 0
            self.words[-1].append(column)
            used += bits

    @property
    def num_words(self) -> int:
        """W。"""
        return len(self.words)

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """(N, L) 编码 → (N, W) int64；取值须已验收过。"""
        out = np.zeros((len(codes), self.num_words), np.int64)
        for start in range(0, len(codes), _CHUNK):
            block, keys = codes[start : start + _CHUNK], out[start : start + _CHUNK]
            for word, columns in enumerate(self.words):
                key = keys[:, word]
                for column in columns:
                    key <<= self.bits[column]
                    key |= block[:, column].astype(np.int64, copy=False)
        return out

    def unpack(self, keys: np.ndarray) -> np.ndarray:
        """(N, W) int64 → (N, L) int32；有一列超过 31 位时是 int64。"""
        kind = np.int32 if max(self.bits, default=0) <= 31 else np.int64
        out = np.empty((len(keys), len(self.sizes)), kind)
        for column in range(len(self.sizes)):
            self._take(keys, column, out[:, column])
        return out

    def column(self, keys: np.ndarray, column: int, kind: type) -> np.ndarray:
        """(N, W) int64 → 第 column 列 (N,)，写成 kind；内存只多这一列。"""
        out: np.ndarray = np.empty(len(keys), kind)
        self._take(keys, column, out)
        return out

    def bounds(self, prefixes: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """(Q, l) 前缀 → 各自的最小键与最大键，各 (Q, W)，两端都含；l ≤ L。"""
        count, given = prefixes.shape
        low, high = (np.zeros((count, len(self.sizes)), np.int64) for _ in range(2))
        low[:, :given] = high[:, :given] = prefixes
        high[:, given:] = [(1 << bits) - 1 for bits in self.bits[given:]]
        return self.pack(low), self.pack(high)

    def _take(self, keys: np.ndarray, column: int, out: np.ndarray) -> None:
        """把一列取进 out。"""
        word = next(i for i, columns in enumerate(self.words) if column in columns)
        shift = sum(self.bits[other] for other in self.words[word] if other > column)
        mask = (1 << self.bits[column]) - 1
        for start in range(0, len(keys), _CHUNK):
            # 索引文件映射进来的是大端，转成本机的次序再移位
            block = keys[start : start + _CHUNK, word].astype(np.int64)
            block >>= shift
            block &= mask
            out[start : start + _CHUNK] = block


def comparable(keys: np.ndarray) -> np.ndarray:
    """(N, W) 键 → (N,) 可比较、可二分的数组：一个字就是 int64，几个字看成大端字节串。"""
    if keys.shape[1] == 1:
        return keys[:, 0]
    big = np.ascontiguousarray(keys, dtype=">i8")  # 键非负，所以字节序就是数值序；已是大端的不复制
    return big.view(f"S{8 * keys.shape[1]}")[:, 0]


def lexical_keys(codes: np.ndarray) -> np.ndarray:
    """(N, L) 非负编码 → (N,) 可比较的键，相等与先后同 (l1, l2, …)；N ≥ 1，各列大小取最大值加一。

    Examples:
        >>> np.argsort(lexical_keys(np.array([[1, 0], [0, 9], [0, 2]]))).tolist()
        [2, 1, 0]
    """
    return comparable(Packing([int(top) + 1 for top in codes.max(axis=0)]).pack(codes))
