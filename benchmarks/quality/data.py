"""质量对照的数据：特征、训练与未见的划分、类目标签、共同消费的物品对。

划分只有一种：`numpy.random.default_rng(seed).permutation(N)`，前若干行训练，其余未见。`inner=True` 时先扔掉未见的行，
再把训练行按 85 / 15 切开，第二份当「未见」：挑配方只许看这一份，真正的未见行留给最后一张表。
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Callable

import numpy as np

INNER_RATE = 0.85
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Dataset:
    """一份数据：从哪里来、训练行数、默认的码本大小与种子。

    Attributes:
        files: 相对 --data-folder 的文件；第一个是特征，它的摘要进缓存的键。
        vectors: 数据文件夹 → (N, D) float32。
        train_rows: 训练行数；其余未见。
        shapes: 默认跑的码本大小。
        seeds: 默认跑的种子。
    """

    name: str
    files: tuple[str, ...]
    vectors: Callable[[Path], np.ndarray]
    train_rows: int
    shapes: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    in_repository: bool = False

    def folder(self, data_folder: Path) -> Path:
        """内置的数据不看 --data-folder。"""
        return ROOT / "algorithm" / "semantic_id" if self.in_repository else data_folder

    def missing(self, data_folder: Path) -> str | None:
        """缺哪个文件；不缺为 None。"""
        gone = [name for name in self.files if not (self.folder(data_folder) / name).is_file()]
        return gone[0] if gone else None

    def load(self, data_folder: Path) -> np.ndarray:
        """(N, D) float32，按物品编号排列。"""
        return np.ascontiguousarray(self.vectors(self.folder(data_folder)), dtype=np.float32)

    def digest(self, data_folder: Path) -> str:
        """特征文件的 SHA-256 前 16 位：数据换了，缓存就不算数。"""
        return _sha256(self.folder(data_folder) / self.files[0])

    def items(self, data_folder: Path) -> Any:
        """物品表（pyarrow.Table）：类目从这里来。"""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder(data_folder) / self.files[1], columns=["category_path"])


@cache
def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _column(path: Path, name: str) -> np.ndarray:
    """Parquet 里一列定长向量 → (N, D)。"""
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=[name]).column(name).combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


BEAUTY_SHAPES = ((256, 256, 256), (1024, 1024, 1024))
DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "beauty",
            ("beauty/embedding.f16.npy", "beauty/items.parquet", "beauty/interactions.parquet"),
            lambda folder: np.load(folder / "beauty/embedding.f16.npy", allow_pickle=False),
            10_000,
            BEAUTY_SHAPES,
            (11, 12, 13),
        ),
        # `embedding` 的文本里有类目的词，拿它量「与类目一致」是自问自答，所以另有只用标题的一份
        Dataset(
            "beauty_title",
            ("beauty/items.parquet", "beauty/items.parquet", "beauty/interactions.parquet"),
            lambda folder: _column(folder / "beauty/items.parquet", "embedding_title"),
            10_000,
            BEAUTY_SHAPES,
            (11, 12, 13),
        ),
        Dataset(
            "wordnet",
            ("wordnet/embedding.f16.npy", "wordnet/items.parquet"),
            lambda folder: np.load(folder / "wordnet/embedding.f16.npy", allow_pickle=False),
            100_000,
            ((1024, 4096, 16384),),
            (11,),
        ),
        # 内置的演示数据：不在默认名单里，没有外来数据时用来试这套工具本身
        Dataset(
            "demo",
            ("demo/items.parquet", "demo/items.parquet"),
            lambda folder: _column(folder / "demo/items.parquet", "embedding"),
            7_000,
            ((64, 128, 256),),
            (11,),
            in_repository=True,
        ),
    )
}


@dataclass(frozen=True)
class Split:
    """训练与未见的行号，都是原数据里的编号。"""

    train: np.ndarray  # (N_train,)
    unseen: np.ndarray  # (N_unseen,)


def split(num_rows: int, train_rows: int, seed: int, inner: bool) -> Split:
    """按种子划分；inner 时只在训练行里再切 85 / 15。"""
    order = np.random.default_rng(seed).permutation(num_rows)
    train, unseen = order[:train_rows], order[train_rows:]
    if inner:
        cut = int(INNER_RATE * len(train))
        train, unseen = train[:cut], train[cut:]
    return Split(train, unseen)
