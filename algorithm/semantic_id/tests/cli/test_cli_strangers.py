"""陌生人的文字上屏：标题、编号、路径、列名里的转义序列在命令的每一处都只是看得见的字。"""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.models import demo
from algorithm.semantic_id.cli.page import Page, json_line

N, D = 400, 4
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
# 改窗口标题（OSC 0）、超链接（OSC 8）、清屏、响铃、没有 ESC 的 C1、双向翻转、换行伪造一行、回车盖住一行
EVIL = (
    "a\x1b]0;owned\x07", "b\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "c\x1b[2J", "d\x07", "e\x9b31m\x9d0;x\x9c",
    "f\u202egpj.exe\u2066", "g\nerror: fake", "h\r\x00i",
)  # fmt: skip


def is_clean(text):
    """除了行尾的换行，没有会动终端的字符。"""
    return not [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert is_clean(out), out
    assert is_clean(err), err
    assert err.count("\n") <= 1
    return code, out, err


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """编号全是坏心的物品，目录名也是。"""
    folder = tmp_path_factory.mktemp("room") / "m\x1b[31m\u202e"
    folder.mkdir()
    ids = [*EVIL, *(f"sku-{i}" for i in range(N - len(EVIL)))]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    table = {"item_id": ids, "title": ids, "embedding": rows, "tag\x1b[5m": ids}
    pq.write_table(pa.table(table), folder / "x.parquet")
    small = ["--codebook-sizes", "4,4", "--epochs", "0"]
    assert cli.main(["train", str(folder / "x.parquet"), "--output", str(folder / "model"), "--quiet", *small]) == 0
    encode = ["encode", str(folder / "model"), str(folder / "x.parquet"), "--output", str(folder / "cat"), "--quiet"]
    assert cli.main([*encode, "--unique"]) == 0
    return folder


def test_tables_show_the_escapes(room, capsys):
    code, out, _ = run(capsys, "lookup", room / "cat", "--prefix", "", "--limit", N)
    assert code == 0
    for shown in ("a\\x1b]0;owned\\x07", "e\\x9b31m", "f\\u202egpj.exe\\u2066", "g\\nerror: fake", "h\\r\\x00i"):
        assert shown in out
    assert "a\\x1b]0;owned\\x07" in run(capsys, "lookup", room / "cat", "--item", EVIL[0])[1]


def test_every_summary_is_clean(room, tmp_path, capsys):
    to = tmp_path / "o\x1b[31mut"
    to.mkdir()
    model, x, cat = room / "model", room / "x.parquet", room / "cat"
    for words in (
        ("info", model),
        ("train", x, "--output", to / "m", "--codebook-sizes", "4,4", "--epochs", 0),
        ("encode", model, x, "--output", to / "cat"),
        ("decode", model, cat, "--output", to / "x.npy"),
        ("evaluate", model, x, "--output", to / "e", "--labels", "tag\x1b[5m"),
        ("advise", x, "--levels", 2),
        ("drift", cat, x, "--model", model),
        ("update", to / "cat", x, "--model", model),
        ("migrate", cat, model, x, "--output", to / "moved"),
        ("export", cat, "--index-json", to / "i.json"),
        ("import", to / "i.json", "--output", to / "back"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, err) == (0, ""), words
        assert out


def test_errors_are_one_clean_line(room, tmp_path, capsys):
    evil = tmp_path / EVIL[0].replace("/", "")
    for words in (
        ("info", evil),
        ("info", room / "model", "--no\x1b[31mpe"),
        ("\x1b]0;x\x07",),
        ("train", evil, "--output", tmp_path / "m"),
        ("train", room / "x.parquet", "--output", tmp_path / "m", "--config", evil),
        ("train", room / "x.parquet", "--output", tmp_path / "m", "--codebook-sizes", "4\x1b[2J"),
        ("encode", room / "model", room / "x.parquet", "--output", tmp_path / "c", "--vector-column", "\x1b[2J\x9b"),
        ("lookup", room / "cat", "--prefix", "\x9b1"),
        ("evaluate", room / "model", room / "x.parquet", "--labels", "\x1b[2J"),
        ("--lang", "\x1b[2J", "info", room / "model"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out) == (2, ""), words
        assert err.startswith("error: ")


def test_duplicate_ids_are_named_without_acting(tmp_path, capsys):
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    pq.write_table(pa.table({"item_id": [EVIL[1]] * N, "embedding": rows}), tmp_path / "x.parquet")
    small = ("--codebook-sizes", "4,4", "--epochs", 0)
    assert run(capsys, "train", tmp_path / "x.parquet", "--output", tmp_path / "m", *small, "-q")[0] == 0
    code, _, err = run(capsys, "encode", tmp_path / "m", tmp_path / "x.parquet", "--output", tmp_path / "c")
    assert code == 2
    assert "\\x1b]8;;http://evil" in err


def test_titles_in_the_demo_are_text(capsys):
    branch = {"prefix": [1, 2], "num_items": 9, "titles": [*EVIL, "[red]x[/red]", ":smile:"]}
    demo._show_group({"label": EVIL[5], "prefix": [1], "num_items": 9, "purity": 0.5, "branches": [branch]}, Page("zh"))
    out = capsys.readouterr().out
    assert is_clean(out)
    assert ":smile:" in out
    assert "[red]x[/red]" in out


def test_json_reads_back_what_was_there():
    result = {"item_id": list(EVIL), "名字": "连衣裙 😀"}
    line = json_line(result)
    assert json.loads(line) == result
    assert is_clean(line)
    assert "连衣裙 😀" in line
