"""带校验和的 JSON：翻转任何一个比特，读出来要么一样，要么是那一种错误。"""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithm.semantic_id.files.sealed import SEAL, parse_json, seal, unseal


class FolderError(ValueError):
    pass


RECORD = {"format": "x", "codebook_sizes": [64, 128], "名字": "物品", "rate": 0.1, "next_part": 3, "none": None}


def test_round_trip_and_known_checksum():
    assert unseal(seal(RECORD), "f") == (RECORD, True)
    # 手算：sha256 of {"a":1}
    assert json.loads(seal({"a": 1}))[SEAL] == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert unseal(json.dumps(RECORD).encode(), "f") == (RECORD, False)


def test_any_flipped_bit_gives_the_same_content_or_the_error():
    data, refused = seal(RECORD), 0
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                found = unseal(bytes(damaged), "dir/MANIFEST.json", FolderError)
            except FolderError as error:
                refused += str(error).startswith("dir/MANIFEST.json ") and "\n" not in str(error)
            else:
                # 键名 self_sha256 自己坏了，看起来就像旧版本写的：多出一个不认识的键，由门去拒绝
                assert found == (RECORD, True) or (not found[1] and set(found[0]) - set(RECORD))
    assert refused > 7 * len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b"\xff\xfe", "can't decode"),
        (b"", "Expecting value"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": 1e999}', "not JSON compliant"),
        (b"9" * 100_000, "integer string conversion"),
    ],
)
def test_bad_json_is_one_kind_of_error(data, reason):
    with pytest.raises(FolderError, match=reason) as caught:
        parse_json(data, "a.json", FolderError)
    assert str(caught.value).startswith("a.json is not valid JSON")


def test_not_an_object():
    with pytest.raises(FolderError, match=r"a\.json must hold a JSON object, got list"):
        unseal(b"[]", "a.json", FolderError)


def test_nan_is_refused_when_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal({"a": float("nan")})


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_give_only_that_error(data):
    with contextlib.suppress(FolderError):
        assert parse_json(data, "f", FolderError) == json.loads(data)
