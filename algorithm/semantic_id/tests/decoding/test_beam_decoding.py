"""束搜索：与全部物品的暴力排名一致，只出存在的物品，并列、死束、坏 logits、过滤。"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from algorithm.semantic_id.decoding import PrefixTrie, beam_decoding, beam_search, top_k
from algorithm.semantic_id.decoding.top_k import top_k as best_of

SIZES = (8, 40, 64, 3)


def make_catalog(sizes=SIZES, num_items=60, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, num_items) for size in sizes], axis=1)
    return codes, PrefixTrie.build(codes, sizes)


def random_model(sizes, batch_size, seed=0, num_rows=7):
    """各层 logits 由前缀决定：同样的前缀永远得到同样的 logits，暴力法才能重算。"""
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.randn(batch_size, num_rows, size, generator=generator) * 3 for size in sizes]

    def logits_of(level, batch, codes):
        key = (codes * torch.arange(3, 3 + level)).sum(dim=1) % num_rows
        return tables[level][batch, key]

    def step_fn(codes, parents):
        level = codes.shape[1]
        step_fn.batch = torch.arange(batch_size) if level == 0 else step_fn.batch[parents]
        step_fn.shapes.append(tuple(codes.shape))
        return logits_of(level, step_fn.batch, codes)

    step_fn.shapes = []
    return step_fn, logits_of


def brute_force(codes, logits_of, batch_size, sizes=SIZES):
    """每批：全部不同的 ID 按 (分数降序, 编码升序)。"""
    ids = torch.from_numpy(np.unique(codes, axis=0))
    out = []
    for batch in range(batch_size):
        score = torch.zeros(len(ids))
        for level in range(len(sizes)):
            rows = torch.full((len(ids),), batch)
            score += (
                logits_of(level, rows, ids[:, :level]).log_softmax(dim=1).gather(1, ids[:, level : level + 1])[:, 0]
            )
        order = sorted(range(len(ids)), key=lambda i: (-score[i].item(), ids[i].tolist()))
        out.append([(tuple(ids[i].tolist()), score[i].item()) for i in order])
    return out


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0, 8, 1e9])  # 全走孩子、照常、全走表
@pytest.mark.parametrize("chunk", [64, 1 << 17])  # 分成许多块，一块
def test_wide_beam_equals_brute_force_over_all_items(seed, fraction, chunk, monkeypatch):
    monkeypatch.setattr(beam_decoding, "TABLE_FRACTION", fraction)
    monkeypatch.setattr(beam_decoding, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(top_k, "CHUNK_ELEMENTS", chunk)
    codes, trie = make_catalog(seed=seed)
    step_fn, logits_of = random_model(SIZES, 3, seed)
    found = beam_search(step_fn, trie, batch_size=3, num_beams=64)
    for ours, expected in zip(found.to_list(), brute_force(codes, logits_of, 3), strict=True):
        assert [code for code, _ in ours] == [code for code, _ in expected]
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in expected], rtol=1e-5, atol=1e-4)
    assert step_fn.shapes[0] == (3, 0)
    missing = found.items < 0
    assert torch.equal(missing, found.scores == -math.inf)
    assert (found.codes[missing] == -1).all()
    assert np.array_equal(codes[found.items[~missing].numpy()], found.codes[~missing].numpy())


def test_narrow_beam_equals_a_beam_search_written_with_lists():
    codes, trie = make_catalog(num_items=300)
    step_fn, logits_of = random_model(SIZES, 2)
    found = beam_search(step_fn, trie, batch_size=2, num_beams=5, num_results=4).to_list()
    known = {tuple(row[:level]) for row in codes.tolist() for level in range(5)}
    for batch in range(2):
        beams = [((), 0.0)]
        for level, size in enumerate(SIZES):
            longer = []
            for prefix, score in beams:
                row = logits_of(level, torch.tensor([batch]), torch.tensor([prefix], dtype=torch.int64).view(1, level))
                logprobs = row.log_softmax(dim=1)[0].tolist()
                longer += [((*prefix, c), score + logprobs[c]) for c in range(size) if (*prefix, c) in known]
            beams = sorted(longer, key=lambda beam: -beam[1])[:5]
        assert [code for code, _ in found[batch]] == [code for code, _ in beams[:4]]
        np.testing.assert_allclose([s for _, s in found[batch]], [s for _, s in beams[:4]], rtol=1e-5, atol=1e-4)


def test_thousands_of_random_generations_are_all_items():
    codes, trie = make_catalog(sizes=(16, 128, 256), num_items=2000)
    known = set(map(tuple, codes.tolist()))
    step_fn, _ = random_model((16, 128, 256), 150, num_rows=11)
    found = beam_search(step_fn, trie, batch_size=150, num_beams=20)
    assert found.items.numel() == 3000
    for beams in found.to_list():
        assert len({code for code, _ in beams}) == len(beams) == 20  # 没有重复
        assert {code for code, _ in beams} <= known
    assert (found.scores.diff(dim=1) <= 0).all()


def test_ties_go_to_the_lowest_code_and_batches_do_not_matter():
    codes, trie = make_catalog(num_items=400)
    flat = beam_search(lambda c, p: torch.zeros(len(c), SIZES[c.shape[1]]), trie, batch_size=2, num_beams=7)
    assert flat.codes[0].tolist() == np.unique(codes, axis=0)[:7].tolist()
    assert torch.equal(flat.codes[0], flat.codes[1])
    # 并列之前的名次优先：L1 = 5 最好，其余并列，于是先是 5 之下的，再从头数
    five = torch.where(torch.arange(SIZES[0]) == 5, 1.0, 0.0)
    step = lambda c, p: five.expand(len(c), -1) if c.shape[1] == 0 else torch.zeros(len(c), SIZES[c.shape[1]])  # noqa: E731
    ids = np.unique(codes, axis=0)
    expected = [*ids[ids[:, 0] == 5], *ids[ids[:, 0] != 5]]
    found = beam_search(step, trie, batch_size=1, num_beams=100)
    assert found.codes[0].tolist() == [row.tolist() for row in expected[:100]]


def test_filter_is_applied_through_the_trie():
    codes, trie = make_catalog()
    deny = np.arange(len(codes)) % 3 == 0
    step_fn, logits_of = random_model(SIZES, 2)
    found = beam_search(step_fn, trie.filter(deny=deny), batch_size=2, num_beams=64).to_list()
    expected = brute_force(codes[~deny], logits_of, 2)
    assert [[code for code, _ in beams] for beams in found] == [[code for code, _ in beams] for beams in expected]
    step_fn, _ = random_model(SIZES, 2)
    one = beam_search(step_fn, trie.filter(allow=np.arange(len(codes)) == 5), batch_size=2, num_beams=4)
    assert one.items.tolist() == [[5, -1, -1, -1]] * 2
    assert one.codes[0, 1:].eq(-1).all()


def test_parents_reorder_a_cache():
    _, trie = make_catalog()
    seen = []

    def step_fn(codes, parents):
        cache = torch.zeros(len(codes), 0, dtype=torch.int64) if codes.shape[1] == 0 else seen[-1][parents]
        if codes.shape[1]:
            cache = torch.cat([cache, codes[:, -1:]], dim=1)
        assert torch.equal(cache, codes)  # 按 parents 重排、再接上新编号的缓存，正好就是前缀
        seen.append(cache)
        return torch.randn(len(codes), SIZES[codes.shape[1]], generator=torch.Generator().manual_seed(codes.shape[1]))

    beam_search(step_fn, trie, batch_size=3, num_beams=6)


def test_minus_infinity_is_allowed_but_never_chosen_over_an_item():
    codes, trie = make_catalog()
    step_fn, _ = random_model(SIZES, 1)

    def masked(codes_so_far, parents):
        logits = step_fn(codes_so_far, parents)
        logits[:, ::2] = -math.inf
        return logits

    odd = {tuple(code) for code in codes.tolist() if all(c % 2 for c in code)}
    (beams,) = beam_search(masked, trie, batch_size=1, num_beams=60).to_list()
    assert {code for code, _ in beams} == odd
    assert all(math.isfinite(score) for _, score in beams)
    big = torch.full((1, SIZES[0]), torch.finfo(torch.float32).min)
    big[0, 3] = 0.0
    scores = beam_decoding.advance(trie, 0, torch.zeros(1, 1).long(), torch.zeros(1, 1), big, 2).scores
    assert scores[0, 0] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("level", [0, 2])
def test_nan_and_infinity_are_refused(value, level):
    _, trie = make_catalog()

    def step_fn(codes, parents):
        logits = torch.zeros(len(codes), SIZES[codes.shape[1]])
        if codes.shape[1] == level:
            logits[-1, 3] = value
        return logits

    rows = 2 if level == 0 else 2 * 3
    with pytest.raises(ValueError, match=f"logits for L{level + 1} row {rows - 1} hold NaN, \\+inf"):
        beam_search(step_fn, trie, batch_size=2, num_beams=3)


def test_nan_is_refused_in_the_chunked_path_too(monkeypatch):
    monkeypatch.setattr(beam_decoding, "CHUNK_ELEMENTS", 16)
    logits = torch.randn(9, 8)
    values, normalizer = beam_decoding.normalized(logits, 0)
    torch.testing.assert_close(values - normalizer[:, None], logits.log_softmax(dim=1))
    for bad in (math.nan, math.inf):
        broken = logits.clone()
        broken[5, 1] = bad
        with pytest.raises(ValueError, match="row 5"):
            beam_decoding.normalized(broken, 0)
    broken[5] = -math.inf
    with pytest.raises(ValueError, match="row 5"):
        beam_decoding.normalized(broken, 0)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"num_beams": 0}, ValueError, "num_beams=0 is out of range"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int"),
        ({"num_results": 9}, ValueError, "num_results=9 exceeds num_beams=4"),
    ],
)
def test_bad_options(options, kind, words):
    _, trie = make_catalog()
    with pytest.raises(kind, match=words):
        beam_search(lambda c, p: None, trie, **{"batch_size": 1, "num_beams": 4, **options})


@pytest.mark.parametrize(
    ("logits", "kind", "words"),
    [
        (None, TypeError, "must return a floating torch.Tensor for L1, got NoneType"),
        (torch.zeros(1, 8, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(1, 9), ValueError, "logits of shape \\(1, 9\\) for L1; need \\(1, 8\\)"),
        (torch.zeros(1, 8, device="meta"), ValueError, "logits are on meta, but the trie is on cpu"),
    ],
)
def test_bad_logits(logits, kind, words):
    _, trie = make_catalog()
    with pytest.raises(kind, match=words):
        beam_search(lambda c, p: logits, trie, batch_size=1, num_beams=4)


@pytest.mark.parametrize("shape", [(2, 3, 128), (3, 20, 1024), (1, 1, 1100), (2, 5, 4096), (4, 3, 777)])
@pytest.mark.parametrize("kind", ["normal", "ties", "mostly -inf"])
def test_top_k_equals_a_stable_sort(shape, kind):
    batch, rows, width = shape
    generator = torch.Generator().manual_seed(width)
    values = torch.randn(shape, generator=generator)
    if kind == "ties":
        values = values.round() * 0.0 + torch.where(values > 1.5, 1.0, -0.0)
    if kind == "mostly -inf":
        values = torch.where(values > 2.5, values, -math.inf)
    offset = torch.randint(-2, 3, (batch, rows), generator=generator).float()
    table = torch.rand(9, width, generator=generator) < 0.4
    nodes = torch.randint(0, 9, (batch, rows), generator=generator)
    for k in (1, 20, 90):
        for keep in (None, (table, nodes)):
            hidden = values if keep is None else torch.where(table[nodes], values, -math.inf)
            expected = (hidden + offset[..., None]).flatten(1).sort(dim=1, descending=True, stable=True)
            scores, places = best_of(values, offset, k, keep)
            assert torch.equal(scores, expected.values[:, :k])
            real = scores > -math.inf
            assert torch.equal(places[real], expected.indices[:, :k][real])
            assert (places >= 0).all()
            assert (places < rows * width).all()


def test_top_k_keeps_values_lower_than_the_hidden_ones():
    # 遮住的元素在挑块时是 −2e38；连更低的真值都要入选时，必须走精确的路
    values, nodes = torch.zeros(1, 2, 4096), torch.zeros(1, 2, dtype=torch.int64)
    table = torch.zeros(1, 4096, dtype=torch.bool)
    values[..., 4000:4003], table[0, 4000:4003] = torch.finfo(torch.float32).min, True
    scores, places = best_of(values, torch.zeros(1, 2), 5, (table, nodes))
    assert places[0].tolist() == [4000, 4001, 4002, 4096 + 4000, 4096 + 4001]
    assert scores.isfinite().all()
