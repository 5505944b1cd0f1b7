"""训练在任何时刻被杀、磁盘写满、与别的写者相遇：什么也不丢，续训与重来都得到不中断的字节。

时刻不靠钟表：`sys.addaudithook` 看得见进程每一次打开、改名、删除文件，数到第 n 次就动手，所以每个时刻都可以重现。
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys

import numpy as np
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook

CONFIG = SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 6), hidden_dim=4)
SETTINGS = TrainerConfig(batch_size=64, effort="fast", kmeans_iterations=2)
FILES = ("config.json", "model.safetensors", "README.md")
NUM_KILLS = 12  # 时刻按种子抽；torture 里可以多抽
WRITES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}


def data(num_rows=200, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_rows, 4)) + rng.integers(3, size=(num_rows, 1))).astype(np.float32)


def trained(folder, x=None, epochs=3, config=SETTINGS, **kwargs):
    encoder = SemanticIDEncoder(CONFIG)
    x = data() if x is None else x
    return encoder, train_codebook(encoder, x, epochs, config=config, output_dir=folder, progress=False, **kwargs)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "m"
    trained(folder)
    return contents(folder)


def on_write(root, act):
    """第 n 次要写 `root` 里的东西之前调用 act(n)；钩子拿不掉，只在子进程里装，或让 act 自己停下。"""
    count = [0]

    def hook(event, args):
        if event not in WRITES or not args or not isinstance(args[0], str) or not args[0].startswith(str(root)):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        count[0] += 1
        act(count[0])

    sys.addaudithook(hook)
    return count


def in_child(work):
    """在 fork 出的进程里做；返回它的退出状态（负数是信号）。"""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(moment, root, **kwargs):
    def work():
        on_write(root, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == moment else None)
        trained(root, **kwargs)

    return in_child(work)


@pytest.fixture(scope="module")
def num_writes(tmp_path_factory):
    """一次不中断的训练写多少次。"""
    folder = tmp_path_factory.mktemp("count")

    def work():
        count = on_write(folder / "m", lambda n: None)
        trained(folder / "m")
        (folder / "count").write_text(str(count[0]))

    assert in_child(work) == 0
    return int((folder / "count").read_text())


def moments(num_writes, count, seed):
    """最初（初始化之前）与最后（写模型、收尾）的几次总在，其余按种子抽。"""
    drawn = random.Random(seed).sample(range(1, num_writes + 1), count)
    return sorted({1, 2, 3, *range(num_writes - 10, num_writes + 1, 2), *drawn})


def test_killed_at_any_moment_it_can_be_finished_or_replaced(tmp_path, reference, num_writes):
    for number, moment in enumerate(moments(num_writes, NUM_KILLS, seed=1)):
        folder, way = tmp_path / f"{moment}", ("resume", "overwrite")[number % 2]
        assert killed_at(moment, folder) == -signal.SIGKILL, moment
        trained(folder, **{way: True})
        assert contents(folder) == reference, moment
        left = {path.name for path in folder.iterdir()} - {"tensorboard"}
        assert left == {*FILES, "metrics.jsonl"}, moment
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(f".{moment}.")] == [], moment


def test_killed_while_replacing_a_finished_model_the_folder_is_never_without_one(tmp_path, reference, num_writes):
    """旧模型或新模型，任何时刻都读得出一个完整的；之后续训或重来都得到新的。"""
    other = TrainerConfig(batch_size=64, effort="fast", kmeans_iterations=2, seed=5)
    old = trained(tmp_path / "old", config=other)[0].fingerprint()
    new = json.loads(reference["config.json"])["fingerprint"]
    for moment in moments(num_writes, 4, seed=2)[1::2]:
        folder = tmp_path / f"{moment}"
        trained(folder, config=other)
        assert killed_at(moment, folder, overwrite=True) in (-signal.SIGKILL, 0)
        assert SemanticIDEncoder.from_pretrained(folder).fingerprint() in (old, new), moment
        # 还没开工就被杀：里面仍是旧模型，属于另一次训练，不能续
        started = (folder / "checkpoints").exists() or SemanticIDEncoder.from_pretrained(folder).fingerprint() == new
        trained(folder, **({"resume": True} if started else {"overwrite": True}))
        assert contents(folder) == reference, moment


def test_full_disk_at_any_write(tmp_path, reference, num_writes):
    """第 n 次写报「磁盘满」：出错，不留半个模型；腾出地方之后续训得到同样的字节。"""
    for moment in moments(num_writes, 8, seed=3)[::2]:
        folder = tmp_path / f"{moment}"

        def work(folder=folder, moment=moment):
            def full(n):
                if n == moment:
                    raise OSError(28, "No space left on device")

            on_write(folder, full)
            try:
                trained(folder)
            except OSError as error:
                os._exit(28 if error.errno == 28 else 9)

        assert in_child(work) in (28, 0), moment  # 0：恰是收尾时删不掉东西
        trained(folder, resume=True)
        assert contents(folder) == reference, moment


def test_resuming_a_finished_run_returns_its_figures_and_trains_nothing(tmp_path, monkeypatch):
    first, figures = trained(tmp_path / "m")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}
    monkeypatch.setattr("algorithm.semantic_id.trainer._run", None)
    again, same = trained(tmp_path / "m", resume=True)
    note = "already finished by this very run; nothing was trained"
    assert same == {**json.loads(json.dumps(figures)), "notes": [*figures["notes"], note]}
    assert again.fingerprint() == first.fingerprint()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")} == before
    for change in ({"x": data(seed=1)}, {"epochs": 4}, {"config": TrainerConfig(seed=3)}):
        with pytest.raises(FileExistsError, match="already finished, by a run with other settings or data"):
            trained(tmp_path / "m", resume=True, **change)


def test_two_trainings_into_one_folder_the_second_is_refused(tmp_path, reference):
    folder = tmp_path / "m"
    refused = []

    real = TrainerConfig.to_dict

    def meet(self):  # 第一次训练写第一个断点时，第二次想进同一个目录
        if not refused:
            refused.append(None)
            for choice in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(FileExistsError, match="another process is writing .*; wait for it or choose"):
                    trained(folder, **choice)
                refused.append(choice)
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerConfig, "to_dict", meet)
        trained(folder)
    assert len(refused) == 4
    assert contents(folder) == reference


def trained_while(folder, appear):
    """在子进程里训练；第二次写之前，别人的文件在目录里出现。返回是否训练成功。"""

    def work():
        on_write(folder, lambda n: appear() if n == 2 else None)
        try:
            trained(folder)
        except FileExistsError:
            os._exit(17)

    status = in_child(work)
    assert status in (0, 17)
    return status == 0


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("notes.txt", False),
        ("README.md", False),
        ("checkpoints/notes.txt", False),
        ("tensorboard/notes.txt", False),
        ("config.json", True),
        ("metrics.jsonl", True),
    ],
)
def test_what_appears_while_training_survives(tmp_path, reference, name, stops):
    """说明与笔记留着，模型照写；撞名的不覆盖，移走之后续训得到同样的模型。"""
    folder = tmp_path / "m"

    def appear():
        os.makedirs((folder / name).parent, exist_ok=True)
        (folder / name).write_text("mine")

    assert trained_while(folder, appear) != stops
    assert (folder / name).read_text() == "mine"
    if stops:
        (folder / name).unlink()
        trained(folder, resume=True)
    assert (folder / "model.safetensors").read_bytes() == reference["model.safetensors"]


def test_another_finished_model_that_appears_while_training_survives(tmp_path, reference):
    other, folder = tmp_path / "other", tmp_path / "m"
    trained(other, x=data(seed=9))
    folder.mkdir()
    assert not trained_while(folder, lambda: [shutil.copy(other / name, folder) for name in FILES])
    assert contents(folder) == contents(other)
    for name in FILES:
        (folder / name).unlink()
    trained(folder, resume=True)
    assert contents(folder) == reference


def test_any_flipped_bit_or_cut_of_a_checkpoint_is_noticed(tmp_path):
    """断点的每个文件，均匀取位置翻转一位或截断：要么得到同样的模型，要么一个说得出文件的错误。"""
    folder = tmp_path / "m"
    reference = trained(tmp_path / "whole")[0].fingerprint()

    def work():
        from algorithm.semantic_id.training.epochs import EpochRunner

        EpochRunner.refit = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        trained(folder)

    assert in_child(work) == -signal.SIGKILL
    (epoch,) = (folder / "checkpoints").iterdir()
    rng = random.Random(4)
    for path in sorted(epoch.iterdir()):
        good = path.read_bytes()
        for trial in range(12):
            place = rng.randrange(len(good))
            bad = bytearray(good)
            bad[place] ^= 1 << rng.randrange(8)
            path.write_bytes(good[:place] if trial % 4 == 0 else bytes(bad))
            with pytest.raises(ValueError, match=r"checkpoint .*epoch-000003") as caught:
                trained(folder, resume=True)
            assert path.name in str(caught.value) or "state.json" in str(caught.value)
        path.write_bytes(good)
    assert trained(folder, resume=True)[0].fingerprint() == reference


def test_a_checkpoint_without_checksum_is_refused(tmp_path):
    folder = tmp_path / "m"

    def work():
        on_write(folder, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == 60 else None)
        trained(folder)

    assert in_child(work) == -signal.SIGKILL
    (epoch,) = (folder / "checkpoints").glob("epoch-*")
    state = json.loads((epoch / "state.json").read_text())
    del state["self_sha256"]
    (epoch / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state.json\) has no checksum: damaged, or of an older semid; start over"):
        trained(folder, resume=True)
    assert torch.is_tensor(trained(folder, overwrite=True)[0].feature_mean)
