"""PrefixTrie：物品表里全部语义 ID 的前缀树，一个不可变的对象，几条 CSR 张量，放在任何设备上。

形状字母：R 一次查询的行数（批 × 束），L 层数，K_l 第 l 层大小，E_l 长度为 l 的不同前缀个数，W 这些行里最多的孩子数。

- 结点与边同号：第 l 层的第 e 条边通向第 l+1 层的第 e 个结点，往下走一步就是一次下标运算，没有指针可追。
- 各层有自己的大小：表与掩码只有 K_l 宽，没有 21,504² 的大表。
- 查询按批进行，没有逐束的 Python 循环；只用与设备无关的 PyTorch 运算。
- 过滤（售罄、地区、年龄）是另一个视图：共用同一份张量，只多每条边一个比特，不重建。
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from ..errors import InputError, InputTypeError
from .trie_build import TrieArrays, build_arrays, check_codes, codes_of_catalog
from .trie_file import read_trie, write_trie
from .trie_filter import EmptyFilterError, any_child, item_mask

__all__ = ["Children", "PrefixTrie"]


# 一层的掩码表最多这么大：1024 × 4096 是 4 MB，16384 × 16384 就太大了，那样的层只用 CSR
_MAX_TABLE_BYTES = 1 << 23


class Children(NamedTuple):
    """一批结点的孩子，右侧补齐到同宽 W。

    Attributes:
        codes: (R, W) int64 编号，每行递增；补齐处的值没有意义，但在 [0, K_l) 之内。
        nodes: (R, W) int64 下一层的结点；补齐处没有意义，但不越界。
        valid: (R, W) bool，补齐的与被过滤掉的为 False。
    """

    codes: torch.Tensor
    nodes: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class PrefixTrie:
    """全部语义 ID 的前缀树；用 `build` 或 `load` 得到，不要直接构造。

    Attributes:
        sizes: (K_1, …, K_L)。
        pointers: L 个 (E_{l-1} + 1,) 行指针；edges: L 个 (E_l,) 编号；order 与 repeats 见 `trie_build.py`。
        alive: 过滤后 L 个 (E_l,) bool，这条边之下还有没有物品；None 表示没有过滤。
        kept: 过滤后 (N + 1,) 前 i 个（按 order）里留下的物品数；None 表示没有过滤。
    """

    sizes: Tuple[int, ...]
    pointers: Tuple[torch.Tensor, ...]
    edges: Tuple[torch.Tensor, ...]
    order: torch.Tensor
    repeats: torch.Tensor
    alive: Tuple[torch.Tensor, ...] | None = None
    kept: torch.Tensor | None = None
    # 每层一个结点最多几个孩子、边的密度，由上面的张量算出
    max_children: Tuple[int, ...] = field(init=False)
    densities: Tuple[float, ...] = field(init=False)
    _tables: Dict[int, torch.Tensor] = field(init=False)  # 第一次用到时才造的，见 `table` 与 `first_level`

    def __post_init__(self) -> None:
        """算出派生的小数字；放在构造时，解码时就不必再等设备。"""
        most, densities = [], []
        for level, size in enumerate(self.sizes):
            pointer = self.pointers[level]
            most.append(int(pointer.diff().max()))
            num_edges = len(self.edges[level]) if self.alive is None else int(self.alive[level].sum())
            densities.append(num_edges / ((len(pointer) - 1) * size))
        object.__setattr__(self, "max_children", tuple(most))
        object.__setattr__(self, "densities", tuple(densities))
        object.__setattr__(self, "_tables", {})

    @classmethod
    def build(cls, codes: Any, sizes: Sequence[int] | None = None, *, device: str | torch.device = "cpu") -> PrefixTrie:
        """从编码或物品表建树；重复的行共用一个叶子。

        Args:
            codes: (N, L) 整数数组或张量，一行一个物品；或一个打开的物品表（`catalog.Catalog`），连去重位一起。
            sizes: (K_1, …, K_L)，含去重位；None 取物品表里的，不是物品表就取每列最大值加一。
            device: 放在哪里；建树总在 CPU 上。

        Raises:
            TypeError: 不是整数。
            ValueError: 形状、层数或编号不对（指出第一个坏行），或没有物品。

        >>> trie = PrefixTrie.build(np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0]]), (2, 2, 4))
        >>> trie.allowed(torch.tensor([[0, 1], [1, 1]])).tolist()
        [[False, False, True, True], [False, False, False, False]]
        """
        if all(hasattr(codes, name) for name in ("tables", "id_columns", "id_sizes")):
            codes, sizes = codes_of_catalog(codes, sizes)
        elif isinstance(codes, torch.Tensor):
            codes = codes.detach().cpu().numpy()
        array = np.asarray(codes)
        checked = check_codes(array, sizes)
        return cls._of(build_arrays(array, checked), checked, device)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> PrefixTrie:
        """读回 `save` 写出的文件，核对校验和与结构。

        Raises:
            FileNotFoundError: 文件不存在。
            TrieFileError: 不是前缀树、被截断或改动。
        """
        arrays, sizes = read_trie(Path(path))
        return cls._of(arrays, sizes, device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """原子地写成一个 safetensors 文件；过滤不随之保存，它属于某一次请求。"""
        pointers = tuple(pointer.cpu().numpy() for pointer in self.pointers)
        edges = tuple(edge.cpu().numpy() for edge in self.edges)
        rest = (tensor.cpu().numpy() for tensor in (self.order, self.repeats))
        write_trie(Path(path), TrieArrays(pointers, edges, *rest), self.sizes)

    @classmethod
    def _of(cls, arrays: TrieArrays, sizes: Tuple[int, ...], device: str | torch.device) -> PrefixTrie:
        """NumPy 数组 → 某个设备上的树。"""
        pointers, edges = (tuple(torch.from_numpy(a).to(device) for a in group) for group in arrays[:2])
        order, repeats = (torch.from_numpy(array).to(device) for array in arrays[2:])
        return cls(sizes, pointers, edges, order, repeats)

    def to(self, device: str | torch.device) -> PrefixTrie:
        """搬到另一个设备；已经在那里就是自己。"""
        if torch.device(device) == self.device:
            return self

        def move(tensors: Tuple[torch.Tensor, ...]) -> Tuple[torch.Tensor, ...]:
            return tuple(tensor.to(device) for tensor in tensors)

        return replace(
            self,
            pointers=move(self.pointers),
            edges=move(self.edges),
            order=self.order.to(device),
            repeats=self.repeats.to(device),
            alive=None if self.alive is None else move(self.alive),
            kept=None if self.kept is None else self.kept.to(device),
        )

    @property
    def device(self) -> torch.device:
        """张量所在的设备。"""
        return self.order.device

    @property
    def num_levels(self) -> int:
        """层数 L。"""
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """物品数 N，含共用 ID 的；过滤后是留下的。"""
        return len(self.order) if self.kept is None else int(self.kept[-1])

    @property
    def num_ids(self) -> int:
        """不同的 ID 数；过滤后是还有物品的。"""
        return len(self.edges[-1]) if self.alive is None else int(self.alive[-1].sum())

    @property
    def nbytes(self) -> int:
        """全部张量的字节数。"""
        owned = [*self.pointers, *self.edges, self.order, self.repeats, self.kept, *(self.alive or ())]
        owned += self._tables.values()
        return sum(tensor.nbytes for tensor in owned if tensor is not None)

    def __repr__(self) -> str:
        return f"PrefixTrie(sizes={self.sizes}, num_items={self.num_items}, num_ids={self.num_ids}, {self.device})"

    # ---- 查询 ----

    def allowed(self, prefixes: torch.Tensor) -> torch.Tensor:
        """前缀之后可以接哪些编号。

        Args:
            prefixes: (R, l) 整数张量，0 ≤ l < L；l = 0 问的是第一层。

        Returns:
            (R, K_{l+1}) bool；不存在的前缀整行为 False。

        Raises:
            TypeError: 不是整数张量。
            ValueError: 形状不对，或已经是完整的 ID。
        """
        level, nodes = self._walk_open(prefixes)
        return self.mask(level, nodes)

    def allowed_codes(self, prefixes: torch.Tensor) -> Children:
        """同 `allowed`，但给出编号本身，(R, W)；W 通常远小于 K_l。"""
        level, nodes = self._walk_open(prefixes)
        return self.children(level, nodes)

    def walk(self, prefixes: torch.Tensor) -> torch.Tensor:
        """(R, l) 前缀 → (R,) 结点编号；不存在或已被过滤的为 −1，越界的编号同样只是「不存在」。"""
        nodes = torch.zeros(len(prefixes), dtype=torch.int64, device=self.device)  # 根
        for level in range(prefixes.shape[1]):
            nodes = self.step(level, nodes, prefixes[:, level])
        return nodes

    def step(self, level: int, nodes: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """从第 level 层（0 起）的结点走一步：在各自的孩子里二分查找。

        Args:
            level: 已经走了几步。
            nodes: (R,) 结点，−1 表示已经不在树里。
            codes: (R,) 编号。

        Returns:
            (R,) 下一层的结点，−1 表示没有。
        """
        edges, pointer = self.edges[level], self.pointers[level]
        last = len(edges) - 1
        start = nodes.clamp(min=0)
        low, end = pointer[start].long(), pointer[start + 1].long()
        high = end
        if level == 0 and len(edges) == self.sizes[0]:  # 第一层全都在：编号就是下标
            low = codes.long()
        else:
            for _ in range(self.max_children[level].bit_length()):
                middle = (low + high) >> 1
                right = (edges[middle.clamp(max=last)] < codes) & (low < high)
                low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
        place = low.clamp(min=0, max=last)
        found = (nodes >= 0) & (low < end) & (edges[place] == codes)
        if self.alive is not None:
            found &= self.alive[level][place]
        return torch.where(found, place, -1)

    def children(self, level: int, nodes: torch.Tensor) -> Children:
        """第 level 层（0 起）结点 (R,) 的孩子；−1 的结点没有孩子。"""
        spans = self.spans(level, nodes.clamp(min=0))  # (R, 2)
        spans[:, 1] = torch.where(nodes >= 0, spans[:, 1], spans[:, 0])
        most = int((spans[:, 1] - spans[:, 0]).max()) if len(nodes) else 0
        return self.gather_children(level, spans, max(1, most))

    def spans(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """(…) 结点 → (…, 2) 孩子的边的起止；结点须 ≥ 0。"""
        pairs = self.pointers[level].unfold(0, 2, 1)  # (E, 2) 相邻两个指针的视图：一次取出一对
        return pairs.index_select(0, nodes.reshape(-1)).view(*nodes.shape, 2)

    def gather_children(self, level: int, spans: torch.Tensor, most: int) -> Children:
        """(R, 2) 起止 → 孩子，补齐到 most 个。"""
        place = spans[:, :1] + torch.arange(most, device=self.device)  # (R, W) int64
        valid = place < spans[:, 1:]
        place.clamp_(max=len(self.edges[level]) - 1)
        if self.alive is not None:
            valid &= self.alive[level].take(place)
        return Children(self.edges[level].take(place).long(), place, valid)

    def first_level(self) -> torch.Tensor | None:
        """(2, E) 第一层还有物品的结点与编号，int64；每个编号都在时为 None，结点就是编号。第一次用到时算好留着。"""
        if self.densities[0] == 1.0:
            return None
        if -1 not in self._tables:
            nodes = torch.arange(len(self.edges[0]), device=self.device)
            if self.alive is not None:
                nodes = nodes[self.alive[0]]
            self._tables[-1] = torch.stack([nodes, self.edges[0][nodes].long()])
        return self._tables[-1]

    def table(self, level: int) -> torch.Tensor | None:
        """第 level 层（0 起）全部结点的掩码 (E_{level}, K) bool；第一次用到时造好留着，太大的层没有。"""
        if level not in self._tables:
            pointer, size = self.pointers[level], self.sizes[level]
            num_nodes = len(pointer) - 1
            if num_nodes * size > _MAX_TABLE_BYTES:
                return None
            parent = torch.repeat_interleave(torch.arange(num_nodes, device=self.device), pointer.diff().long())
            table = torch.zeros(num_nodes * size, dtype=torch.bool, device=self.device)
            table[parent * size + self.edges[level]] = True if self.alive is None else self.alive[level]
            self._tables[level] = table.view(num_nodes, size)
        return self._tables[level]

    def mask(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """第 level 层（0 起）结点的孩子，写成 (R, K_l) bool。"""
        codes, _, valid = self.children(level, nodes)
        # 补齐处写进多出来的一列，再把那一列丢掉：写进任何真的列都可能盖掉一个真的孩子
        wide = torch.zeros(len(nodes), self.sizes[level] + 1, dtype=torch.bool, device=self.device)
        wide.scatter_(1, torch.where(valid, codes, self.sizes[level]), True)
        return wide[:, :-1]

    def find(self, codes: torch.Tensor) -> torch.Tensor:
        """完整的 ID → 物品行号（建树时的第几行）。

        Args:
            codes: (R, L)。

        Returns:
            (R,) int64；不存在或已被过滤的为 −1；几个物品共用一个 ID 时取留下的里面行号最小的。
        """
        if codes.ndim != 2 or codes.shape[1] != self.num_levels:
            raise InputError(f"codes have shape {tuple(codes.shape)}; whole IDs have shape (R, {self.num_levels})")
        leaves = self.walk(codes.to(self.device))
        place = self._first_items(leaves.clamp(min=0))
        if self.kept is not None and len(self.repeats):
            # 这片叶子里第一个留下的物品：累计数第一次超过起点处的地方
            place = torch.searchsorted(self.kept, self.kept[place] + 1) - 1
        return torch.where(leaves >= 0, self.order[place.clamp(max=len(self.order) - 1)].long(), -1)

    # ---- 过滤 ----

    def filter(self, *, allow: Any = None, deny: Any = None) -> PrefixTrie:
        """只留下一部分物品的视图：不重建、不改动自己，可以叠加。

        Args:
            allow: (N,) bool，留下为 True 的物品，次序同建树时的行。
            deny: (N,) bool，去掉为 True 的物品；与 allow 同时给时两者都要满足。

        Returns:
            共用同一份张量的新树；一个前缀只有在它之下还有物品时才允许。

        Raises:
            TypeError: 不是 bool 数组。
            ValueError: 长度不是 N，或两个都没给。
            EmptyFilterError: 一个物品也不剩。
        """
        if allow is None and deny is None:
            raise InputError("filter needs allow or deny: a bool mask of shape (N,) over the items")
        keep = torch.ones(len(self.order), dtype=torch.bool, device=self.device)  # (N,) 按 order
        if self.kept is not None:
            keep &= self.kept[1:] > self.kept[:-1]
        for name, mask in (("allow", allow), ("deny", deny)):
            if mask is not None:
                chosen = item_mask(mask, len(self.order), name).to(self.device)[self.order.long()]
                keep &= chosen if name == "allow" else ~chosen
        kept = torch.nn.functional.pad(keep.cumsum(0, dtype=torch.int32), (1, 0))  # (N + 1,)
        if int(kept[-1]) == 0:
            raise EmptyFilterError(
                f"the filter leaves none of {self.num_items} items, so nothing can be generated; loosen allow or deny"
            )
        if len(self.repeats):
            keep = any_child(keep, self._first_items(torch.arange(len(self.edges[-1]) + 1, device=self.device)))
        alive: List[torch.Tensor] = [keep]
        for level in range(self.num_levels - 1, 0, -1):
            alive.insert(0, any_child(alive[0], self.pointers[level]))
        return replace(self, alive=tuple(alive), kept=kept)

    def _first_items(self, leaves: torch.Tensor) -> torch.Tensor:
        """叶子 → 它的第一个物品在 order 里的位置：前面每有一个重复就往后推一位。"""
        if len(self.repeats) == 0:
            return leaves
        return leaves + torch.searchsorted(self.repeats, leaves.to(self.repeats.dtype))

    def _walk_open(self, prefixes: torch.Tensor) -> Tuple[int, torch.Tensor]:
        """验收前缀，返回 (已经走了几层, 结点)。"""
        if not isinstance(prefixes, torch.Tensor) or prefixes.dtype.is_floating_point or prefixes.dtype == torch.bool:
            kind = prefixes.dtype if isinstance(prefixes, torch.Tensor) else type(prefixes).__name__
            raise InputTypeError(f"prefixes must be an integer torch.Tensor of shape (R, l), got {kind}")
        if prefixes.ndim != 2 or prefixes.shape[1] >= self.num_levels:
            raise InputError(
                f"prefixes have shape {tuple(prefixes.shape)}; need (R, l) with l < {self.num_levels}: a whole ID has "
                "no continuation"
            )
        return prefixes.shape[1], self.walk(prefixes.to(self.device))
