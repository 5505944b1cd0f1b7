"""语义指标：相似的物品是否共享前缀。数组进，数字出，只依赖 NumPy。

形状字母：N 物品数，L 层数，l 前缀长度（1…L），Q 查询物品数，M 邻居数，P 物品对数。
「前缀组」指前 l 个编号相同的物品。这里的指标都与前缀的细碎程度有关：组越小，纯度与 NMI 越高、邻居占比越低，全是单件时
纯度为 1 而毫无意义。所以只在困惑度相近的做法之间比，或与随机水平（`prefix_chance`）、与期望之比一起看。

全部是精确计算，只有邻居占比可以只看一部分查询物品（`neighbours.sample_rows`，种子定死）。
"""

from __future__ import annotations

from typing import Any, List, Tuple

import numpy as np

from ..code_keys import lexical_keys
from ..errors import InputError, InputTypeError
from .codes import check_codes
from .neighbours import check_rows

__all__ = [
    "co_consumption",
    "label_purity",
    "neighbour_share",
    "normalized_mutual_information",
    "prefix_chance",
    "prefix_groups",
]


def prefix_groups(codes: Any, length: int) -> np.ndarray:
    """每个物品属于哪一个前缀组。

    Args:
        codes: (N, L) 整数编码，非负，N ≥ 1。
        length: 前缀长度 l，[1, L]。

    Returns:
        (N,) int64，[0, G)，按前缀的字典序编号，G 为不同前缀的个数。

    Raises:
        TypeError: 不是整数。
        ValueError: 形状不对、有负数，或 length 越界。

    Examples:
        >>> prefix_groups([[5, 1], [2, 7], [5, 3]], 1).tolist()
        [1, 0, 1]
        >>> prefix_groups([[5, 1], [2, 7], [5, 3]], 2).tolist()
        [1, 0, 2]
    """
    codes = check_codes(codes)
    if not 1 <= length <= codes.shape[1]:
        raise InputError(f"length={length} is out of range; codes has {codes.shape[1]} levels, use 1..{codes.shape[1]}")
    return np.unique(lexical_keys(codes[:, :length]), return_inverse=True)[1].reshape(-1).astype(np.int64)


def label_purity(groups: Any, labels: Any) -> float:
    """标签纯度：每组取最多的那个标签，猜中的物品所占比例。

    定义 (1/N) Σ_g max_c n_gc，n_gc 为组 g 里标签 c 的物品数；无单位；(0, 1]，不小于最常见标签的占比；总体为传入的
    全部行；精确。组全是单件时为 1，所以只在组数（困惑度）相近时比。对组号与标签的改名不变。

    Args:
        groups: (N,) 整数，例如 `prefix_groups` 的结果。
        labels: (N,) 整数或字符串，每个物品一个类目；没有类目的物品请先去掉。

    Raises:
        TypeError: 组号不是整数，或标签既不是整数也不是字符串。
        ValueError: 不是一维、为空，或长度不等。

    References:
        Manning, Raghavan & Schütze, 2008, Introduction to Information Retrieval，§16.3。

    Examples:
        >>> label_purity([0, 0, 0, 1], ["a", "a", "b", "b"])
        0.75
    """
    joint, group_of, _, total = _contingency(groups, labels)
    best = np.zeros(int(group_of.max()) + 1, dtype=np.int64)  # (G,)
    np.maximum.at(best, group_of, joint)
    return float(best.sum() / total)


def normalized_mutual_information(groups: Any, labels: Any) -> float:
    """归一化互信息：知道前缀组，类目的不确定减少了多少。

    定义 2 I(G; C) / (H(G) + H(C))，即用两个熵的算术平均归一（Vinh 等人的 NMI_sum，scikit-learn 的默认），自然对数
    （比值与底无关）；无单位；[0, 1]，0 为独立，1 为两种分法一致（改名不计）；两个熵都为 0（各只有一组）时两种分法
    相同，记为 1；总体为传入的全部行；精确。没有做随机修正：组很多时，随机分组也能得到不小的值，所以只在组数相近时比。

    Args:
        groups: (N,) 整数，例如 `prefix_groups` 的结果。
        labels: (N,) 整数或字符串。

    Raises:
        TypeError: 组号不是整数，或标签既不是整数也不是字符串。
        ValueError: 不是一维、为空，或长度不等。

    References:
        Strehl & Ghosh, 2002, JMLR 3；归一化的几种取法见 Vinh, Epps & Bailey, 2010, JMLR 11。

    Examples:
        >>> normalized_mutual_information([0, 0, 1, 1], ["a", "a", "b", "b"])
        1.0
        >>> normalized_mutual_information([0, 1, 0, 1], ["a", "a", "b", "b"])
        0.0
    """
    joint, group_of, label_of, total = _contingency(groups, labels)
    in_group = np.bincount(group_of, weights=joint)  # (G,)
    in_label = np.bincount(label_of, weights=joint)  # (C,)
    entropy = sum(-float((n / total * np.log(n / total)).sum()) for n in (in_group, in_label))
    if entropy == 0.0:
        return 1.0
    expected = in_group[group_of] / total * in_label[label_of]  # 独立时的期望件数
    information = float((joint / total * np.log(joint / expected)).sum())
    return float(np.clip(2.0 * information / entropy, 0.0, 1.0))


def neighbour_share(codes: Any, neighbours: Any, queries: Any = None) -> List[float]:
    """邻居占比：一个物品最近的邻居里，有多少与它共享前 l 个编号。

    定义：对每个前缀长度 l，(1 / QM) Σ_q Σ_m [prefix_l(q) = prefix_l(neighbour_qm)]；无单位；[0, 1]，随 l 不增；
    总体为查询物品与它们的邻居。给了全部邻居就是精确值；查询是抽样时是无偏估计，标准误不超过 0.5 / √Q。
    组越大占比自然越高：与 `prefix_chance` 一起看。

    Args:
        codes: (N, L) 整数编码。
        neighbours: (Q, M) 行号，例如 `exact_neighbours` 的结果，可以来自任何一种距离。
        queries: (Q,) 查询的行号；None 为全部 N 行，此时 Q = N。

    Returns:
        L 个比例，依次为 l = 1…L。

    Raises:
        TypeError: 不是整数。
        ValueError: 形状不对、行号越界，或 queries 与 neighbours 的行数不等。

    References:
        本项目的定义；「量化之后近邻还在不在一起」的量法见 Jégou et al., 2011, Product Quantization, TPAMI 33（召回）。

    Examples:
        >>> neighbour_share([[0, 0], [0, 1], [1, 0]], [[1], [0], [1]])
        [0.6666666666666666, 0.0]
    """
    codes = np.asarray(codes)
    groups = _all_prefix_groups(codes)
    rows = np.arange(len(codes)) if queries is None else check_rows(queries, len(codes), "queries")
    near = np.asarray(neighbours)
    if near.ndim != 2 or 0 in near.shape or len(near) != len(rows):
        raise InputError(f"neighbours must have shape (Q, M) with Q={len(rows)} and M >= 1, got {near.shape}")
    near = check_rows(near.reshape(-1), len(codes), "neighbours").reshape(near.shape)
    return [float((group[near] == group[rows][:, None]).mean()) for group in groups]


def prefix_chance(codes: Any) -> List[float]:
    """随机水平：随便另一个物品与它共享前 l 个编号的概率。

    定义 Σ_g n_g (n_g − 1) / (N (N − 1))，n_g 为前缀组的大小；无单位；[0, 1]，随 l 不增；总体为传入的全部行，
    两个不同物品的均匀随机对；精确。`neighbour_share` 与它相等，就说明前缀里没有邻近的信息。

    Args:
        codes: (N, L) 整数编码，N ≥ 2。

    Returns:
        L 个概率，依次为 l = 1…L。

    Raises:
        TypeError: 不是整数。
        ValueError: 形状不对，或只有一行。

    References:
        即「随机对落在同一组」的概率，Rand, 1971, JASA 66 里聚类比较的基本量；1 减去它是 Simpson 多样性指数。

    Examples:
        >>> prefix_chance([[0, 0], [0, 1], [1, 0]])
        [0.3333333333333333, 0.0]
    """
    groups = _all_prefix_groups(np.asarray(codes))
    total = len(groups[0])
    if total < 2:
        raise InputError("codes has 1 row; the chance level needs at least two items")
    counts = [np.bincount(group) for group in groups]
    return [float((n * (n - 1.0)).sum() / (total * (total - 1.0))) for n in counts]


def co_consumption(codes: Any, pairs: Any) -> Tuple[List[float], List[float], List[float | None]]:
    """共同消费提升：一起被消费的两个物品，比流行度相同的随机两个，更可能共享前缀多少倍。

    定义：observed_l 为 P 对里共享前 l 个编号的比例；expected_l 为把各对的第二个物品随机重排之后的同一比例，只算两个
    不同物品的对。它不用真的重排：随机一对是 (i, j) 的概率正比于 a_i b_j（i 当第一个、j 当第二个的次数），所以
    expected_l = (Σ_g A_g B_g − Σ_i a_i b_i) / (P² − Σ_i a_i b_i)，A、B 为组内之和。lift_l = observed_l / expected_l；
    无单位；[0, ∞)，1 为没有关系。总体为传入的全部对；精确。重排保住每个物品的出现次数，所以热门物品挤在一组不算功劳。

    Args:
        codes: (N, L) 整数编码。
        pairs: (P, 2) 行号，P ≥ 1；同一对可以出现多次，有方向（第一个、第二个各自重排）。

    Returns:
        (observed, expected, lift)，各 L 个，依次为 l = 1…L；expected 为 0 时 lift 没有定义，为 None。

    Raises:
        TypeError: 不是整数。
        ValueError: 形状不对、行号越界，或一对里是同一个物品。

    References:
        提升（lift）一词出自 Brin et al., 1997, SIGMOD, Dynamic Itemset Counting；以行为信号评、训 Semantic ID 见
        LETTER, Wang et al., 2024, arXiv:2405.07314。

    Examples:
        >>> observed, expected, lift = co_consumption([[0], [0], [1], [1]], [[0, 1], [2, 3]])
        >>> observed, expected, lift
        ([1.0], [0.5], [2.0])
    """
    groups = _all_prefix_groups(np.asarray(codes))
    total = len(groups[0])
    both = np.asarray(pairs)
    if both.ndim != 2 or both.shape[1] != 2 or len(both) == 0:
        raise InputError(f"pairs must have shape (P, 2) with P >= 1, got {both.shape}")
    both = check_rows(both.reshape(-1), total, "pairs").reshape(-1, 2)
    if (same := both[:, 0] == both[:, 1]).any():
        row = int(same.argmax())
        raise InputError(f"pairs row {row} pairs item {both[row, 0]} with itself; drop such rows first")
    first, second = (np.bincount(column, minlength=total).astype(np.float64) for column in both.T)  # (N,)
    itself = float((first * second).sum())
    random_pairs = float(len(both)) ** 2 - itself
    observed, expected = [], []
    for group in groups:
        observed.append(float((group[both[:, 0]] == group[both[:, 1]]).mean()))
        matched = float((np.bincount(group, weights=first) * np.bincount(group, weights=second)).sum()) - itself
        expected.append(matched / random_pairs)
    return observed, expected, [o / e if e > 0 else None for o, e in zip(observed, expected, strict=True)]


def _all_prefix_groups(codes: np.ndarray) -> List[np.ndarray]:
    """各前缀长度（1…L）的前缀组，各 (N,)。"""
    if codes.ndim != 2:
        raise InputError(f"codes must have shape (N, L) with N, L >= 1, got {codes.shape}")
    return [prefix_groups(codes, length) for length in range(1, codes.shape[1] + 1)] or [prefix_groups(codes, 1)]


def _contingency(groups: Any, labels: Any) -> Tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """非空的（组, 标签）格子：件数、组号、标签号各 (E,)，以及 N。"""
    group, label = np.asarray(groups), np.asarray(labels)
    for name, array, kinds in (("groups", group, "iu"), ("labels", label, "iuU")):
        if array.ndim != 1 or array.size == 0:
            raise InputError(f"{name} must have shape (N,) with N >= 1, got {array.shape}")
        if array.dtype.kind not in kinds:
            allowed = "integers" if kinds == "iu" else "integers or strings; drop rows without a label"
            raise InputTypeError(f"{name} must hold {allowed}, got dtype {array.dtype}")
    if len(group) != len(label):
        raise InputError(f"groups has {len(group)} rows but labels has {len(label)}; they must match")
    names, label = np.unique(label, return_inverse=True)
    group = np.unique(group, return_inverse=True)[1]
    cells, joint = np.unique(group.reshape(-1) * len(names) + label.reshape(-1), return_counts=True)
    return joint, cells // len(names), cells % len(names), len(group)
