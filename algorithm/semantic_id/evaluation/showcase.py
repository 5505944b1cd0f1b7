"""演示：内置的 8,192 个真实物品，以及「相似物品共享前缀」该给人看哪几组。

形状字母：N 为物品数，L 为层数。只认整数数组与标签，不 import 模型；挑选规则写死，不是人挑的好看例子。
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from ..metrics.meaning import prefix_groups

__all__ = ["DEMO_CODEBOOK_SIZES", "DEMO_ITEMS", "choose_prefixes", "prefix_agreement"]

# 内置数据：WordNet 概念的标题、释义、类别与 256 维句向量；许可证在同一目录
DEMO_ITEMS = Path(__file__).parents[1] / "demo" / "items.parquet"

# 8,192 个物品：L1 每码字约 128 个，一组能看出主题；L2、L3 按冲突率选：128/512、128/1024、256/512、256/1024 依次为
# 10.3%、9.5%、7.9%、7.6%，每个码字都用得上
DEMO_CODEBOOK_SIZES = (64, 256, 1024)


def prefix_agreement(codes: np.ndarray, labels: Sequence[str], depth: int) -> float | None:
    """共享前缀的两件物品属于同一类的概率。

    定义：在所有前 `depth` 层编码相同的物品对里，标签相同的对所占比例；无单位；[0, 1]；总体为传入的全部行。
    `depth=0` 时所有物品对都算，即随机两件物品同类的概率，是应当超过的基准。

    Args:
        codes: (N, L) 整数编码。
        labels: N 个标签。
        depth: 前缀长度，0…L。

    Returns:
        比例；没有任何两件物品共享前缀时为 None。

    Examples:
        >>> prefix_agreement(np.array([[0], [0], [1]]), ["a", "a", "b"], 1)
        1.0
        >>> round(prefix_agreement(np.array([[0], [0], [1]]), ["a", "a", "b"], 0), 4)
        0.3333
    """
    _, label_ids = np.unique(np.asarray(labels), return_inverse=True)
    prefixes = _prefix_ids(codes, depth)
    together = np.bincount(prefixes).astype(np.float64)
    same = np.unique(np.stack([prefixes, label_ids]), axis=1, return_counts=True)[1].astype(np.float64)
    pairs = float((together * (together - 1)).sum())
    return None if pairs == 0 else float((same * (same - 1)).sum() / pairs)


def choose_prefixes(
    codes: np.ndarray,
    labels: Sequence[str],
    titles: Sequence[str],
    *,
    num_branches: int = 3,
    num_titles: int = 5,
) -> List[Dict[str, Any]]:
    """为每个类别挑一个有代表性的 L1 前缀，展开它最大的几个 (L1, L2)。

    规则（不看标题，所以不会挑好看的）：一个 L1 前缀归于它最多的那一类；每一类取规模居中的一个 L1 前缀
    （并列取编号小的）；在它下面取最大的 `num_branches` 个 (L1, L2)，各列行序最前的
    `num_titles` 个标题。类别按物品数从多到少。

    Args:
        codes: (N, L) 整数编码，L ≥ 2。
        labels: N 个类别。
        titles: N 个标题。
        num_branches: 每个 L1 展开几个 (L1, L2)。
        num_titles: 每组列几个标题。

    Returns:
        每类一个字典：label, prefix, num_items, purity（该类所占比例）, branches（prefix, num_items, titles）。
    """
    labels = list(labels)
    groups: Dict[int, List[int]] = {}
    for row, code in enumerate(codes[:, 0].tolist()):
        groups.setdefault(code, []).append(row)
    owned: Dict[str, List[int]] = {}
    for code in sorted(groups):
        owned.setdefault(_majority([labels[row] for row in groups[code]])[0], []).append(code)
    chosen = []
    for label, _ in Counter(labels).most_common():
        if label not in owned:
            continue  # 这一类在哪个 L1 里都不占多数
        by_size = sorted(owned[label], key=lambda code: (len(groups[code]), code))
        code = by_size[(len(by_size) - 1) // 2]
        rows = groups[code]
        chosen.append(
            {
                "label": label,
                "prefix": [code],
                "num_items": len(rows),
                "purity": _majority([labels[row] for row in rows])[1] / len(rows),
                "branches": _largest_branches(codes, rows, titles, num_branches, num_titles),
            }
        )
    return chosen


def _largest_branches(
    codes: np.ndarray, rows: List[int], titles: Sequence[str], num_branches: int, num_titles: int
) -> List[Dict[str, Any]]:
    """一个 L1 之下最大的几个 (L1, L2)；并列取编号小的。"""
    branches: Dict[int, List[int]] = {}
    for row in rows:
        branches.setdefault(int(codes[row, 1]), []).append(row)
    largest = sorted(branches.items(), key=lambda item: (-len(item[1]), item[0]))[:num_branches]
    return [
        {
            "prefix": [int(codes[members[0], 0]), second],
            "num_items": len(members),
            "titles": [titles[row] for row in members[:num_titles]],
        }
        for second, members in largest
    ]


def _prefix_ids(codes: np.ndarray, depth: int) -> np.ndarray:
    """前 `depth` 层相同的行得到同一个编号，(N,) 从 0 起。"""
    if depth == 0:
        return np.zeros(len(codes), dtype=np.int64)
    return prefix_groups(codes, depth)


def _majority(labels: List[str]) -> tuple[str, int]:
    """最多的标签与它的个数；并列取字典序小的。"""
    return min(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
