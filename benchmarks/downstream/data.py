"""行为数据：每个用户一串物品，留最后一个测试、倒数第二个验证（leave-last-out）。

任何符合下面格式的两个文件都行（见 docs/guides/downstream.md）：

- items.parquet：`item_id` 整数，等于行号 0…N−1；`embedding` 定长浮点向量；可选 `title` 字符串。
- interactions.parquet：一行一个用户；`train_items` 物品号的列表，按时间先后，至少一个；`valid_item`、`test_item`
  各一个物品号。
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import List

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILES = ("items.parquet", "interactions.parquet")


@dataclass(frozen=True)
class Interactions:
    """物品与用户。

    Attributes:
        features: (N, D) float32，内容向量。
        histories: 每个用户的 train_items，各是 (n_u,) int64。
        valid, test: (U,) int64。
        digest: 两个文件的 SHA-256 前 16 位，进缓存的键。
    """

    features: np.ndarray
    histories: List[np.ndarray]
    valid: np.ndarray
    test: np.ndarray
    digest: str

    @property
    def num_items(self) -> int:
        return len(self.features)

    @property
    def num_users(self) -> int:
        return len(self.test)

    @cached_property
    def test_histories(self) -> List[np.ndarray]:
        """预测测试物品时已知的：训练部分加上验证物品。"""
        return [np.append(history, item) for history, item in zip(self.histories, self.valid, strict=True)]

    def train_pairs(self) -> np.ndarray:
        """(P, 2) 训练部分里前后相邻、不相同的物品对；验证与测试物品不在其中。"""
        steps = [pair for history in self.histories for pair in pairwise(history.tolist())]
        pairs = np.array(steps, dtype=np.int64).reshape(-1, 2)
        return pairs[pairs[:, 0] != pairs[:, 1]]


def missing(folder: Path) -> str | None:
    """缺哪个文件；不缺为 None。"""
    gone = [name for name in FILES if not (folder / name).is_file()]
    return gone[0] if gone else None


def load(folder: Path, feature_column: str = "embedding") -> Interactions:
    """读入并检查。

    Raises:
        ValueError: 列不对、物品号越界、用户没有训练物品、向量里有 NaN。
    """
    items = _read(folder / FILES[0], ("item_id", feature_column))
    users = _read(folder / FILES[1], ("train_items", "valid_item", "test_item"))
    ids = items.column("item_id").to_numpy()
    if not np.array_equal(ids, np.arange(len(ids))):
        raise ValueError(
            f"{FILES[0]}: item_id must equal the row number 0..{len(ids) - 1}; sort and renumber the items"
        )
    column = items.column(feature_column).combine_chunks()
    features = np.ascontiguousarray(column.flatten().to_numpy().reshape(len(ids), -1), dtype=np.float32)
    if not np.isfinite(features).all():
        raise ValueError(
            f"{FILES[0]}: {feature_column} row {int(np.argmin(np.isfinite(features).all(axis=1)))} has NaN"
        )
    lists = users.column("train_items").combine_chunks()
    flat, ends = (
        lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
        np.cumsum(lists.value_lengths().to_numpy()),
    )
    histories = np.split(flat, ends[:-1])
    valid, test = (users.column(name).to_numpy().astype(np.int64) for name in ("valid_item", "test_item"))
    for name, values in (("train_items", flat), ("valid_item", valid), ("test_item", test)):
        if len(values) and not (0 <= values.min() and values.max() < len(ids)):
            raise ValueError(
                f"{FILES[1]}: {name} must be item ids in [0, {len(ids)}), got {values.min()}..{values.max()}"
            )
    if empty := [row for row, history in enumerate(histories) if len(history) == 0]:
        raise ValueError(f"{FILES[1]}: user row {empty[0]} has no train_items; each user needs three items or more")
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return Interactions(features, histories, valid, test, digest.hexdigest()[:16])


def _read(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """读这几列；缺列、有空值都在门口报错。"""
    names = pq.read_schema(path).names
    if gone := [name for name in columns if name not in names]:
        raise ValueError(f"{path.name} has no column {gone[0]!r}; it has {', '.join(names)}")
    table = pq.read_table(path, columns=list(columns))
    if holes := [name for name in columns if table.column(name).null_count]:
        raise ValueError(f"{path.name}: column {holes[0]!r} has nulls; drop those rows")
    return table
