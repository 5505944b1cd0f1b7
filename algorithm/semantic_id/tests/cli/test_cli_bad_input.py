"""每个命令的每个输入各喂一遍坏文件：退出码 2，恰好一行，什么也没留下；别的库的异常一个也不漏成回溯。"""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli

N, D = 300, 6
X = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


def write(path, ids, x=X, name="embedding"):
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).ravel()), x.shape[1])
    pq.write_table(pa.table({"item_id": ids, name: rows}), path)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """好的模型、物品表与特征，和一柜子坏文件。"""
    folder = tmp_path_factory.mktemp("room")
    write(folder / "x.parquet", [f"i{n}" for n in range(N)])
    model, x = str(folder / "model"), str(folder / "x.parquet")
    assert cli.main(["train", x, "--output", model, "--codebook-sizes", "4,4", "--epochs", "0", "-q"]) == 0
    assert cli.main(["encode", model, x, "--output", str(folder / "cat"), "--unique", "-q"]) == 0
    bad = folder / "bad"
    bad.mkdir()
    good = (folder / "x.parquet").read_bytes()
    for name in ("empty.npy", "empty.parquet", "empty.json"):
        (bad / name).write_bytes(b"")
    (bad / "cut.parquet").write_bytes(good[:-200])
    (bad / "text.parquet").write_text("hello")
    (bad / "text.npy").write_text("hello")
    (bad / "text.json").write_bytes(b'{"a": "\xff"}')
    (bad / "deep.json").write_text("[" * 100_000)
    np.save(bad / "x.npy", X)
    (bad / "cut.npy").write_bytes((bad / "x.npy").read_bytes()[:-100])
    (bad / "x.npy").unlink()
    np.save(bad / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(bad / "words.npy", np.array([["a", "b"]]))
    np.save(bad / "none.npy", np.ones((0, D), np.float32))
    nan = X.copy()
    nan[5, 2] = np.nan
    np.save(bad / "nan.npy", nan)
    write(bad / "null_ids.parquet", [None] * N, np.full((N, D), np.nan, np.float32))
    write(bad / "float_ids.parquet", pa.array(np.arange(N) / 2), np.ones((N, 9), np.float32))
    (bad / "folder.parquet").mkdir()
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["item_id"] * 2), bad / "twice.parquet"
    )
    (bad / "x.csv").write_text("item_id,embedding\na,1\n")
    return folder


# 每扇门：命令，BAD 是坏文件
DOORS = [
    "train BAD --output OUT --codebook-sizes 4,4 --epochs 0",
    "train x.parquet --output OUT --codebook-sizes 4,4 --epochs 0 --pairs BAD",
    "train x.parquet --output OUT --config BAD",
    "encode model BAD --output OUT",
    "encode BAD x.parquet --output OUT",
    "decode model BAD --output OUT.npy",
    "info BAD",
    "tokens BAD --tokenizer bad --output OUT",
    "advise BAD",
    "lookup BAD --item a",
    "update cat BAD --model model",
    "update cat --retire BAD --model model",
    "migrate cat model BAD --output OUT",
    "drift cat BAD --model model",
    "import BAD --output OUT",
    "export BAD --index-json OUT.json",
    "evaluate model BAD --output OUT",
    "evaluate --codes BAD x.parquet --output OUT",
    "evaluate model x.parquet --interactions BAD --output OUT",
    "evaluate model x.parquet --items BAD --labels tag --output OUT",
    "evaluate model x.parquet --catalog BAD --output OUT",
    "evaluate model x.parquet --unseen BAD --output OUT",
    "report BAD --output OUT.html",
]


@pytest.mark.parametrize("door", DOORS)
def test_bad_files_are_one_line_and_leave_nothing(door, room, tmp_path, capsys):
    before = sorted(room.rglob("*"))
    for path in [*sorted((room / "bad").iterdir()), room / "missing.npy", room / "bad" / "x.csv" / "below.npy"]:
        words = door.replace("OUT", str(tmp_path / "out")).split()
        words = [str(path) if w == "BAD" else str(room / w) if (room / w).exists() else w for w in words]
        code = cli.main(words)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), (path.name, out, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert list(tmp_path.iterdir()) == [], path.name
    assert sorted(room.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("train x.parquet --output OUT --codebook-sizes 3000000000", "codebook_sizes[0]=3000000000 is out of range"),
        ("train x.parquet --output OUT --epochs 99999999999", "num_epochs=99999999999 is out of range"),
        ("train x.parquet --output OUT --device meta", "--device 'meta' cannot be used here"),
        ("encode model x.parquet --output OUT --device meta", "--device 'meta' cannot be used here"),
        ("advise x.parquet --seed -1", "seed=-1 is out of range"),
        ("advise x.parquet --seed 99999999999999999999", "is out of range"),
        ("lookup cat --limit -1 --prefix 1", "--limit -1 is out of range"),
        ("tokens model --tokenizer bad --output OUT --suffix-size -1", "--suffix-size -1 is out of range"),
        # 输出与输入重叠
        ("export cat --index-json cat/MANIFEST.json --overwrite", "lies inside the input"),
        ("decode model cat --output cat/x.npy", "lies inside the input"),
        ("encode model x.parquet --output model/cat", "lies inside the input"),
        ("encode model bad --output bad/cat", "lies inside the input"),
        ("migrate cat model x.parquet --output cat", "is an input of this command"),
        ("encode model cat/part-00000.parquet --output cat --overwrite", "holds the input"),
        ("train x.parquet --output x.parquet --overwrite", "is an input of this command"),
        # 输出不是文件
        ("export cat --index-json PIPE --overwrite", "is a device or a pipe"),
    ],
)
def test_bad_values_and_outputs(words, text, room, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    before = {path: path.read_bytes() for path in room.rglob("*") if path.is_file()}
    words = words.replace("OUT", str(tmp_path / "out")).replace("PIPE", str(tmp_path / "pipe")).split()
    code = cli.main([str(room / w) if (room / w.split("/")[0]).exists() else w for w in words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert text in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert {path: path.read_bytes() for path in room.rglob("*") if path.is_file()} == before
