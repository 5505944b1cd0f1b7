"""合成之后的特征来源：原来的来源一块一块地读，每行换成要量化的向量；训练与编码文件因此不必知道行为。

形状字母：N 物品数，H 合成之后的宽度。只读。
"""

from __future__ import annotations

from typing import Iterator

import pyarrow as pa

from ..files.source import DEFAULT_BLOCK_ROWS, Block, VectorSource
from .module import Behaviour

__all__ = ["FusedSource"]


class FusedSource(VectorSource):
    """`source` 的每一行，编号不变，向量换成 `behaviour.fuse` 的：表里有的用自己的行为行，没有的按冷启动。"""

    def __init__(self, source: VectorSource, behaviour: Behaviour) -> None:
        self._source, self._behaviour = source, behaviour
        self.num_rows, self.dim = source.num_rows, behaviour.width
        self.description, self.has_ids, self.stamp = source.description, source.has_ids, source.stamp

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """同 `VectorSource.blocks`。"""
        for block in self._source.blocks(block_rows, start, stop):
            yield Block(block.start, block.ids, self._behaviour.fuse(block.vectors, block.ids))

    def id_blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS) -> Iterator[pa.Array]:
        """编号不变。"""
        return self._source.id_blocks(block_rows)
