"""词号与词面：算术手算，分词器存取之后往返精确，词向量保持码字的几何，命令 `semid tokens`。"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.decoding import TokenLayout
from algorithm.semantic_id.decoding.embedding_rows import init_embedding_rows_, project_codebook
from algorithm.semantic_id.decoding.tokenizer_folder import read_layout, write_tokenizer
from algorithm.semantic_id.decoding.tokens import CLS_ID, MASK_ID, PAD_ID, SEP_ID, UNK_ID, add_tokens

pytest.importorskip("transformers", reason="needs the extra hf")
pytest.importorskip("tokenizers", reason="needs the extra hf")

SIZES = (6, 4, 9)


def make_tokenizer(kind):
    """本地的小分词器，不下载：字节级 BPE（像 GPT、Llama、Qwen）或转小写的 WordPiece（像 BERT）。"""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "bpe":
        letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        words = [*special, "user", "bought", "then", "a", "_", "1", "<", ">", "##_", "##1"]
        tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


# ---- 算术 ----


def test_flat_layout_by_hand():
    layout = TokenLayout.flat((1024, 4096, 16384))
    assert (PAD_ID, CLS_ID, SEP_ID, MASK_ID, UNK_ID) == (0, 1, 2, 3, 4)
    assert (layout.offsets, layout.num_tokens, layout.vocab_size) == ((5, 1029, 5125), 21504, 21509)
    codes = torch.tensor([[12, 7, 99], [0, 0, 0], [1023, 4095, 16383]])
    ids = layout.encode(codes)
    assert ids.tolist() == [[17, 1036, 5224], [5, 1029, 5125], [1028, 5124, 21508]]
    assert torch.equal(layout.decode(ids), codes)
    assert layout.to_text(codes[0]) == "<a_12><b_7><c_99>"
    assert TokenLayout.flat((2, 2, 2, 3)).to_text((1, 0, 1, 2)) == "<a_1><b_0><c_1><d_2>"


def test_every_code_has_its_own_token():
    layout = TokenLayout((3, 2, 4), (10, 20, 22))  # 层之间可以有空当，也可以没有
    grid = torch.cartesian_prod(*(torch.arange(size) for size in layout.sizes))
    ids = layout.encode(grid)
    assert torch.equal(layout.decode(ids), grid)
    levels = layout.levels_of(torch.arange(-1, 30))
    expected = {**dict.fromkeys(range(10, 13), 1), **dict.fromkeys((20, 21), 2), **dict.fromkeys(range(22, 26), 3)}
    assert levels.tolist() == [expected.get(token, 0) for token in range(-1, 30)]
    words = [word for level in (1, 2, 3) for word in layout.level_tokens(level)]
    assert len(set(words)) == layout.num_tokens


def test_extract_finds_whole_ids_only():
    layout = TokenLayout.flat(SIZES)
    a, b, c = layout.encode(torch.tensor([2, 3, 8])).tolist()
    sequences = torch.tensor(
        [[0, a, b, c, 2, 0, 0], [a, a, b, c, b, c, a], [a, b, 0, c, -1, -1, -1], [a, b, c, a, b, c, 9]]
    )
    rows, codes = layout.extract(sequences)
    assert rows.tolist() == [0, 1, 3, 3]
    assert codes.tolist() == [[2, 3, 8]] * 4
    assert layout.extract(sequences[:, :2])[1].shape == (0, 3)


def test_from_text():
    layout = TokenLayout.flat((16, 16, 100))
    text = "买 <a_12><b_7><c_99> 与 <a_1> <b_2>\n<c_3>；<a_1><b_2>x<c_3>"
    text += "<a_1><a_4><b_5><c_6><c_7><a_16><b_0><c_0><a_01><b_1><c_1>"
    assert layout.from_text(text) == [(12, 7, 99), (1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize("odd", ["01", "00", "-1", "+1", "1.0", "1_0", "１", "٣", "²", " 1", "True", "9" * 5000, ""])
def test_a_code_has_one_spelling(odd):
    layout = TokenLayout.flat((16, 16, 100))
    assert layout.from_text(f"<a_{odd}><b_1><c_1><a_1><b_1><c_1>") == [(1, 1, 1)]
    assert layout.from_text(f"<a_1><b_1><c_{odd}>") == []


@pytest.mark.parametrize(
    ("sizes", "offsets", "kind", "words"),
    [
        ((2, 2), (5, 6), ValueError, "overlap or fall"),
        ((2, 2), (5, 3), ValueError, "overlap or fall"),
        ((2, 2), (5,), ValueError, "one value per level"),
        ((2, 2), (-1, 5), ValueError, "overlap or fall"),
        ((2, 2), (5, 7.0), TypeError, "must be ints"),
        ((2,) * 27, tuple(range(0, 54, 2)), ValueError, "26 at most"),
    ],
)
def test_bad_layouts(sizes, offsets, kind, words):
    with pytest.raises(kind, match=words):
        TokenLayout(sizes, offsets)


def test_bad_codes_and_tokens():
    layout = TokenLayout.flat(SIZES)
    with pytest.raises(ValueError, match=r"codes at \[1\] has 4 for L2; it must be in \[0, 4\)"):
        layout.encode(torch.tensor([[0, 0, 0], [0, 4, 0]]))
    with pytest.raises(ValueError, match=r"token_ids at \[0\] has 5 for L2; it must be in \[11, 15\)"):
        layout.decode(torch.tensor([[5, 5, 15]]))
    with pytest.raises(TypeError, match="integer torch.Tensor, got torch.float32"):
        layout.encode(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"need \(..., 3\)"):
        layout.encode(torch.zeros(3, 2, dtype=torch.int64))


def test_json_round_trip():
    layout = TokenLayout.flat(SIZES)
    assert TokenLayout.from_json(layout.to_json()) == layout
    with pytest.raises(ValueError, match="format must be 'semid-tokens'"):
        TokenLayout.from_json("{}")
    plain = {"format": "semid-tokens", "sizes": [6, 4, 9], "offsets": [5, 11, 15]}
    assert TokenLayout.from_json(json.dumps({**plain, "format_version": 1})) == layout  # 版本 1 没有校验和
    with pytest.raises(ValueError, match="has no checksum"):
        TokenLayout.from_json(json.dumps({**plain, "format_version": 2}))
    for version in (3, True, None, "1"):
        with pytest.raises(ValueError, match=f"format_version {version!r}, this semid reads up to 2"):
            TokenLayout.from_json(json.dumps({**plain, "format_version": version}))
    with pytest.raises(ValueError, match="token layout was changed after it was written"):
        TokenLayout.from_json(layout.to_json().replace("9", "8", 1))


# ---- 分词器 ----


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("sizes", [SIZES, (3, 2, 4, 5)])
def test_tokenizer_round_trip_is_exact_after_save_and_reload(kind, sizes, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer(kind)
    before = len(tokenizer)
    layout = add_tokens(tokenizer, sizes)
    assert layout.offsets[0] == before
    assert len(tokenizer) == before + sum(sizes)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert add_tokens(again, sizes) == layout  # 已经全都有：只读出词号
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
    for codes, ids in zip(grid.tolist(), layout.encode(grid).tolist(), strict=True):
        text = layout.to_text(codes)
        assert again.encode(text, add_special_tokens=False) == ids  # 每层正好一个词
        for skip in (True, False):
            assert layout.from_text(again.decode(ids, skip_special_tokens=skip)) == [tuple(codes)]
    mixed = f"User bought {layout.to_text(grid[1])} then {layout.to_text(grid[7])}{layout.to_text(grid[0])}"
    rows, found = layout.extract(torch.tensor([again.encode(mixed)]))
    assert found.tolist() == grid[[1, 7, 0]].tolist()


def test_requirement_sizes_make_21504_tokens():
    tokenizer = make_tokenizer("bpe")
    layout = add_tokens(tokenizer, (1024, 4096, 16384))
    assert (layout.num_tokens, len(tokenizer) - layout.offsets[0]) == (21504, 21504)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, layout.sizes, (200, 3)))
    texts = [layout.to_text(row) for row in codes]
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == layout.encode(codes).tolist()


def test_tokenizer_with_some_of_the_tokens_is_refused():
    tokenizer = make_tokenizer("bpe")
    add_tokens(tokenizer, (3, 4, 9))
    with pytest.raises(ValueError, match="already has 16 of the 19 tokens, e.g. '<a_0>'"):
        add_tokens(tokenizer, SIZES)


# ---- 词向量 ----


def test_rows_keep_the_geometry_and_leave_the_others_alone():
    generator = torch.Generator().manual_seed(0)
    books = [torch.randn(size, 8, generator=generator) for size in (30, 40)]
    layout = TokenLayout((30, 40, 5), (200, 230, 270))
    weight = torch.randn(280, 24, generator=generator) * 0.3 + 0.1
    before = weight.clone()
    init_embedding_rows_(weight, layout, books)
    assert torch.equal(weight[:200], before[:200])
    assert torch.equal(weight[275:], before[275:])
    for book, rows in zip(books, (weight[200:230], weight[230:270]), strict=True):
        ratio = torch.pdist(rows) / torch.pdist(book)
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)  # 等距，只差一个倍数
    spread = float((before[:200] - before[:200].mean(dim=0)).square().mean().sqrt())
    for rows in (weight[200:230], weight[230:270], weight[270:275]):  # 去重位也有
        deviation = rows - before[:200].mean(dim=0)
        assert float(deviation.square().mean().sqrt()) == pytest.approx(spread, rel=1e-4)
    again = before.clone()
    init_embedding_rows_(again, layout, books)
    assert torch.equal(again, weight)
    other = before.clone()
    init_embedding_rows_(other, layout, books, seed=7)
    assert not torch.equal(other, weight)


def test_narrow_projection_keeps_the_largest_directions():
    book = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [9.0, 5.0, 3.0, 1e-3, 1e-3, 1e-3]
    )
    rows = project_codebook(book, 3)
    assert rows.shape == (50, 3)
    torch.testing.assert_close(torch.pdist(rows), torch.pdist(book), rtol=1e-3, atol=1e-2)


def test_a_constant_codebook_makes_no_nan():
    weight = torch.zeros(40, 8)
    init_embedding_rows_(weight, TokenLayout.flat((3, 4)), [torch.ones(3, 5)])
    assert weight.isfinite().all()


@pytest.mark.parametrize(
    ("weight", "books", "kind", "words"),
    [
        (torch.zeros(10, 4), [], ValueError, "resize_token_embeddings"),
        (torch.zeros(30, 4), [torch.zeros(5, 3)], ValueError, r"codebook of L1 has shape \(5, 3\); need \(6, H\)"),
        (torch.zeros(30, 4), [torch.zeros(6, 3)] * 4, ValueError, "got 4 codebooks for 3 levels"),
        (torch.zeros(30, 4, dtype=torch.int64), [], TypeError, "floating"),
    ],
)
def test_bad_weights(weight, books, kind, words):
    with pytest.raises(kind, match=words):
        init_embedding_rows_(weight, TokenLayout.flat(SIZES), books)


# ---- 命令 ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    SemanticIDEncoder(SemanticIDConfig(embedding_dim=8, codebook_sizes=SIZES)).save_pretrained(folder)
    make_tokenizer("bpe").save_pretrained(folder / "tokenizer")
    return folder


def test_command_writes_a_tokenizer_that_loads(model, tmp_path, capsys):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    output = tmp_path / "out"
    words = ["tokens", model, "--tokenizer", model / "tokenizer", "--output", output, "--suffix-size", 5]
    assert cli.main([*map(str, words), "--embedding-dim", "16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_tokens"], result["sizes"]) == (24, [6, 4, 9, 5])
    layout = TokenLayout.from_json((output / "semid_tokens.json").read_text())
    assert list(layout.offsets) == result["offsets"]
    record = json.loads((output / "semid_tokens.json").read_text())
    assert record["model_fingerprint"] == SemanticIDEncoder.from_pretrained(model).fingerprint()
    assert read_layout(output) == layout
    assert set(record["files"]) == {path.name for path in output.iterdir()} - {"semid_tokens.json"}
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert (
        tokenizer.encode("<a_5><b_0><c_8><d_4>", add_special_tokens=False)
        == layout.encode(torch.tensor([5, 0, 8, 4])).tolist()
    )
    rows = load_file(output / "semid_embeddings.safetensors")["weight"]
    assert rows.shape == (24, 16)
    book = SemanticIDEncoder.from_pretrained(model).get_codebook_embeddings(1)
    ratio = torch.pdist(rows[:6]) / torch.pdist(book)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert cli.main([*map(str, words)]) == 2  # 已经有了
    assert "exists; choose another folder" in capsys.readouterr().err


def test_a_changed_file_of_the_folder_is_named(model, tmp_path):
    write_tokenizer(model / "tokenizer", tmp_path / "out", SIZES, fingerprint="f", embedding_dim=4)
    layout = read_layout(tmp_path / "out")
    for path in sorted((tmp_path / "out").iterdir()):
        data = path.read_bytes()
        for place in range(0, len(data), 1 + len(data) // 60):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(ValueError, match=path.name):
                read_layout(tmp_path / "out")
        path.unlink()
        with pytest.raises(FileNotFoundError, match=path.name):
            read_layout(tmp_path / "out")
        path.write_bytes(data)
    assert read_layout(tmp_path / "out") == layout


def test_command_leaves_nothing_behind_when_it_fails(model, tmp_path, capsys, monkeypatch):
    words = ["tokens", str(model), "--output", str(tmp_path / "out"), "--tokenizer"]
    assert cli.main([*words, str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main([*words, str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main([*words, str(model / "tokenizer"), "--embedding-dim", "0"]) == 2
    assert "embedding_dim=0 is out of range" in capsys.readouterr().err
    assert cli.main([*words, str(model / "tokenizer"), "--suffix-size", "-1"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_missing_extra_is_one_line(model, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    words = ["tokens", model, "--tokenizer", model / "tokenizer", "--output", tmp_path / "out"]
    capsys.readouterr()
    assert cli.main([*map(str, words)]) == 2
    assert capsys.readouterr().err == "error: LLM tokens need the extra `hf`: pip install 'semid[hf]'\n"
