"""`bench_decode.py` 的参赛者：逐层走一步的几种做法，都按各自的文字重写，不抄代码。出处见 `bench_decode.py`。"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch

from algorithm.semantic_id.decoding import PrefixTrie
from algorithm.semantic_id.decoding.beam_decoding import advance, normalized

__all__ = ["BATCH", "BEAMS", "LEVEL_METHODS", "SIZES"]

SIZES = (1024, 4096, 16384)
BATCH, BEAMS = 32, 20
INF = math.inf


class Step(NamedTuple):
    """一步之后的束；state 由各家自己定义。"""

    scores: torch.Tensor  # (B, M)
    parents: torch.Tensor  # (B, M)
    codes: torch.Tensor  # (B, M)
    state: Any


# ---- 逐层的参赛者：from_logits(level, state, scores, logits) 与 from_logprobs ----


class Ours:
    def __init__(self, codes: np.ndarray):
        self.trie = PrefixTrie.build(codes, SIZES)

    def start(self) -> Any:
        return torch.zeros(BATCH, 1, dtype=torch.int64)

    def from_logprobs(self, level: int, state: Any, scores: torch.Tensor, logprobs: torch.Tensor) -> Step:
        return Step(*advance(self.trie, level, state, scores, logprobs, BEAMS))

    def from_logits(self, level: int, state: Any, scores: torch.Tensor, logits: torch.Tensor) -> Step:
        values, normalizer = normalized(logits, level)
        offset = scores if normalizer is None else scores - normalizer.view_as(scores)
        return Step(*advance(self.trie, level, state, offset, values, BEAMS))


class Peer:
    """对照共用的外壳：归一化都用 log_softmax，如 STATIC 与 generate。"""

    def from_logits(self, level: int, state: Any, scores: torch.Tensor, logits: torch.Tensor) -> Step:
        return self.from_logprobs(level, state, scores, torch.log_softmax(logits, dim=-1))

    def from_logprobs(self, level: int, state: Any, scores: torch.Tensor, logprobs: torch.Tensor) -> Step:
        raise NotImplementedError


class Static(Peer):
    """前两层稠密、其余 CSR；每步的运算次序同原文的 PyTorch 版。"""

    def __init__(self, codes: np.ndarray):
        trie = PrefixTrie.build(codes, SIZES)  # 借它去重；下面的表是 STATIC 自己的
        first, second = (trie.table(level) for level in (0, 1))
        assert first is not None
        assert second is not None
        self.start_mask, self.dense_mask = first[0].clone(), torch.zeros(SIZES[:2], dtype=torch.bool)
        present = trie.edges[0].long()
        self.dense_mask[present] = second
        self.dense_states = torch.zeros(SIZES[:2], dtype=torch.int32)
        self.dense_states[self.dense_mask] = torch.arange(len(trie.edges[1]), dtype=torch.int32)
        token = trie.edges[2].int()
        self.packed = torch.stack([token, torch.zeros_like(token)], dim=1)  # (E, 2) [词, 下一状态]；末层的下一状态是 0
        self.indptr = trie.pointers[2].int()
        self.limit = int(self.indptr.diff().max())

    def start(self) -> Any:
        return None

    def from_logprobs(self, level: int, state: Any, scores: torch.Tensor, logprobs: torch.Tensor) -> Step:
        minus_inf = torch.tensor(-INF)
        if level == 0:
            best, codes = torch.topk(torch.where(self.start_mask, logprobs, minus_inf), BEAMS, dim=-1)
            return Step(best, torch.zeros_like(codes), codes, codes)
        flat_state = state.view(-1)
        if level == 1:
            masked = torch.where(self.dense_mask[flat_state], logprobs, minus_inf)
            values, tokens = torch.topk(masked, BEAMS, dim=-1)
            states = self.dense_states[flat_state.unsqueeze(1), tokens]
        else:
            begin = self.indptr[flat_state.long()]
            length = self.indptr[flat_state.long() + 1] - begin
            offsets = torch.arange(self.limit)
            place = (begin.unsqueeze(1) + offsets).clamp(max=len(self.packed) - 1)
            gathered = self.packed[place]
            tokens, states = gathered[..., 0], gathered[..., 1]
            values = logprobs.gather(1, tokens.long().clamp(max=SIZES[level] - 1))
            values = torch.where(offsets < length.unsqueeze(1), values, minus_inf)
        width = values.shape[1]
        total = (scores.unsqueeze(2) + values.view(BATCH, BEAMS, width)).view(BATCH, BEAMS * width)
        best, chosen = torch.topk(total, BEAMS, dim=-1)
        codes = tokens.view(BATCH, -1).gather(1, chosen).long()
        return Step(best, chosen // width, codes, states.view(BATCH, -1).gather(1, chosen))


class Allowed(Peer):
    """prefix_allowed_tokens_fn 一类：逐束在 Python 里问允许什么，写掩码，再选。"""

    def __init__(self, codes: np.ndarray, offsets: Sequence[int] = (0, 0, 0)):
        self.offsets = np.asarray(offsets)
        self.build([tuple(row) for row in (codes.astype(np.int64) + self.offsets).tolist()])

    def build(self, rows: List[Tuple[int, ...]]) -> None:
        raise NotImplementedError

    def get(self, prefix: List[int]) -> List[int]:
        raise NotImplementedError

    def start(self) -> Any:
        return torch.zeros(BATCH, 1, 0, dtype=torch.int64)

    def from_logprobs(self, level: int, state: Any, scores: torch.Tensor, logprobs: torch.Tensor) -> Step:
        mask = torch.full_like(logprobs, -INF)
        for row, prefix in enumerate(state.flatten(0, 1)):
            mask[row, self.get(prefix.tolist())] = 0
        total = (scores.unsqueeze(2) + (logprobs + mask).view(BATCH, -1, SIZES[level])).view(BATCH, -1)
        best, chosen = torch.topk(total, BEAMS, dim=-1)
        parents, codes = chosen // SIZES[level], chosen % SIZES[level]
        kept = state.gather(1, parents[..., None].expand(-1, -1, level))
        return Step(best, parents, codes, torch.cat([kept, codes[..., None]], dim=2))


class DictTrie(Allowed):
    """LC-Rec：嵌套 dict，从根走。"""

    def build(self, rows: List[Tuple[int, ...]]) -> None:
        self.root: Dict[int, Any] = {}
        for row in rows:
            node = self.root
            for code in row:
                node = node.setdefault(code, {})

    def get(self, prefix: List[int]) -> List[int]:
        node = self.root
        for code in prefix:
            node = node.get(code, {})
        return list(node.keys())


class PrefixHash(Allowed):
    """MiniOneRec：前缀字符串 → 允许的词，一次查到。"""

    def build(self, rows: List[Tuple[int, ...]]) -> None:
        allowed: Dict[str, set[int]] = {}
        for row in rows:
            for depth, code in enumerate(row):
                allowed.setdefault("-".join(map(str, row[:depth])), set()).add(code)
        self.allowed = {key: list(values) for key, values in allowed.items()}

    def get(self, prefix: List[int]) -> List[int]:
        return self.allowed.get("-".join(map(str, prefix)), [])


class Marisa(Allowed):
    """GENRE：每个词一个字符，枚举前缀之后的键。"""

    def build(self, rows: List[Tuple[int, ...]]) -> None:
        import marisa_trie

        self.trie = marisa_trie.Trie("".join(map(chr, row)) for row in rows)
        self.first = list({row[0] for row in rows})

    def get(self, prefix: List[int]) -> List[int]:
        if not prefix:
            return self.first
        key = "".join(map(chr, prefix))
        return list({ord(word[len(key)]) for word in self.trie.keys(key)})


LEVEL_METHODS: Dict[str, Callable[[np.ndarray], Any]] = {
    "semid": Ours,
    "STATIC": Static,
    "字典（LC-Rec）": DictTrie,
    "前缀散列（MiniOneRec）": PrefixHash,
    "marisa-trie": Marisa,
}
