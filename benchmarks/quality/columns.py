"""一格的各列数字：由缓存里的编号与误差算出，不必重训。

总体：除了「未见」一列，全部在训练行上算。语义的参照（类目、近邻、共同消费的对）按数据与划分备一次，近邻存进缓存。
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from algorithm.semantic_id.metrics import codes as metrics
from algorithm.semantic_id.metrics import meaning
from algorithm.semantic_id.metrics.neighbours import exact_neighbours, sample_rows
from quality.data import DATASETS, split

NUM_NEIGHBOURS = 10
MAX_QUERIES = 12_000  # 再多就抽样：Beauty 用全部行，WordNet 抽 12,000 行，标准误 < 0.005
MAX_LACKING = 0.05
MAX_COMMON = 0.95
PREFIXES = (1, 2)


@dataclass(frozen=True)
class Reference:
    """一种划分的训练行上，语义指标要的参照。

    Attributes:
        levels: 类目深度 → (N,) int64 类目号，−1 为没有。
        queries, neighbours: 查询的行号与它们的近邻。
        pairs: 名字 → (P, 2) 训练行里的行号；没有行为数据时为空。
        distinct: 逐位不同的向量各取一行的行号。
    """

    levels: dict[int, np.ndarray]
    queries: np.ndarray
    neighbours: np.ndarray
    pairs: dict[str, np.ndarray]
    distinct: np.ndarray


@cache
def reference(dataset_name: str, seed: int, inner: bool, data_folder: Path, cache_folder: Path) -> Reference:
    """备好参照；近邻按数据摘要、划分、查询数存成 .npy。"""
    dataset = DATASETS[dataset_name]
    x = dataset.load(data_folder)
    rows = split(len(x), dataset.train_rows, seed, inner).train
    train = x[rows]
    queries = sample_rows(len(train), MAX_QUERIES, seed)
    name = f"{dataset_name}_{dataset.digest(data_folder)}_seed{seed}{'_inner' if inner else ''}"
    path = cache_folder.parent / "neighbours" / f"{name}_{len(queries)}x{NUM_NEIGHBOURS}.npy"
    if path.is_file():
        near = np.load(path, allow_pickle=False)
    else:
        near = exact_neighbours(train, NUM_NEIGHBOURS, queries)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, near.astype(np.int32))
        temporary.rename(path)
    distinct = np.unique(train, axis=0, return_index=True)[1]
    levels = {depth: labels[rows] for depth, labels in category_levels(dataset_name, data_folder).items()}
    return Reference(levels, queries, near, pairs_of(dataset_name, data_folder, rows, len(x)), np.sort(distinct))


@cache
def category_levels(dataset_name: str, data_folder: Path) -> dict[int, np.ndarray]:
    """深度 d → 每个物品的类目号，即 category_path 的前 d 节；没有这么深、或不该有标签的为 −1。

    WordNet 只看名词（别的词类没有类目树）。缺的不到 5% 的深度才用；与上一个深度分法相同的
    （例如人人都是 entity），或一个类目占了 95% 以上的，没有可看的，跳过。
    """
    paths = DATASETS[dataset_name].items(data_folder).column("category_path").to_pylist()
    if dataset_name in ("wordnet", "demo"):
        paths = [path if path and path[0].startswith("noun.") else None for path in paths]
    kept = sum(path is not None for path in paths)
    levels: dict[int, np.ndarray] = {}
    previous = 1
    for depth in range(1, 100):
        names = [tuple(path[:depth]) if path is not None and len(path) >= depth else None for path in paths]
        if sum(name is not None for name in names) <= (1 - MAX_LACKING) * kept:
            break
        numbers: dict[Any, int] = {}
        labels = np.array([-1 if name is None else numbers.setdefault(name, len(numbers)) for name in names])
        common = np.bincount(labels[labels >= 0]).max() / kept
        if len(numbers) > previous and common <= MAX_COMMON:
            levels[depth] = labels
        previous = max(previous, len(numbers))
    return levels


def pairs_of(dataset_name: str, data_folder: Path, rows: np.ndarray, total: int) -> dict[str, np.ndarray]:
    """共同消费的对，两个物品都在 `rows` 里，行号换成 `rows` 里的位置；同一物品接连出现的对去掉。

    train：每个用户 train_items 里前后相邻的两个；held-out：（valid_item, test_item）。
    """
    dataset = DATASETS[dataset_name]
    if len(dataset.files) < 3:
        return {}
    import pyarrow.parquet as pq

    users = pq.read_table(dataset.folder(data_folder) / dataset.files[2])
    histories = users.column("train_items").to_pylist()
    follow = [pair for history in histories for pair in pairwise(history)]
    held = np.stack([users.column(name).to_numpy() for name in ("valid_item", "test_item")], axis=1)
    place = np.full(total, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    out = {}
    for name, pairs in (("train", np.array(follow)), ("held-out", held)):
        placed = place[pairs]
        out[name] = placed[(placed >= 0).all(axis=1) & (placed[:, 0] != placed[:, 1])]
    return out


def figures(row: dict[str, Any], folder: Path, reading: str, reference: Reference) -> dict[str, Any]:
    """一种读法的全部数字；值是数或数的列表（逐层、逐前缀），没有的不出现。"""
    codes = np.load(folder / f"{reading.replace(' ', '-')}.train.npy", allow_pickle=False)
    measured = row["readings"][reading]
    counts = [metrics.code_counts(codes[:, i], size) for i, size in enumerate(row["key"]["sizes"])]
    out: dict[str, Any] = {
        f"relative MSE {side}": metrics.relative_mse(measured["squared_error"][side], row["deviation"][side])
        for side in ("train", "unseen")
    }
    out["collision rate"] = metrics.collision_rate(codes)
    out["collision rate, distinct"] = metrics.collision_rate(codes[reference.distinct])
    out["utilization"] = [metrics.utilization(count) for count in counts]
    out["perplexity / K"] = [metrics.perplexity(count) / count.size for count in counts]
    out["Gini"] = [metrics.gini(count) for count in counts]
    out["train CPU s"] = row["train_cpu_s"]
    out["peak MB"] = row["peak_bytes"] / 2**20
    out["encode items / CPU s"] = sum(row["rows"].values()) / max(sum(measured["encode_cpu_s"].values()), 1e-9)
    groups = {length: meaning.prefix_groups(codes, length) for length in PREFIXES if length <= codes.shape[1]}
    for depth, labels in reference.levels.items():
        has = labels >= 0
        out[f"purity depth {depth}"] = [meaning.label_purity(group[has], labels[has]) for group in groups.values()]
        out[f"NMI depth {depth}"] = [
            meaning.normalized_mutual_information(group[has], labels[has]) for group in groups.values()
        ]
    share = meaning.neighbour_share(codes, reference.neighbours, reference.queries)
    chance = meaning.prefix_chance(codes)
    out["neighbour share"] = share[: len(groups)]
    out["neighbour chance"] = chance[: len(groups)]
    for name, pairs in reference.pairs.items():
        observed, _, lift = meaning.co_consumption(codes, pairs)
        out[f"co-consumption {name}"] = observed[: len(groups)]
        out[f"lift {name}"] = lift[: len(groups)]
    return out
