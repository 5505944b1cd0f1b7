"""这间房的读者遇到坏文件：每一位都翻过，结构乱造过，只出有名有姓的错误，绝不给出另一个答案。"""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from algorithm.semantic_id.catalog.exchange.index_json import _parse
from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout, TrieFileError
from algorithm.semantic_id.decoding.trie_file import _digest, read_trie

CODES = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0], [0, 1, 2]])
DEEP = "[" * 100_000 + "]" * 100_000
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


def test_every_flipped_bit_of_a_trie_file_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "trie.safetensors"
    PrefixTrie.build(CODES, (2, 2, 4)).save(path)
    data, wanted = path.read_bytes(), read_trie(path)
    noticed = 0
    for place in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                arrays, sizes = read_trie(path)
            except TrieFileError as error:
                noticed += str(path) in str(error)
                continue
            assert sizes == wanted[1]
            assert str(arrays) == str(wanted[0])
    assert noticed > 0.95 * 8 * len(data)


def test_every_cut_of_a_trie_file_is_noticed(tmp_path):
    path = tmp_path / "trie.safetensors"
    PrefixTrie.build(CODES, (2, 2, 4)).save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TrieFileError, match="trie.safetensors"):
            read_trie(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_forged_trie_files_give_one_kind_of_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "trie.safetensors"
    PrefixTrie.build(CODES, (2, 2, 4)).save(path)
    tensors = dict(load(path.read_bytes()))
    for name in data.draw(st.lists(st.sampled_from([*tensors, "order", "edges.9", "x"]), max_size=3)):
        kind = data.draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint8, np.float32, np.bool_]))
        values = data.draw(st.lists(st.integers(-3, 6), max_size=6))
        tensors[name] = np.array(values).astype(kind)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        tensors.pop(name, None)
    record = {"format": "semid-trie", "format_version": 1, "sizes": [2, 2, 4]}
    record.update(data.draw(st.dictionaries(st.sampled_from([*record, "sha256"]), json_values, max_size=2)))
    if data.draw(st.booleans()):
        record["sha256"] = _digest(tensors, record["sizes"])
    text = data.draw(
        st.sampled_from([json.dumps(record), DEEP, "null", "[]", "3", "", "{"]) | st.just(json.dumps(record))
    )
    path.write_bytes(save(tensors, metadata={"semid": text}))
    try:
        PrefixTrie.load(path)
    except TrieFileError as error:
        if str(path) not in str(error):
            raise


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 80))
def test_noise_is_no_trie(tmp_path_factory, noise, length):
    path = tmp_path_factory.mktemp("fuzz") / "trie.safetensors"
    for content in (noise, struct.pack("<Q", length) + noise, struct.pack("<Q", len(DEEP)) + DEEP.encode()):
        path.write_bytes(content)
        with pytest.raises(TrieFileError):
            PrefixTrie.load(path)


tokens = st.builds("<{}_{}>".format, st.sampled_from("abcdz{A"), st.integers(-2, 2**70) | st.text(max_size=3))


@settings(max_examples=400, deadline=None)
@given(st.lists(tokens | st.text(max_size=4), max_size=12))
def test_text_gives_whole_ids_of_the_layout_or_nothing(words):
    layout = TokenLayout.flat((3, 4, 5))
    for found in layout.from_text("".join(words)):
        assert layout.to_text(found) in "".join("".join(words).split())


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["sizes", "offsets", "format_version", "self_sha256"]), json_values, st.booleans())
def test_layouts_give_typed_errors(key, value, drop):
    record = {"format": "semid-tokens", "format_version": 1, "sizes": [2, 3], "offsets": [5, 7], key: value}
    if drop:
        del record[key]
    for text in (json.dumps(record), json.dumps(value), DEEP, "\ud800"):
        try:
            layout = TokenLayout.from_json(text)
        except (TypeError, ValueError):
            continue
        assert layout == TokenLayout(tuple(record["sizes"]), tuple(record["offsets"]))


def test_every_flipped_bit_of_a_layout_is_noticed_or_harmless():
    layout = TokenLayout.flat((6, 4, 9))
    data = layout.to_json(model_fingerprint="f" * 64).encode()
    for place in range(len(data)):
        for bit in range(8):
            broken = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            try:
                assert TokenLayout.from_json(broken.decode("utf-8", "replace")) == layout
            except ValueError:
                continue


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.lists(tokens, max_size=4) | json_values, max_size=4) | json_values)
def test_index_json_gives_exactly_what_is_written_or_a_typed_error(value):
    for data in (json.dumps(value).encode(), json.dumps(value).encode()[:-1]):
        try:
            items, codes = _parse(data, "x.index.json")
        except ValueError as error:
            if "x.index.json" not in str(error):
                raise
            continue
        assert items == list(value)
        written = [[f"<{chr(ord('a') + level)}_{code}>" for level, code in enumerate(row)] for row in codes.tolist()]
        assert written == list(value.values())


@pytest.mark.parametrize(
    "token",
    ['"<a_01>"', '"<a_00>"', '"<a_-1>"', '"<a_+1>"', '"<a_\\uff11>"', '"<a_\\u0663>"', '"<a_1> "', '"<A_1>"', '"<b_1>"',
     '"<a_2147483648>"', '"<a_1_0>"', '"<a_True>"', "true", "1", "null", '["<a_1>"]'],
)  # fmt: skip
def test_index_json_knows_one_spelling(token):
    with pytest.raises(ValueError, match="x.index.json item '7' has .* for L1; write <a_0> and on"):
        _parse(f'{{"3": ["<a_1>"], "7": [{token}]}}'.encode(), "x.index.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested too deeply"),
        ('{"a": ' + DEEP + "}", "nested too deeply"),
        ('{"7": 5}', "item '7' has 5; write a list"),
        ('{"7": []}', "item '7' has \\[\\]; write a list"),
        ('{"7": ["<a_1>"], "8": ["<a_1>", "<b_1>"]}', "item '8' has 2 levels, the first has 1"),
        ('{"\\ud800": ["<a_1>"]}', "half of a surrogate pair"),
        ('{"7": ["<a_1>"], "7": ["<a_2>"]}', "item '7' twice"),
        ("[]", "must hold a JSON object"),
    ],
)
def test_index_json_names_what_is_wrong(text, words):
    with pytest.raises(ValueError, match=words):
        _parse(text.encode(), "x.index.json")
