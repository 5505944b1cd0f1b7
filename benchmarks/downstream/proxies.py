"""代理指标：不训练推荐模型，只看编号就能算的数。下游的表拿它们与 Recall@10 排名对照，看谁说得准。

要加一个指标，在 `proxies_of` 里加一行；方向（越大越好还是越小越好）由相关的正负自己说。
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import pyarrow.parquet as pq

from algorithm.semantic_id.metrics import codes as metrics
from algorithm.semantic_id.metrics import meaning
from algorithm.semantic_id.metrics.behaviour import id_gini
from algorithm.semantic_id.metrics.neighbours import exact_neighbours, sample_rows
from downstream.data import Interactions

NUM_NEIGHBOURS = 10
QUERIES = 4_000


class Reference:
    """算代理指标要的参照：近邻、类目、训练部分的物品对；与编号无关，只备一次。"""

    def __init__(self, data: Interactions, folder: Path, label_column: str = "l1_category"):
        self.queries = sample_rows(data.num_items, min(QUERIES, data.num_items), 0)
        self.neighbours = exact_neighbours(data.features, NUM_NEIGHBOURS, self.queries)
        self.features = data.features - data.features.mean(axis=0, dtype=np.float64)
        self.pairs = data.train_pairs()
        held = np.stack([data.valid, data.test], axis=1)
        self.held = held[held[:, 0] != held[:, 1]]
        path = folder / "items.parquet"
        self.labels: np.ndarray | None = None
        if label_column in pq.read_schema(path).names:
            names = pq.read_table(path, columns=[label_column]).column(label_column).to_pylist()
            self.labels = np.unique(["" if name is None else name for name in names], return_inverse=True)[1]


def proxies_of(codes: np.ndarray, sizes: tuple[int, ...], reference: Reference) -> Dict[str, float | None]:
    """名字 → 数；codes 是加后缀之前的 (N, L)。"""
    counts = [metrics.code_counts(codes[:, level], size) for level, size in enumerate(sizes)]
    out: Dict[str, float | None] = {"collision rate": metrics.collision_rate(codes)}
    out["mean perplexity / K"] = float(np.mean([metrics.perplexity(count) / count.size for count in counts]))
    out["L1 perplexity / K"] = metrics.perplexity(counts[0]) / counts[0].size
    out["mean Gini"] = float(np.mean([metrics.gini(count) for count in counts]))
    out["ID Gini (FORGE)"] = id_gini(codes)
    whole = meaning.prefix_groups(codes, codes.shape[1])
    out["explained variance, whole ID"] = explained_variance(reference.features, whole)
    share = meaning.neighbour_share(codes, reference.neighbours, reference.queries)
    train, held = (meaning.co_consumption(codes, pairs) for pairs in (reference.pairs, reference.held))
    for level in range(min(2, codes.shape[1])):
        groups, name = meaning.prefix_groups(codes, level + 1), ("L1", "L1+L2")[level]
        out[f"explained variance {name}"] = explained_variance(reference.features, groups)
        out[f"neighbour share {name}"] = share[level]
        if reference.labels is not None:
            out[f"label purity {name}"] = meaning.label_purity(groups, reference.labels)
            out[f"label NMI {name}"] = meaning.normalized_mutual_information(groups, reference.labels)
        out[f"same prefix, train pairs {name}"] = train[0][level]
        out[f"lift, train pairs {name}"] = train[2][level]
        out[f"lift, held-out pairs {name}"] = held[2][level]
    return out


def explained_variance(features: np.ndarray, groups: Any) -> float:
    """前缀组解释了特征方差的几成：1 − 组内平方和 / 总平方和；features 已减去均值。组全是单件时为 1。"""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, groups, features)
    return float((np.square(sums).sum(axis=1) / np.maximum(counts, 1)).sum() / np.square(features).sum())
