"""LogitsProcessor 与逐行数物品的参照一致：孩子少的层、孩子多的层，过滤、死束、混排，词表两端。"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="needs the extra hf")

from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout
from algorithm.semantic_id.decoding.beam_decoding import TABLE_FRACTION
from algorithm.semantic_id.decoding.hf import SemanticIDLogitsProcessor

# 第一层就少孩子的、后面才少的、只有一层的、一结点全有而别的很少的
SHAPES = [(400, 300), (20, 600, 900), (700,), (4, 300, 5, 800), (3, 4, 5)]


class Case:
    """一棵随机的树、一种词号排法、一批行：有的在树里，有的半路走错，有的是别的词。"""

    def __init__(self, sizes, seed, offset, extra, filtered):
        rng = np.random.default_rng(seed)
        pools = [rng.choice(size, min(size, int(rng.integers(2, 9))), replace=False) for size in sizes]
        pools[-1] = np.append(pools[-1], [0, sizes[-1] - 1])  # 两端的编号：补齐处最容易盖掉它们
        self.codes = np.stack([rng.choice(pool, 60) for pool in pools], axis=1)
        self.trie = PrefixTrie.build(self.codes, sizes)
        self.kept = np.ones(60, bool)
        if filtered:
            self.kept = rng.random(60) < 0.4
            self.kept[0] = True
            self.trie = self.trie.filter(allow=self.kept)
        gaps = np.cumsum(rng.integers(0, 3, len(sizes))) * (extra > 0)  # 层与层之间也可以有别的词
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) + gaps + offset
        self.layout = TokenLayout(sizes, tuple(starts.tolist()))
        self.width = self.layout.vocab_size + extra
        self.eos = offset - 1 if offset else self.width - 1 if extra else None
        self.rng, self.sizes = rng, sizes

    def rows(self, length):
        """(40, length) 词：物品的开头，四分之一改坏一位，四分之一是随便的词。"""
        tokens = np.asarray(self.layout.offsets) + self.codes[self.rng.integers(0, 60, (40,))]
        rows = np.concatenate([tokens] * (length // len(self.sizes) + 1), axis=1)[:, :length].copy()
        if length:
            rows[np.arange(10), self.rng.integers(0, length, 10)] = self.rng.integers(0, self.width, 10)
            rows[10:20] = self.rng.integers(0, self.width, (10, length))
        return torch.from_numpy(rows)

    def continuations(self, tail):
        """前缀词 → 允许的下一层的词；前缀不在（留下的）物品里时为空。"""
        level, starts = len(tail), self.layout.offsets
        items = {tuple(code) for code in self.codes[self.kept].tolist()}
        prefix = tuple(token - start for token, start in zip(tail, starts, strict=False))
        return {starts[level] + code[level] for code in items if code[:level] == prefix}

    def dead_place(self):
        """死束唯一可以接的词。"""
        if self.eos is not None:
            return self.eos
        return 0 if self.layout.offsets[0] > 0 else min(self.layout.vocab_size, self.width - 1)

    def check(self, row, expected, given, out):
        """允许的原样，其余 −inf；没有允许的就只剩死束的那个词，分数有限。"""
        allowed = sorted(expected)
        if not allowed:
            assert (out > -math.inf).nonzero()[:, 0].tolist() == [self.dead_place()], row
            return
        wanted = torch.full_like(given, -math.inf)
        wanted[allowed] = given[allowed]
        assert torch.equal(out, wanted), row


cases = st.builds(
    Case, st.sampled_from(SHAPES), st.integers(0, 10**6), st.sampled_from([0, 1, 6]), st.sampled_from([0, 3]),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(cases)
def test_ids_only(case):
    processor = SemanticIDLogitsProcessor(case.trie, case.layout, prompt_length=2, eos_token_id=case.eos)
    whole = torch.cat([torch.zeros(40, 2, dtype=torch.int64), case.rows(len(case.sizes))], dim=1)
    for level in range(len(case.sizes)):
        ids, scores = whole[:, : 2 + level], torch.randn(40, case.width)
        out = processor(ids, scores)
        for row in range(40):
            case.check(row, case.continuations(ids[row, 2:].tolist()), scores[row], out[row])


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(0, 7))
def test_text_and_ids(case, length):
    processor = SemanticIDLogitsProcessor(
        case.trie, case.layout, prompt_length=length, eos_token_id=case.eos, num_ids=None
    )
    ids, scores = case.rows(length), torch.randn(40, case.width)
    out = processor(ids, scores)
    levels = len(case.sizes)
    spans = list(zip(case.layout.offsets, case.sizes, strict=True))
    text = {t for t in range(case.width) if not any(start <= t < start + size for start, size in spans)}
    for row, tokens in enumerate(ids.tolist()):
        level = next((i + 1 for i, (a, k) in enumerate(spans) if tokens and a <= tokens[-1] < a + k), 0) % levels
        tail = tokens[len(tokens) - level :] if level <= len(tokens) else None
        expected = set() if tail is None else case.continuations(tail)
        case.check(row, expected | (text if level == 0 else set()), scores[row], out[row])


def test_these_trees_reach_both_branches():
    sparse = set()
    for sizes in SHAPES:
        trie = Case(sizes, 0, 1, 3, filtered=False).trie
        sparse |= {most * TABLE_FRACTION > size for most, size in zip(trie.max_children, sizes, strict=True)}
    assert sparse == {False, True}
