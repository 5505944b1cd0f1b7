"""Ctrl-C 与 SIGTERM：一行，说清这个命令怎样接着做；照做之后与没有被打断过的结果逐字节相同。

信号由进程自己在说定的一刻发给自己，所以不靠运气，也不用等。
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
from inspect import signature

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.interrupts import terminable

N, D = 200, 6
X = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
SMALL = ["--codebook-sizes", "8,8,16", "--epochs", "3", "--batch-size", "64"]

# 第几次走到哪个函数（做完它）时收到哪个信号
STOPPED = """
import importlib, os, sys
where, times, number, *arguments = sys.argv[1:]
module, _, path = where.partition(":")
owner = importlib.import_module("algorithm.semantic_id." + module)
*holders, name = path.split(".")
for holder in holders:
    owner = getattr(owner, holder)
real, left = getattr(owner, name), [int(times)]
def stopping(*args, **kwargs):
    result = real(*args, **kwargs)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), int(number))
    return result
setattr(owner, name, staticmethod(stopping) if hasattr(real, "__self__") else stopping)
from algorithm.semantic_id.cli import app
sys.exit(app.main(arguments))
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """一个小模型、它的数据、一张物品表，全文件共用，只读。"""
    folder = tmp_path_factory.mktemp("room")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    table = pa.table({"item_id": [f"i{n}" for n in range(N)], "embedding": rows})
    pq.write_table(table, folder / "x.parquet")
    pq.write_table(table.slice(0, 5).set_column(0, "item_id", pa.array(list("abcde"))), folder / "new.parquet")
    main("train", folder / "x.parquet", "--output", folder / "model", *SMALL)
    main("encode", folder / "model", folder / "x.parquet", "--output", folder / "cat")
    return folder


def main(*arguments, code=0):
    assert cli.main([*map(str, arguments), "--quiet"]) == code


def stopped(where, times, number, *arguments):
    """在子进程里跑到那一刻；返回 (退出码, stdout, stderr)。"""
    words = [where, str(times), str(int(number)), *map(str, arguments)]
    done = subprocess.run([sys.executable, "-c", STOPPED, *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def digest(path):
    """一个文件或目录的全部内容；训练曲线与计时每次不同，不算。"""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    keep = [p for p in files if "tensorboard" not in p.parts and p.name not in ("README.md", "metrics.jsonl")]
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in keep)).hexdigest()


@pytest.mark.parametrize(("number", "code", "word"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
])  # fmt: skip
def test_training_goes_on_with_resume(room, tmp_path, number, code, word):
    train = ("train", room / "x.parquet", "--output", tmp_path / "m", *SMALL)
    got = stopped("training.checkpointing:save", 2, number, *train)
    assert got == (code, "", f"error: {word}; run `semid train` again with --resume, without --overwrite\n")
    assert not (tmp_path / "m" / "config.json").exists()
    main(*train, "--resume")
    weights = [folder / "model.safetensors" for folder in (tmp_path / "m", room / "model")]
    assert digest(weights[0]) == digest(weights[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_encoding_goes_on_with_resume(room, tmp_path, number):
    encode = ("encode", room / "model", room / "x.parquet", "--rows-per-part", 64, "--output")
    code, out, err = stopped("encoder:SemanticIDEncoder.encode_codes", 2, number, *encode, tmp_path / "cat")
    assert (code, out) == (128 + number, "")
    assert err.endswith("; run `semid encode` again with --resume\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "cat").exists()
    main(*encode, tmp_path / "cat", "--resume")
    main(*encode, tmp_path / "whole")
    assert digest(tmp_path / "cat") == digest(tmp_path / "whole")


# 命令 → (打断的地方, 参数)；TO 是输出
OPENED, STARTED = "catalog.table:Catalog.open", "files.progress:Progress.task"
LOADED = "encoder:SemanticIDEncoder.from_pretrained"
AGAIN = {
    "info": (LOADED, "model"),
    "advise": (STARTED, "x.parquet"),
    "decode": (STARTED, "model cat --output TO"),
    "lookup": (OPENED, "cat --item i3"),
    "update": (STARTED, "TO new.parquet --model model"),
    "migrate": (OPENED, "cat model x.parquet --output TO"),
    "drift": (STARTED, "cat x.parquet --model model"),
    "export": (OPENED, "cat --index-json TO"),
    "evaluate": (STARTED, "model x.parquet --output TO"),
    "report": ("report.page:read_runs", "model --output TO"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_the_others_are_simply_run_again(room, tmp_path, name):
    where, words = AGAIN[name]
    to = tmp_path / {"decode": "to.npy", "report": "to.html"}.get(name, "to")
    if name == "update":
        shutil.copytree(room / "cat", to)
    before = digest(to) if to.exists() else None
    command = [name, *(to if w == "TO" else room / w if (room / w).exists() else w for w in words.split())]
    times = 2 if name == "migrate" else 1  # 第一次打开的是老物品表，第二次是写到一半的新表
    code, out, err = stopped(where, times, signal.SIGTERM, *command)
    assert (code, out, err) == (143, "", f"error: terminated; run `semid {name}` again\n")
    assert (digest(to) if to.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir() if path != to] == []
    main(*command)


def test_every_command_says_how_to_go_on():
    resumes = {name for name, _, module in cli.command_files() if hasattr(module, "GO_ON")}
    with_flag = {name for name, _, module in cli.command_files() if "resume" in signature(module.run).parameters}
    assert resumes == with_flag == {"train", "encode"}


def test_sigterm_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
