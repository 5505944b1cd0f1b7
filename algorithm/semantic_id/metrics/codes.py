"""指标：数组进，数字出。只依赖 NumPy，任何人的编码都能拿来评。

形状字母：N 为物品数，L 为层数，K 为某一层的码本大小。
每个指标写明定义、单位、取值范围、总体（在哪些行上算）与出处；例子即测试。
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np

from ..code_keys import lexical_keys
from ..errors import InputError, InputTypeError

__all__ = [
    "check_codes",
    "code_counts",
    "collided_item_rate",
    "collision_figures",
    "collision_rate",
    "gini",
    "group_sizes",
    "max_collision",
    "perplexity",
    "relative_mse",
    "utilization",
]


def code_counts(codes_level: Any, num_codewords: int) -> np.ndarray:
    """统计一层里每个码字被多少行使用。

    Args:
        codes_level: (N,) 一层的编号，整数，在 [0, K)。
        num_codewords: 码本大小 K。

    Returns:
        (K,) int64，非负，总和为 N。

    Raises:
        TypeError: 不是整数。
        ValueError: 不是一维，或编号越界。

    Examples:
        >>> code_counts([0, 2, 2], 4).tolist()
        [1, 0, 2, 0]
    """
    codes = np.asarray(codes_level)
    if codes.ndim != 1:
        raise InputError(f"codes_level must have shape (N,), got {codes.shape}; pass one level: codes[:, 0]")
    codes = _check_integers(codes, "codes_level")
    if codes.size and not (0 <= codes.min() and codes.max() < num_codewords):
        row = int(((codes < 0) | (codes >= num_codewords)).argmax())
        raise InputError(f"codes_level row {row} is {codes[row]}; codes must be in [0, {num_codewords})")
    return np.bincount(codes, minlength=num_codewords)


def utilization(counts: Any) -> float:
    """码本利用率：至少被用过一次的码字占 K 的比例。

    定义 |{k : n_k > 0}| / K；无单位；[0, 1]；总体为产生 `counts` 的那些行（由调用者声明）。
    它只看「用没用过」：K = 64 的一层可以利用率 1 而困惑度 5，所以总与 `perplexity` 同看。
    N < K 时上限是 N / K，不能怪训练。

    Args:
        counts: (K,) 使用次数。

    References:
        Zeghidour et al., 2021, SoundStream, arXiv:2107.03312（死码字与码本利用）。

    Examples:
        >>> utilization([3, 0, 1, 0])
        0.5
    """
    counts = _check_counts(counts)
    return float(np.count_nonzero(counts) / counts.size)


def perplexity(counts: Any) -> float:
    """困惑度：使用分布的有效码字数。

    定义 exp(−Σ p_k ln p_k)，p_k = n_k / N，自然对数，0·ln 0 记为 0；单位为「个码字」；[1, K]，
    全用一个码字时为 1，完全均匀时为 K；总体为产生 `counts` 的那些行。

    Args:
        counts: (K,) 每个码字的使用次数，总和 ≥ 1。

    References:
        van den Oord et al., 2017, arXiv:1711.00937；其官方实现即记录此量。

    Examples:
        >>> round(perplexity([5, 5, 5, 5]), 9)
        4.0
        >>> perplexity([9, 0, 0])
        1.0
    """
    counts = _check_counts(counts)
    total = float(counts.sum())
    if total < 1:
        raise InputError("counts sum to 0; perplexity needs at least one row")
    used = counts[counts > 0]
    # H = ln N − Σ n ln n / N，与定义相等，少一次除法的舍入；clip 只收掉最后一位的越界
    entropy = np.log(total) - float((used * np.log(used)).sum()) / total
    return float(np.clip(np.exp(entropy), 1.0, counts.size))


def gini(counts: Any) -> float:
    """基尼系数：使用次数有多不均匀。

    定义 Σ_i (2i − K − 1) n_(i) / (K Σ n)，n_(i) 升序、i 从 1 起；无单位；[0, 1)，
    均匀为 0，全落在一个码字上为 (K − 1) / K；总体为产生 `counts` 的那些行（未用过的码字也算在内）。

    Args:
        counts: (K,) 每个码字的使用次数，总和 ≥ 1。

    References:
        Gini, 1912, Variabilità e mutabilità；用于 Semantic ID 见 FORGE, 2025, arXiv:2509.20904。

    Examples:
        >>> gini([2, 2, 2, 2])
        0.0
        >>> gini([0, 0, 0, 8])
        0.75
    """
    ordered = np.sort(_check_counts(counts)).astype(np.float64)
    total, size = float(ordered.sum()), ordered.size
    if total < 1:
        raise InputError("counts sum to 0; gini needs at least one row")
    rank = 2.0 * np.arange(1, size + 1) - size - 1
    return float((rank * ordered).sum() / (size * total))


def group_sizes(codes: Any) -> np.ndarray:
    """每个不同的语义 ID 各有多少物品。

    Args:
        codes: (N, L) 整数编码，N ≥ 1。

    Returns:
        (G,) int64，G 为不同 ID 的个数，每个 ≥ 1，总和为 N；按 ID 的字典序排列。

    Examples:
        >>> group_sizes([[1, 1], [0, 5], [1, 1]]).tolist()
        [1, 2]
    """
    keys = lexical_keys(check_codes(codes))
    keys.sort()
    new = keys[1:] != keys[:-1]  # (N − 1,)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1, [len(keys)]])
    return np.diff(starts)


def collision_rate(codes: Any) -> float:
    """冲突率：1 − 不同 ID 数 / N。

    无单位；[0, 1)，0 表示人人不同；总体为传入的全部行。等于「为了去重至少要改动的物品」的比例。

    Args:
        codes: (N, L) 整数编码。

    References:
        LC-Rec, Zheng et al., 2024, arXiv:2311.09049；MiniOneRec, 2025, arXiv:2510.24431。

    Examples:
        >>> collision_rate([[1, 1], [0, 5], [1, 1], [1, 1]])
        0.5
    """
    return collision_figures(codes)[0]


def collided_item_rate(codes: Any) -> float:
    """与别人共用 ID 的物品所占比例。

    定义 |{i : 存在 j ≠ i, code_j = code_i}| / N；无单位；[0, 1]，总不小于 `collision_rate`；总体为传入的全部行。

    Args:
        codes: (N, L) 整数编码。

    References:
        TIGER, Rajput et al., 2023, arXiv:2305.05065（冲突处理一节讨论的正是这些物品）。

    Examples:
        >>> collided_item_rate([[1, 1], [0, 5], [1, 1], [1, 1]])
        0.75
    """
    return collision_figures(codes)[1]


def max_collision(codes: Any) -> int:
    """最拥挤的一个 ID 上有几个物品。

    单位为「个物品」；[1, N]，1 表示没有冲突；总体为传入的全部行。TIGER 的去重位需要这么多个取值。

    Args:
        codes: (N, L) 整数编码。

    References:
        TIGER, Rajput et al., 2023, arXiv:2305.05065。

    Examples:
        >>> max_collision([[1, 1], [0, 5], [1, 1]])
        2
    """
    return collision_figures(codes)[2]


def collision_figures(codes: Any) -> Tuple[float, float, int]:
    """三个冲突指标一次排序算完：(collision_rate, collided_item_rate, max_collision)。"""
    sizes = group_sizes(codes)
    total = int(sizes.sum())
    return 1.0 - len(sizes) / total, float(sizes[sizes > 1].sum() / total), int(sizes.max())


def relative_mse(squared_error_sum: float, squared_deviation_sum: float) -> float | None:
    """相对均方误差：重建误差占「什么都不学」时误差的比例。

    定义 Σ‖x − x̂‖² / Σ‖x − μ‖²，μ 为训练行的均值；无单位；[0, ∞)，0 为完美，1 等于把每个物品都猜成均值；
    总体为两个和共同覆盖的行。与特征的尺度无关，所以不同数据之间可比。

    Args:
        squared_error_sum: Σ‖x − x̂‖² ≥ 0。
        squared_deviation_sum: Σ‖x − μ‖² ≥ 0。

    Returns:
        比值；分母为 0（所有行都等于均值）时没有定义，返回 None。

    References:
        等于 1 − R²，R² 为以训练均值作基准的决定系数（out-of-sample R²）。

    Examples:
        >>> relative_mse(1.0, 4.0)
        0.25
        >>> relative_mse(0.0, 0.0) is None
        True
    """
    if not (squared_error_sum >= 0 and squared_deviation_sum >= 0):
        raise InputError(f"sums of squares must be >= 0, got {squared_error_sum} and {squared_deviation_sum}")
    return None if squared_deviation_sum == 0 else float(squared_error_sum / squared_deviation_sum)


def _check_integers(array: np.ndarray, name: str) -> np.ndarray:
    """空列表会变成 float64，这里只对非空的挑剔。"""
    if array.size and array.dtype.kind not in "iu":
        raise InputTypeError(f"{name} must have an integer dtype, got {array.dtype}")
    return array.astype(np.int64, copy=False)  # uint64 超过 2**63 会变负，随后被「非负」拦下


def _check_counts(counts: Any) -> np.ndarray:
    """(K,) 非负整数，K ≥ 1。"""
    counts = _check_integers(np.asarray(counts), "counts")
    if counts.ndim != 1 or counts.size == 0:
        raise InputError(f"counts must have shape (K,) with K >= 1, got {counts.shape}")
    if counts.min() < 0:
        raise InputError(f"counts has a negative entry {counts.min()}; counts are >= 0")
    return counts


def check_codes(codes: Any) -> np.ndarray:
    """(N, L) 非负整数，N ≥ 1，L ≥ 1。"""
    codes = _check_integers(np.asarray(codes), "codes")
    if codes.ndim != 2 or 0 in codes.shape:
        raise InputError(f"codes must have shape (N, L) with N, L >= 1, got {codes.shape}")
    if codes.min() < 0:
        raise InputError(f"codes has a negative entry {codes.min()}; codes start at 0")
    return codes
