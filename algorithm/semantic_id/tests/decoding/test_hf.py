"""transformers 的 generate：贪心、束、抽样；两类模型；左侧补齐、几个 ID、混排。随机的小模型，不下载。"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf")

from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout
from algorithm.semantic_id.decoding.hf import SemanticIDLogitsProcessor

SIZES = (6, 7, 9, 3)
PAD, EOS = 0, 2
CODES = np.unique(np.random.default_rng(0).integers(0, SIZES, (60, 4)), axis=0)
ITEMS = set(map(tuple, CODES.tolist()))
TRIE, LAYOUT = PrefixTrie.build(CODES, SIZES), TokenLayout.flat(SIZES)
VOCAB = LAYOUT.vocab_size + 3  # 后面还有别的词
L = len(SIZES)


@pytest.fixture(scope="module")
def models():
    """一层、16 维的随机模型；权重放大五倍，分布才不至于均匀。"""
    torch.manual_seed(0)
    common = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS}
    t5 = T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD, **common)
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1, **common
    )
    made = {"encoder-decoder": T5ForConditionalGeneration(t5).eval(), "decoder-only": LlamaForCausalLM(llama).eval()}
    for model in made.values():
        for parameter in model.parameters():
            parameter.data.mul_(5)
    return made


def prompts(batch_size=4, length=7):
    """左侧补齐；提示里也有语义 ID 的词，不许被当成生成的。"""
    ids = torch.randint(5, VOCAB, (batch_size, length), generator=torch.Generator().manual_seed(1))
    ids[0, -3:] = LAYOUT.encode(torch.from_numpy(CODES[0]))[:3]
    mask = torch.ones_like(ids)
    for row in range(1, batch_size, 2):
        ids[row, : row % length], mask[row, : row % length] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def start_of(model, inputs):
    return 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]


def generate(model, trie=TRIE, num_ids=1, eos=EOS, inputs=None, **options):
    """(生成的词, 束的分数或 None)。"""
    inputs = prompts() if inputs is None else inputs
    start = start_of(model, inputs)
    processor = SemanticIDLogitsProcessor(trie, LAYOUT, prompt_length=start, eos_token_id=eos, num_ids=num_ids)
    out = model.generate(
        **inputs,
        logits_processor=[processor],
        max_new_tokens=L * num_ids + (eos is not None),
        eos_token_id=eos,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return out.sequences[:, start:], getattr(out, "sequences_scores", None)


def finished_ids(sequences, scores, num_ids):
    """完成的行（−1e9 一级的是 generate 补满束宽用的）里的 ID，(行, num_ids, L)。"""
    done = torch.ones(len(sequences), dtype=torch.bool) if scores is None else scores > -1e8
    return LAYOUT.decode(sequences[done][:, : L * num_ids].reshape(-1, num_ids, L))


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 3, "top_p": 0.9, "temperature": 2.0, "num_return_sequences": 5},
    "beam": {"num_beams": 10, "num_return_sequences": 10},
    "beam sampling": {"num_beams": 8, "do_sample": True, "num_return_sequences": 8},
    "more beams than items": {"num_beams": 70, "num_return_sequences": 70},
}


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("num_ids", "eos"), [(1, EOS), (2, EOS), (1, None)])
def test_every_way_to_generate_gives_items(models, kind, way, num_ids, eos):
    torch.manual_seed(3)
    sequences, scores = generate(models[kind], num_ids=num_ids, eos=eos, **WAYS[way])
    ids = finished_ids(sequences, scores, num_ids)
    assert len(ids) >= (4 if way != "more beams than items" else 4 * len(ITEMS))
    assert set(map(tuple, ids.reshape(-1, L).tolist())) <= ITEMS
    if eos is not None and scores is None:
        assert sequences[:, L * num_ids].eq(EOS).all()
    # 补上的行里也挑不出不存在的 ID
    assert set(map(tuple, LAYOUT.extract(sequences)[1].tolist())) <= ITEMS
    if "beam" in way and not WAYS[way].get("do_sample"):
        assert len(set(map(tuple, ids[: len(ids) // 4].reshape(-1, L * num_ids).tolist()))) > 1


@pytest.mark.parametrize("way", ["sampling", "beam"])
def test_thousands_of_random_generations_are_all_items(models, way):
    torch.manual_seed(4)
    inputs = prompts(batch_size=100)
    sequences, scores = generate(models["decoder-only"], inputs=inputs, **{**WAYS[way], "num_return_sequences": 10})
    ids = finished_ids(sequences, scores, 1)
    assert len(ids) == 1000
    assert set(map(tuple, ids[:, 0].tolist())) <= ITEMS


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("eos", [EOS, None])
def test_beam_scores_equal_a_brute_force_ranking(models, kind, eos):
    model, inputs = models[kind], prompts()
    sequences, scores = generate(
        model, eos=eos, num_beams=len(ITEMS), num_return_sequences=len(ITEMS), length_penalty=0.0
    )
    tokens = LAYOUT.encode(torch.from_numpy(CODES))  # (N, L)
    for batch in range(4):
        ids, mask = (inputs[name][batch].expand(len(CODES), -1) for name in ("input_ids", "attention_mask"))
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                given = torch.cat([torch.full((len(CODES), 1), PAD), tokens], dim=1)
                logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=given).logits[:, :L]
            else:
                longer = torch.cat([mask, torch.ones_like(tokens)], dim=1)
                places = (longer.cumsum(dim=1) - 1).clamp(min=0)
                given = torch.cat([ids, tokens], dim=1)
                logits = model(input_ids=given, attention_mask=longer, position_ids=places).logits[:, -L - 1 : -1]
        exact = logits.log_softmax(dim=-1).gather(2, tokens[..., None]).sum(dim=(1, 2))  # (N,)
        best = exact.sort(descending=True)
        ours = slice(batch * len(CODES), (batch + 1) * len(CODES))
        torch.testing.assert_close(scores[ours], best.values, rtol=1e-4, atol=1e-3)
        found = LAYOUT.decode(sequences[ours, :L])
        assert set(map(tuple, found.tolist())) == ITEMS
        same = {tuple(code): value for code, value in zip(CODES.tolist(), exact.tolist(), strict=True)}
        torch.testing.assert_close(
            torch.tensor([same[tuple(code)] for code in found.tolist()]), best.values, atol=1e-3, rtol=1e-4
        )


def test_deny_mask(models):
    deny = np.arange(len(CODES)) % 2 == 0
    sequences, scores = generate(models["decoder-only"], TRIE.filter(deny=deny), num_beams=30, num_return_sequences=30)
    found = finished_ids(sequences, scores, 1)[:, 0].tolist()
    assert set(map(tuple, found)) == set(map(tuple, CODES[~deny].tolist()))
    only = TRIE.filter(allow=np.arange(len(CODES)) == 7)
    sequences, _ = generate(models["encoder-decoder"], only, do_sample=True)
    assert LAYOUT.decode(sequences[:, :L]).tolist() == [CODES[7].tolist()] * 4


def test_text_and_ids_may_mix(models):
    torch.manual_seed(5)
    inputs = prompts()
    processor = SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=7, eos_token_id=EOS, num_ids=None)
    out = models["decoder-only"].generate(
        **inputs,
        logits_processor=[processor],
        max_new_tokens=40,
        do_sample=True,
        num_return_sequences=20,
        temperature=3.0,
    )
    made = out[:, 7:]
    levels = LAYOUT.levels_of(made)
    rows, codes = LAYOUT.extract(made)
    assert len(codes) > 50
    assert set(map(tuple, codes.tolist())) <= ITEMS
    assert ((levels == 0) & (made != EOS) & (made != PAD)).any()  # 也有文字
    for row in levels.tolist():
        depth = 0 if row[0] <= 1 else row[0] - 1  # 提示末尾没写完的 ID 接着走完
        for level in row:
            assert level == depth + 1 or (level == 0 and depth == 0)
            depth = level % L


def test_the_same_processor_serves_several_calls(models):
    processor = SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=7, eos_token_id=EOS)
    options = {"logits_processor": [processor], "max_new_tokens": L + 1, "num_beams": 4}
    first = models["decoder-only"].generate(**prompts(), **options)
    models["decoder-only"].generate(**prompts(batch_size=2), **{**options, "max_new_tokens": 2})  # 半途而止
    assert torch.equal(models["decoder-only"].generate(**prompts(), **options), first)


# ---- prompt_length 与 generate 对不上 ----


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("way", ["greedy", "beam"])
@pytest.mark.parametrize("num_ids", [1, 2, None])
@pytest.mark.parametrize("off", [-8, -5, -4, -3, -2, -1, 1, 2, 5])
def test_every_wrong_prompt_length_is_an_error(models, kind, way, num_ids, off):
    # 提示的末尾正是一个物品：差 L 就像已经生成完了
    inputs = prompts(length=9)
    inputs["input_ids"][:, -L:] = LAYOUT.encode(torch.from_numpy(CODES[:4]))
    right = start_of(models[kind], inputs)
    if right + off < 0:
        return
    processor = SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=right + off, eos_token_id=EOS, num_ids=num_ids)
    options = {"logits_processor": [processor], "max_new_tokens": 12, **WAYS[way]}
    words = f"prompt_length={right + off} does not match generate: input_ids have length {right}"
    with pytest.raises(ValueError, match=words + ".*Pass prompt_length=input_ids.shape"):
        models[kind].generate(**inputs, **options)


@pytest.mark.parametrize("way", ["greedy", "beam"])
@pytest.mark.parametrize(("num_ids", "more"), [(1, L), (1, L + 1), (2, L), (2, 2 * L), (2, 2 * L + 1), (1, 2)])
def test_a_history_that_grew_needs_its_own_prompt_length(models, way, num_ids, more):
    # 同一个对象再用一次，提示接上了上一次生成的物品，prompt_length 没有跟着变
    inputs = prompts(batch_size=2)
    processor = SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=7, eos_token_id=EOS, num_ids=num_ids)
    options = {"logits_processor": [processor], "max_new_tokens": L * num_ids + 3, "eos_token_id": EOS, **WAYS[way]}
    made = models["decoder-only"].generate(**inputs, **options)[:2, : 7 + more]
    with pytest.raises(ValueError, match=f"prompt_length=7 does not match generate: input_ids have length {7 + more}"):
        models["decoder-only"].generate(input_ids=made, attention_mask=torch.ones_like(made), **options)
    assert len(models["decoder-only"].generate(**inputs, **options))  # 对的提示照旧


def test_threads_may_share_a_processor():
    from concurrent.futures import ThreadPoolExecutor

    processor = SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=1, eos_token_id=EOS)
    ids = torch.cat([torch.zeros(len(CODES), 1, dtype=torch.int64), LAYOUT.encode(torch.from_numpy(CODES))], dim=1)
    with ThreadPoolExecutor(1) as pool:
        for length in range(1, L + 2):  # 两边交替，各走各的
            ours = processor(ids[:, :length], torch.zeros(len(ids), VOCAB))
            assert torch.equal(pool.submit(processor, ids[:, :length], torch.zeros(len(ids), VOCAB)).result(), ours)
            if length > 2:
                with pytest.raises(ValueError, match="does not match generate"):
                    processor(ids[:, : length - 1], torch.zeros(len(ids), VOCAB))


# ---- 直接调用 ----


def call(ids, scores, trie=TRIE, layout=LAYOUT, **options):
    """从提示起一步一步走到 ids，返回最后一步。"""
    options = {"prompt_length": 1, "eos_token_id": EOS, **options}
    processor, ids = SemanticIDLogitsProcessor(trie, layout, **options), torch.tensor(ids)
    for length in range(options["prompt_length"], ids.shape[1]):
        processor(ids[:, :length], torch.zeros_like(scores))
    return processor(ids, scores)


def allowed_tokens(row):
    return (row > -math.inf).nonzero()[:, 0].tolist()


def test_scores_of_allowed_tokens_are_untouched_and_the_input_too():
    tokens = LAYOUT.encode(torch.from_numpy(CODES)).tolist()
    generator = torch.Generator().manual_seed(0)
    for length in range(L):
        rows = [[PAD, *token[:length]] for token in tokens]
        scores = torch.randn(len(rows), VOCAB, generator=generator)
        before = scores.clone()
        out = call(rows, scores)
        assert torch.equal(scores, before)
        for row, prefix in enumerate(rows):
            expected = sorted({token[length] for token in tokens if token[:length] == prefix[1:]})
            assert allowed_tokens(out[row]) == expected
            assert torch.equal(out[row, expected], scores[row, expected])
    out = call([[PAD, *tokens[3]]], torch.randn(1, VOCAB))
    assert (allowed_tokens(out[0]), out[0, EOS].item()) == ([EOS], 0.0)


@pytest.mark.parametrize("sizes", [(5,), (3, 200)])
@pytest.mark.parametrize("offset", [0, 1])
def test_layouts_at_the_edges_of_the_vocabulary(sizes, offset):
    # 词号从 0 起、词表里没有别的词：补齐的位置无处可写，也不许盖掉真的孩子
    codes = np.stack([np.arange(4) % size * (2 if size > 5 else 1) for size in sizes], axis=1)
    trie = PrefixTrie.build(codes, sizes)
    layout = TokenLayout(sizes, tuple(offset + sum(sizes[:level]) for level in range(len(sizes))))
    processor = SemanticIDLogitsProcessor(trie, layout, prompt_length=0)
    scores = torch.randn(3, layout.vocab_size)
    out = processor(torch.zeros(3, 0, dtype=torch.int64), scores)
    expected = sorted({offset + int(code) for code in codes[:, 0]})
    assert [allowed_tokens(row) for row in out] == [expected] * 3


def test_nan_of_a_forbidden_token_does_not_spread_but_of_an_allowed_one_is_an_error():
    tokens = LAYOUT.encode(torch.from_numpy(CODES[:1]))[0].tolist()
    scores = torch.randn(2, VOCAB)
    scores[:, -1] = math.nan
    scores[:, EOS] = math.inf
    out = call([[PAD, *tokens[:2]]] * 2, scores)
    assert not out.isnan().any()
    assert out.softmax(dim=1).sum().item() == pytest.approx(2.0)
    for value in (math.nan, math.inf):
        scores[1, tokens[2]] = value
        with pytest.raises(ValueError, match="scores row 1 hold NaN or \\+inf for allowed tokens"):
            call([[PAD, *tokens[:2]]] * 2, scores)


def test_a_row_of_minus_infinity_still_gives_an_item():
    tokens = LAYOUT.encode(torch.from_numpy(CODES[:1]))[0].tolist()
    scores = torch.full((2, VOCAB), -math.inf)
    scores[1] = 0.0
    out = call([[PAD, *tokens[:1]]] * 2, scores)
    allowed = allowed_tokens(out[1])
    assert allowed_tokens(out[0]) == allowed
    assert out[0, allowed].eq(-1e6).all()
    assert torch.multinomial(out.softmax(dim=1), 1).tolist()[0][0] in allowed


def test_dead_beams_can_only_end_and_all_dead_is_an_error():
    good = LAYOUT.encode(torch.from_numpy(CODES[:1]))[0].tolist()
    out = call([[PAD, good[0]], [PAD, good[2]], [PAD, EOS], [PAD, PAD]], torch.zeros(4, VOCAB))
    assert [allowed_tokens(row) for row in out[1:]] == [[EOS]] * 3
    assert len(allowed_tokens(out[0])) >= 1
    assert not out.softmax(dim=1).isnan().any()
    with pytest.raises(
        ValueError, match="after 1 generated tokens no row is on its way to an item; is prompt_length=1"
    ):
        call([[PAD, EOS]], torch.zeros(1, VOCAB))


@pytest.mark.parametrize(
    ("ids", "width", "options", "words"),
    [
        ([[PAD]], VOCAB, {"prompt_length": 2}, "prompt_length=2 does not match generate: input_ids have length 1"),
        ([[PAD]], LAYOUT.vocab_size - 1, {}, "call model.resize_token_embeddings"),
        (
            [[PAD, *LAYOUT.encode(torch.from_numpy(CODES[0])).tolist()]],
            VOCAB,
            {"eos_token_id": None},
            "all 1 IDs are complete and there is no eos_token_id.*max_new_tokens=4",
        ),
        ([[PAD]], VOCAB, {"eos_token_id": 6}, "eos_token_id=6 is the token of a code"),
        ([[PAD]], VOCAB, {"num_ids": 0}, "num_ids=0 must be"),
    ],
)
def test_bad_calls(ids, width, options, words):
    with pytest.raises(ValueError, match=words):
        call(ids, torch.zeros(1, width), **options)


def test_bad_constructions():
    with pytest.raises(ValueError, match="trie has sizes .* but the token layout has"):
        SemanticIDLogitsProcessor(TRIE, TokenLayout.flat((6, 7, 9)), prompt_length=1)
    with pytest.raises(TypeError, match="prompt_length must be an int"):
        SemanticIDLogitsProcessor(TRIE, LAYOUT, prompt_length=None)


def test_missing_extra_names_it(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "algorithm.semantic_id.decoding.hf")
    with pytest.raises(ImportError, match="pip install 'semid\\[hf\\]'"):
        importlib.import_module("algorithm.semantic_id.decoding.hf")
