"""训练用的行：一遍读完来源，验收、抽样、分出留出行，之后按种子打乱着反复读。

形状字母：N 来源行数，M 抽中的行数，T 训练行数，D 特征维度。

为什么不直接在来源上训练：Parquet 不能随机读，而训练每个 epoch 都要打乱。所以把抽中的行转成 float32 存一份：
小于一块的放内存，大的放临时文件，每次只读几段。内存由块决定，不由 N 决定。
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Iterator, List

import numpy as np
import torch

from ..config import TrainerConfig
from ..files.progress import OnProgress
from ..files.run_folder import ROWS_NAME
from ..files.source import VectorSource

__all__ = ["TrainingRows"]

MAX_HOLDOUT_ROWS = 8192  # 留出误差的标准误已低于 0.2%，再多只费时间
_MIN_ROWS_TO_HOLD_OUT = 20
_BLOCK_BYTES = 256 * 2**20  # 一块：256 维时 262,144 行
_READ_ROWS = 16384  # 抽样以它为单位，改动它会改变抽到的行
_CHUNK_ROWS = 4096  # 打乱时的最小读取单位
_RUN_ROWS = 64  # 抽一块行时一次连读几行：256 维时 64 KB，随机读也快；来源即使按类目排好序，各块仍各类都有
_HOLDOUT_STREAM, _SAMPLE_STREAM, _EPOCH_STREAM, _KMEANS_STREAM, _DRAW_STREAM = range(5)


class TrainingRows:
    """验收过的训练行与留出行。

    Attributes:
        num_source_rows: 来源行数 N。
        num_train_rows: 训练行数 T。
        holdout: (M − T, D) float32 张量；行数太少时为空，此时在训练行上评判。
        mean: (D,) float64，训练行均值。
        squared_deviation: Σ‖x − mean‖²，float64，训练行。
        sha256: 抽中的行的内容摘要，续训时核对数据没有换。
    """

    def __init__(
        self,
        source: VectorSource,
        config: TrainerConfig,
        folder: Path,
        progress: OnProgress | None = None,
    ):
        """读一遍来源。坏行在这里报错，此前什么也没写。

        Args:
            source: 特征来源。
            config: 用到 seed、holdout_rate、max_train_rows。
            folder: 大来源转存的临时文件放哪里；由调用者清理，出错时也是。
            progress: 每读一块以（累计行数, 总行数）调用。

        Raises:
            ValueError: 来源里有坏行。
        """
        self.num_source_rows, self.dim, self._seed = source.num_rows, source.dim, config.seed
        self.block_rows = max(_CHUNK_ROWS, _BLOCK_BYTES // (4 * source.dim))
        num_rows = min(source.num_rows, config.max_train_rows or source.num_rows)
        num_holdout = min(int(num_rows * config.holdout_rate), MAX_HOLDOUT_ROWS)
        if num_rows < _MIN_ROWS_TO_HOLD_OUT:
            num_holdout = 0
        self.num_train_rows = num_rows - num_holdout
        held = np.zeros(num_rows, dtype=bool)
        held[self._rng(_HOLDOUT_STREAM).choice(num_rows, num_holdout, replace=False)] = True

        self._path: Path | None = None
        if self.num_train_rows > self.block_rows:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / ROWS_NAME
        self._collect(source, held, progress)

    def _rng(self, *stream: int) -> np.random.Generator:
        """每种用途一条独立的随机流，互不影响。"""
        return np.random.default_rng([self._seed, *stream])

    def _collect(self, source: VectorSource, held: np.ndarray, progress: OnProgress | None) -> None:
        """一遍读完：抽样、分流、累计均值与离差（Chan 等人的分块合并公式）、算摘要。"""
        digest = hashlib.sha256()
        train: List[np.ndarray] = []
        holdout: List[np.ndarray] = []
        file = open(self._path, "wb") if self._path is not None else None
        mean, deviation, count, seen = np.zeros(self.dim), 0.0, 0, 0
        rng = self._rng(_SAMPLE_STREAM)
        try:
            for block in source.blocks(_READ_ROWS):
                rows = _sample(block.vectors, len(held) - seen, source.num_rows - block.start, rng)
                digest.update(rows.tobytes())
                mask = held[seen : seen + len(rows)]
                seen += len(rows)
                kept = rows[~mask]
                holdout.append(rows[mask])
                if len(kept):
                    block_mean = kept.mean(axis=0, dtype=np.float64)
                    delta = block_mean - mean
                    deviation += float(np.square(kept - block_mean).sum())
                    deviation += float(delta @ delta) * count * len(kept) / (count + len(kept))
                    mean += delta * (len(kept) / (count + len(kept)))
                    count += len(kept)
                    if file is not None:
                        kept.tofile(file)
                    else:
                        train.append(kept)
                if progress is not None:
                    progress(block.start + len(block.vectors), source.num_rows)
        finally:
            if file is not None:
                file.close()
        self._train = np.concatenate(train) if self._path is None else None
        self.holdout = torch.from_numpy(np.concatenate(holdout))
        self.mean, self.squared_deviation = mean, deviation
        self.sha256 = digest.hexdigest()

    def _read(self, start: int, stop: int) -> np.ndarray:
        """连续的训练行 [start, stop)；用读文件而不是内存映射，常驻内存才不会随 N 增长。"""
        if self._train is not None:
            return self._train[start:stop]
        assert self._path is not None
        count = (min(stop, self.num_train_rows) - start) * self.dim
        data = np.fromfile(self._path, dtype=np.float32, count=count, offset=start * self.dim * 4)
        return data.reshape(-1, self.dim)

    @property
    def typical_size(self) -> float:
        """训练行各分量的均方根，去均值；所有行都相同时取均值的大小，全零时为 1。"""
        spread = math.sqrt(self.squared_deviation / (self.num_train_rows * self.dim))
        return spread or float(np.abs(self.mean).max()) or 1.0

    def batches(self, epoch: int, batch_size: int) -> Iterator[torch.Tensor]:
        """第 epoch 遍的打乱批次；顺序只由 (seed, epoch) 决定，因此断点续训得到同样的批次。

        不超过一块时是完全打乱；更大时打乱各段的次序，再在一块之内打乱行。
        """
        rng = self._rng(_EPOCH_STREAM, epoch)
        chunks = rng.permutation(math.ceil(self.num_train_rows / _CHUNK_ROWS))
        per_block = max(1, self.block_rows // _CHUNK_ROWS)
        left = np.empty((0, self.dim), dtype=np.float32)
        for first in range(0, len(chunks), per_block):
            starts = chunks[first : first + per_block] * _CHUNK_ROWS
            block = np.concatenate([left] + [self._read(s, s + _CHUNK_ROWS) for s in starts.tolist()])
            order = rng.permutation(len(block))
            last = first + per_block >= len(chunks)
            stop = len(block) if last else len(block) - len(block) % batch_size
            for start in range(0, stop, batch_size):
                yield torch.from_numpy(block[order[start : min(start + batch_size, stop)]])
            left = block[order[stop:]]

    def order(self, epoch: int) -> np.ndarray:
        """第 epoch 遍的行序 (N,)，对着 `draw(0)` 的行；一块放得下时才用得上。"""
        return self._rng(_EPOCH_STREAM, epoch).permutation(self.num_train_rows)

    @property
    def fits_one_block(self) -> bool:
        """训练行是否一块放得下。"""
        return self.num_train_rows <= self.block_rows

    def draw(self, number: int) -> torch.Tensor:
        """第 number 次抽出的一块行 (S, D) float32，只读；一块放得下时每次都是全部的行。

        只由 (seed, number) 决定。按 64 行的小段不放回抽取，所以不必像 `sample` 那样读完全部的行。
        """
        if self.fits_one_block:
            return torch.from_numpy(self._read(0, self.num_train_rows))
        rng = self._rng(_DRAW_STREAM, number)
        num_runs = math.ceil(self.num_train_rows / _RUN_ROWS)
        runs = np.sort(rng.choice(num_runs, self.block_rows // _RUN_ROWS, replace=False)) * _RUN_ROWS
        return torch.from_numpy(np.concatenate([self._read(s, s + _RUN_ROWS) for s in runs.tolist()]))

    def sample(self) -> torch.Tensor:
        """k-means 与最后的测量用的行：不超过一块，多则均匀抽样，(S, D) float32 新内存。"""
        if self.fits_one_block:
            return torch.from_numpy(self._read(0, self.num_train_rows).copy())
        rng = self._rng(_KMEANS_STREAM)
        parts, need = [], self.block_rows
        for start in range(0, self.num_train_rows, _CHUNK_ROWS):
            part = _sample(self._read(start, start + _CHUNK_ROWS), need, self.num_train_rows - start, rng)
            parts.append(part)
            need -= len(part)
        return torch.from_numpy(np.concatenate(parts))


def _sample(block: np.ndarray, need: int, remaining: int, rng: np.random.Generator) -> np.ndarray:
    """从还剩 remaining 行的流里均匀抽 need 行，这一块该抽的那部分；保持原有次序，不需要 O(N) 内存。"""
    if need >= remaining:
        return block
    count = int(rng.hypergeometric(len(block), remaining - len(block), need)) if need else 0
    rows = np.sort(rng.choice(len(block), count, replace=False))
    return block[rows]
