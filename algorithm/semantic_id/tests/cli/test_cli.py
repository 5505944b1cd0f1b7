"""命令行：全程走通、每个用户错误一行、JSON 纯净、两种语言、帮助不碰 torch。"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.options import Model, Session
from algorithm.semantic_id.errors import InputError

N, D = 240, 6
RNG = np.random.default_rng(3)
X = (RNG.standard_normal((8, D))[RNG.integers(0, 8, N)] * 4 + RNG.standard_normal((N, D))).astype(np.float32)
SMALL = ["--codebook-sizes", "8,4,4", "--epochs", "2", "--batch-size", "64"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """一个训练好的小模型与它的数据，全文件共用，只读。"""
    folder = tmp_path_factory.mktemp("room")
    np.save(folder / "x.npy", X)
    ids = pa.array([f"sku-{i}" for i in range(N)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    pq.write_table(pa.table({"sku": ids, "vec": vectors}), folder / "x.parquet")
    assert cli.main(["train", str(folder / "x.npy"), "--output", str(folder / "model"), "--quiet", *SMALL]) == 0
    return folder


def run(capsys, *arguments):
    """(退出码, stdout, stderr)。"""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, ""), err
    assert out.count("\n") == 1
    return json.loads(out)


def fails(capsys, *arguments):
    """用户错误：退出码 2，stdout 空，stderr 恰好一行。"""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# ---- 走通 ----


def test_train_encode_evaluate_decode_info(room, tmp_path, capsys):
    columns = ("--id-column", "sku", "--vector-column", "vec")
    trained = run_json(capsys, "train", room / "x.parquet", "--output", tmp_path / "m", *columns, *SMALL)
    assert (trained["embedding_dim"], trained["codebook_sizes"]) == (D, [8, 4, 4])
    assert (tmp_path / "m" / "config.json").is_file()
    assert not (tmp_path / "m" / "checkpoints").exists()
    shown = run_json(capsys, "info", tmp_path / "m")
    assert shown["fingerprint"] == trained["fingerprint"]
    assert shown["training"]["num_epochs"] == 2

    encoded = run_json(capsys, "encode", tmp_path / "m", room / "x.parquet", "--output", tmp_path / "cat", *columns)
    assert (encoded["num_items"], encoded["fingerprint"]) == (N, trained["fingerprint"])
    rows = pq.read_table(tmp_path / "cat" / "part-00000.parquet")
    assert rows.column_names == ["item_id", "l1", "l2", "l3"]
    assert rows.column("item_id").to_pylist() == [f"sku-{i}" for i in range(N)]

    decoded = run_json(capsys, "decode", tmp_path / "m", tmp_path / "cat", "--output", tmp_path / "back.npy")
    assert decoded["num_items"] == N
    back = np.load(tmp_path / "back.npy")
    figures = run_json(capsys, "evaluate", tmp_path / "m", room / "x.parquet", *columns)
    # 三条路说的是同一个误差：解码文件、评估、定义
    assert figures["mse"] == pytest.approx(np.square(X.astype(np.float64) - back).mean(), rel=1e-9)
    needed = "num_items mse relative_mse utilization perplexity collision_rate collided_item_rate max_collision"
    assert set(needed.split()) <= set(figures)
    assert len(figures["utilization"]) == len(figures["perplexity"]) == 3
    assert 0 < figures["relative_mse"] < 1


def test_row_numbers_are_the_ids_of_npy(room, tmp_path, capsys):
    assert run(capsys, "encode", room / "model", room / "x.npy", "--output", tmp_path / "cat", "--quiet") == (0, "", "")
    ids = pq.read_table(tmp_path / "cat" / "part-00000.parquet").column("item_id")
    assert (ids.type, ids.to_pylist()) == (pa.int64(), list(range(N)))


def test_same_seed_same_model_and_config_file_with_flags_on_top(room, tmp_path, capsys):
    config = {"codebook_sizes": [8, 4, 4], "batch_size": 64, "num_epochs": 2, "seed": 5, "ema_decay": 0.9}
    (tmp_path / "c.json").write_text(json.dumps(config))
    train = ("train", room / "x.npy", "--config", tmp_path / "c.json", "--output")
    one = run_json(capsys, *train, tmp_path / "a", "--seed", 0)
    assert (one["trainer_config"]["seed"], one["trainer_config"]["batch_size"], one["num_epochs"]) == (0, 64, 2)
    assert run_json(capsys, "info", tmp_path / "a")["config"]["ema_decay"] == 0.9
    del config["ema_decay"], config["seed"]
    (tmp_path / "c.json").write_text(json.dumps(config))
    two = run_json(capsys, *train, tmp_path / "b")
    assert two["fingerprint"] == run_json(capsys, "info", room / "model")["fingerprint"]
    assert two["fingerprint"] != one["fingerprint"]


def test_tables_are_chinese_by_default_and_english_on_request(room, capsys, monkeypatch):
    code, zh, _ = run(capsys, "evaluate", room / "model", room / "x.npy")
    assert code == 0
    assert "冲突率" in zh
    assert "L3" in zh
    _, en, _ = run(capsys, "evaluate", "--lang", "en", room / "model", room / "x.npy")
    assert "collision rate" in en
    assert not any("一" <= c <= "鿿" for c in en)
    monkeypatch.setenv("SEMID_LANG", "en")
    assert run(capsys, "evaluate", room / "model", room / "x.npy")[1] == en
    assert "冲突率" in run(capsys, "--lang=zh", "evaluate", room / "model", room / "x.npy")[1]


def test_other_tables_print(room, tmp_path, capsys):
    out = run(capsys, "train", room / "x.npy", "--output", tmp_path / "m", *SMALL)
    assert out[0] == 0
    assert "模型写在" in out[1]
    assert "指纹" in run(capsys, "info", tmp_path / "m")[1]
    assert "240 个物品" in run(capsys, "encode", tmp_path / "m", room / "x.npy", "--output", tmp_path / "c")[1]


def test_quiet_means_quiet(room, tmp_path, capfd, monkeypatch):
    # 训练器会用 logging 提醒「行数少于码字数」；没有任何处理器时 logging 自己往 stderr 写。
    # pytest 装的处理器会掩盖这一点，所以先拿掉
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("algorithm.semantic_id"), "handlers", [])
    train = ["train", str(room / "x.npy"), "--output", str(tmp_path / "m"), *SMALL[2:], "--codebook-sizes", "512"]
    assert (cli.main([*train, "-q"]), *capfd.readouterr()) == (0, "", "")
    code = cli.main([*train, "--overwrite"])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    assert "512" in out


# ---- 错误 ----


def test_usage_errors_are_one_line(room, capsys):
    assert "No such command 'trian'" in fails(capsys, "trian")
    assert "FEATURES" in fails(capsys, "train")
    assert "--output" in fails(capsys, "train", room / "x.npy")
    assert "--epochs" in fails(capsys, "train", room / "x.npy", "--output", "m", "--epochs", "many")
    assert "--nope" in fails(capsys, "info", room / "model", "--nope")
    assert "--lang='fr' is not supported; use zh or en" in fails(capsys, "info", "--lang", "fr", room / "model")
    assert "--lang needs a value" in fails(capsys, "info", room / "model", "--lang")


def test_wrong_lang_in_the_environment_names_the_variable(capsys, monkeypatch):
    monkeypatch.setenv("SEMID_LANG", "klingon")
    assert "SEMID_LANG='klingon'" in fails(capsys, "--version")


def test_training_doors_write_nothing(room, tmp_path, capsys):
    out = tmp_path / "m"
    bad = X.copy()
    bad[7, 2] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    (tmp_path / "c.json").write_text('{"codebook_size": [4]}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    x, to = room / "x.npy", ("--output", out)
    assert "row 7 has nan" in fails(capsys, "train", tmp_path / "bad.npy", *to, *SMALL)
    assert "does not exist" in fails(capsys, "train", tmp_path / "none.npy", *to)
    assert "--codebook-sizes '8,x'" in fails(capsys, "train", x, *to, "--codebook-sizes", "8,x")
    assert "init='magic'" in fails(capsys, "train", x, *to, "--init", "magic")
    assert "batch_size=0" in fails(capsys, "train", x, *to, "--batch-size", 0)
    assert "num_epochs=-1" in fails(capsys, "train", x, *to, "--epochs", -1, "--codebook-sizes", "4")
    assert "unknown key 'codebook_size'" in fails(capsys, "train", x, *to, "--config", tmp_path / "c.json")
    assert "must hold a JSON object, got list" in fails(capsys, "train", x, *to, "--config", tmp_path / "list.json")
    assert "not valid JSON" in fails(capsys, "train", x, *to, "--config", tmp_path / "broken.json")
    assert "No such file" in fails(capsys, "train", x, *to, "--config", tmp_path / "none.json")
    assert "--device 'tpu9'" in fails(capsys, "train", x, *to, "--device", "tpu9")
    assert "contradict" in fails(capsys, "train", x, *to, "--resume", "--overwrite")
    assert not out.exists()


def test_existing_run_folders(room, tmp_path, capsys):
    out = tmp_path / "m"
    train = ("train", room / "x.npy", "--output", out, *SMALL)
    first = run_json(capsys, *train)
    before = (out / "model.safetensors").read_bytes()
    assert "pass --overwrite" in fails(capsys, *train)
    again = run_json(capsys, *train, "--resume")  # 同一次训练已经做完：说一声，什么也不做
    assert again.pop("notes") == [*first.pop("notes"), "already finished by this very run; nothing was trained"]
    assert again == first
    assert "already finished, by a run with other settings" in fails(capsys, *train, "--resume", "--seed", 4)
    # 替换失败时旧模型还在
    np.save(tmp_path / "bad.npy", np.full((40, D), np.inf, np.float32))
    fails(capsys, "train", tmp_path / "bad.npy", "--output", out, "--overwrite", *SMALL)
    assert (out / "model.safetensors").read_bytes() == before
    second = run_json(capsys, *train, "--overwrite", "--seed", "9")
    assert second["fingerprint"] != first["fingerprint"]
    assert run_json(capsys, "info", out)["fingerprint"] == second["fingerprint"]
    (out / "notes.txt").write_text("mine")
    assert "'notes.txt', which is no training run" in fails(capsys, *train, "--overwrite")
    # 只有 README.md 的目录是别人的项目，不是训练目录
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    assert "no training run" in fails(capsys, "train", room / "x.npy", "--output", tmp_path / "project", "--overwrite")
    assert (tmp_path / "project" / "README.md").read_text() == "mine"


def test_model_and_feature_doors(room, tmp_path, capsys):
    to = ("--output", tmp_path / "out")
    assert "model folder" in fails(capsys, "encode", tmp_path / "none", room / "x.npy", *to)
    assert "not a finished model" in fails(capsys, "info", tmp_path)
    np.save(tmp_path / "wide.npy", np.ones((3, D + 1), np.float32))
    assert "width 7" in fails(capsys, "encode", room / "model", tmp_path / "wide.npy", *to)
    assert "width 7" in fails(capsys, "evaluate", room / "model", tmp_path / "wide.npy")
    assert "no column 'item_id'" in fails(capsys, "encode", room / "model", room / "x.parquet", *to)
    assert "block_rows=0" in fails(capsys, "encode", room / "model", room / "x.npy", *to, "--block-rows", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    assert "--overwrite" in fails(capsys, "encode", room / "model", room / "x.npy", *to)
    assert "holds 'file'" in fails(capsys, "encode", room / "model", room / "x.npy", *to, "--overwrite")
    np.save(tmp_path / "codes.npy", np.array([[0, 0, 4]]))
    text = fails(capsys, "decode", room / "model", tmp_path / "codes.npy", "--output", tmp_path / "back.npy")
    assert "L3 code 4; codes must be in [0, 4)" in text
    assert not (tmp_path / "back.npy").exists()


def test_a_damaged_model_is_refused(room, tmp_path, capsys):
    folder = tmp_path / "m"
    folder.mkdir()
    for path in filter(Path.is_file, (room / "model").iterdir()):  # tensorboard/ 是目录
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 4
    (folder / "model.safetensors").write_bytes(data)
    assert "damaged" in fails(capsys, "info", folder)


def test_full_disk_and_bugs_and_interrupts(room, tmp_path, capsys, monkeypatch):
    from algorithm.semantic_id.cli.models import info as command

    def raising(error):
        def action(session: Session, model: Model):
            raise error

        return action

    monkeypatch.setattr(command, "run", raising(OSError(28, "No space left on device", "/data/x")))
    assert fails(capsys, "info", "m") == "error: No space left on device: '/data/x'; free some space and run again\n"
    monkeypatch.setattr(command, "run", raising(PermissionError(13, "Permission denied", "/data/x")))
    assert fails(capsys, "info", "m") == "error: Permission denied: '/data/x'\n"
    monkeypatch.setattr(command, "run", raising(InputError("two\nlines")))
    assert fails(capsys, "info", "m") == "error: two lines\n"
    monkeypatch.setattr(command, "run", raising(RuntimeError("our bug")))
    code, out, err = run(capsys, "info", "m")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert "our bug" in err
    monkeypatch.setattr(command, "run", raising(KeyboardInterrupt()))
    code, out, err = run(capsys, "info", "m")
    assert (code, out, err.count("\n")) == (130, "", 1)
    assert err.startswith("error: interrupted")


# ---- 被杀 ----

KILLED = """
import os, signal, sys
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.catalog.format import manifest
real = manifest.write_atomically
def write(path, data):
    if path.name == "MANIFEST.json":
        os.kill(os.getpid(), signal.SIGKILL)  # 分片都写完了，清单还没有
    real(path, data)
manifest.write_atomically = write
cli.main(sys.argv[1:])
"""


def test_kill_9_while_encoding_leaves_no_catalog_and_a_rerun_succeeds(room, tmp_path, capsys):
    arguments = ["encode", str(room / "model"), str(room / "x.npy"), "--output", str(tmp_path / "cat")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "cat.partial" / "part-00000.parquet").is_file()
    assert not (tmp_path / "cat").exists()
    decode = ("decode", room / "model", tmp_path / "cat.partial", "--output", tmp_path / "x.npy")
    assert "has no MANIFEST.json" in fails(capsys, *decode)
    assert run(capsys, *arguments, "-q") == (0, "", "")
    assert os.listdir(tmp_path) == ["cat"]


def test_unique_ids_from_the_command_line(room, tmp_path, capsys):
    run_json(capsys, "train", room / "x.npy", "--output", tmp_path / "m", *SMALL, "--codebook-sizes", "4,8,64")
    encode = ("encode", tmp_path / "m", room / "x.npy", "--output")
    raw = run_json(capsys, *encode, tmp_path / "raw")
    assert raw["unique"] == "none"
    # 不给值就是 suffix，不论它站在哪里
    suffix = run_json(capsys, *encode, tmp_path / "suffix", "--unique")
    assert (suffix["unique"], run_json(capsys, *encode[:3], "--unique", "--output", tmp_path / "s2")["unique"]) == (
        "suffix",
        "suffix",
    )
    assert suffix["num_contenders"] > 0
    free = run_json(capsys, *encode, tmp_path / "free", "--unique", "nearest-free", "--prefix-price", "0")
    assert 0 < free["num_moved"] < free["num_contenders"]
    table = pq.read_table(tmp_path / "free" / "part-00000.parquet", columns=["l1", "l2", "l3"])
    assert len(set(zip(*table.to_pydict().values(), strict=True))) == N
    assert "unique='sufix' is not supported" in fails(capsys, *encode, tmp_path / "x", "--unique=sufix")
    assert "--engine 'spark'" in fails(capsys, *encode, tmp_path / "x", "--engine", "spark")
    assert "--address is only" in fails(capsys, *encode, tmp_path / "x", "--address", "auto")
    too_many = fails(capsys, "encode", room / "model", *encode[2:], tmp_path / "x", "--unique", "nearest-free")
    assert "no free code is left" in too_many
    assert not (tmp_path / "x").exists()


def test_unique_never_eats_the_model(room, tmp_path, capsys, monkeypatch):
    model, x = room / "model", room / "x.npy"
    for number, words in enumerate(
        (("--unique", model, x), (model, "--unique", x), (model, x, "--unique"), ("--unique=suffix", model, x))
    ):
        encoded = run_json(capsys, "encode", *words, "--output", tmp_path / str(number))
        assert encoded["unique"] == "suffix"
    assert run_json(capsys, "encode", "--unique", "none", model, x, "--output", tmp_path / "n")["unique"] == "none"
    # 模型目录恰好叫 suffix：紧跟在 --unique 后面就是策略，写成 --unique=suffix 或 ./suffix 就是目录
    shutil.copytree(model, tmp_path / "suffix")
    monkeypatch.chdir(tmp_path)
    assert "FEATURES" in fails(capsys, "encode", "--unique", "suffix", x, "--output", "s")
    for words in (("--unique=suffix", "suffix"), ("--unique", "./suffix"), ("suffix", "--unique")):
        assert run_json(capsys, "encode", *words, x, "--output", f"s{len(words[0])}")["unique"] == "suffix"
    typo = fails(capsys, "encode", model, x, "--output", "t", "--unique", "sufix")
    assert "sufix" in typo
    assert "--unique takes one of none, suffix, nearest-free, or nothing" in typo
