"""生成的物品与只取整的「模型」：量物品表自己的开销，不让编码淹没它；行可以从任何地方读起，所以多少行都不占内存。"""

from __future__ import annotations

from typing import Iterator

import numpy as np
import pyarrow as pa
import torch

from algorithm.semantic_id.files.source import Block, VectorSource

SIZES = (1024, 4096, 16384)
TOPICS = 1_000_000
TWINS = 0.02


class GeneratedItems(VectorSource):
    """第 i 块由种子 i 生成，可以从任何一行读起；编号是打乱的整数或字符串。"""

    dim, has_ids, _step = 4, True, 1 << 16

    def __init__(self, num_rows: int, text: bool) -> None:
        self.num_rows, self._text = num_rows, text
        self.description = f"generated ({num_rows} x 4, {'string' if text else 'int64'} ids)"
        self.stamp = self.description

    def _ids(self, start: int, stop: int) -> pa.Array:
        # 奇数乘法模 2⁴⁰ 是一一对应，所以编号不重复，而次序全乱
        ids = (np.arange(start, stop, dtype=np.int64) * 0x9E3779B97) & ((1 << 40) - 1)
        return pa.array(ids) if not self._text else pa.array(np.char.mod("item-%013d", ids))

    def id_blocks(self, block_rows: int = 65536) -> Iterator[pa.Array]:
        for start in range(0, self.num_rows, block_rows):
            yield self._ids(start, min(start + block_rows, self.num_rows))

    def _rows(self, number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        topic = (TOPICS * rng.random(self._step) ** 2.5).astype(np.int64)  # 热门前缀
        mixed = (topic * 0x9E3779B1) & 0xFFFFFFFF
        x = np.empty((self._step, 4), np.float32)
        x[:, 0], x[:, 1] = mixed % SIZES[0], (mixed // SIZES[0]) % SIZES[1]
        x[:, 2] = rng.random(self._step) * (SIZES[2] - 1)
        x[:, 3] = rng.random(self._step)
        twin = rng.random(self._step) < TWINS
        x[twin] = x[rng.integers(0, self._step, int(twin.sum()))]
        return x

    def blocks(self, block_rows: int = 65536, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        stop = self.num_rows if stop is None else stop
        for at in range(start, stop, block_rows):
            end, parts = min(at + block_rows, stop), []
            for number in range(at // self._step, (end - 1) // self._step + 1):
                base = number * self._step
                parts.append(self._rows(number)[max(at - base, 0) : end - base])
            yield Block(at, self._ids(at, end), np.concatenate(parts))


class GeneratedModel:
    """(l1, l2, p, 余量) → (l1, l2, round p)；误差 (p − l3)² + 余量 + 4，换前缀另加一点。"""

    embedding_dim, codebook_sizes, training_figures = 4, SIZES, {}
    feature_mean = torch.zeros(4)

    def fingerprint(self) -> str:
        return "0" * 64

    def encode_codes(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], x[:, 1], x[:, 2].round()], dim=1).long()

    def path_errors(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        last = (x[:, 2].double() - codes[:, 2]).square() + x[:, 3].double() + 4
        return torch.stack([last + 100, last + 10, last], dim=1)

    def encode_candidates(
        self, x: torch.Tensor, num: int, prefixes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own = self.encode_codes(x)
        step = torch.arange(num)
        if prefixes is not None:
            low = (own[:, 2:] - num // 2).clamp(0, SIZES[2] - num)
            codes = torch.stack([*(own[:, i : i + 1].expand(-1, num) for i in (0, 1)), low + step], dim=2)
            errors = (x[:, 2:3].double() - codes[:, :, 2]).square() + x[:, 3:4].double() + 4
        else:
            l2 = (own[:, 1:2] + step) % SIZES[1]
            l3 = (own[:, 2:3] + step * 977) % SIZES[2]
            codes = torch.stack([own[:, :1].expand(-1, num), l2, l3], dim=2)
            errors = self.path_errors(x, own)[:, 2:] * (1 + 0.1 * step)
        errors, order = torch.sort(errors, dim=1, stable=True)
        return codes.gather(1, order[:, :, None].expand(-1, -1, 3)), errors
