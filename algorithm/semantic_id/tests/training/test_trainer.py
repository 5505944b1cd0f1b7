"""训练器：可复现、断点续训逐位相同、来源无关、尺度等变、留下最好的状态。"""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.files.sealed import seal, unseal
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.training import epochs as epochs_room
from algorithm.semantic_id.training import plan as plan_room
from algorithm.semantic_id.training import rows as training_rows
from algorithm.semantic_id.training.judge import judge
from algorithm.semantic_id.training.plan import EFFORTS
from algorithm.semantic_id.training.refine import Refiner
from algorithm.semantic_id.training.rows import TrainingRows

CONFIG = SemanticIDConfig(embedding_dim=8, codebook_sizes=(8, 16), hidden_dim=8)
FAST = TrainerConfig(batch_size=128, kmeans_iterations=3)
UNIFORM = TrainerConfig(batch_size=128, init="uniform")
ROUNDS = EFFORTS["default"].max_rounds  # 数据这么小，每个精修 epoch 都跑满


def data(num_rows=1000, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((20, dim)) * 3
    return (centers[rng.integers(20, size=num_rows)] + rng.standard_normal((num_rows, dim))).astype(np.float32)


def trained(x, epochs=4, config=FAST, encoder=None, **kwargs):
    encoder = encoder if encoder is not None else SemanticIDEncoder(CONFIG)
    figures = train_codebook(encoder, x, epochs, config=config, progress=False, **kwargs)
    return encoder, figures


def test_same_seed_same_bytes_whatever_the_global_random_state():
    x = data()
    torch.manual_seed(1)
    first, figures = trained(x)
    torch.manual_seed(2)
    second, again = trained(x)
    assert first.fingerprint() == second.fingerprint()
    assert figures == again
    other, _ = trained(x, config=TrainerConfig(batch_size=128, kmeans_iterations=3, seed=1))
    assert other.fingerprint() != first.fingerprint()


def test_every_kind_of_source_gives_the_same_bytes(tmp_path):
    x = data()
    reference = trained(x)[0].fingerprint()
    np.save(tmp_path / "x.npy", x)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 8)
    pq.write_table(
        pa.table({"item_id": np.arange(1000), "embedding": fixed}), tmp_path / "x.parquet", row_group_size=77
    )
    sources = [torch.from_numpy(x), tmp_path / "x.npy", str(tmp_path / "x.parquet"), open_vectors(x)]
    sources.append(np.load(tmp_path / "x.npy", mmap_mode="r"))
    for source in sources:
        assert trained(source)[0].fingerprint() == reference


def test_rows_on_disk_give_valid_training(monkeypatch, tmp_path):
    """块放不下时转存磁盘：每个 epoch 仍恰好见到每一行一次，批次只由 (seed, epoch) 决定。"""
    monkeypatch.setattr(training_rows, "_CHUNK_ROWS", 64)
    monkeypatch.setattr(training_rows, "_BLOCK_BYTES", 200 * 8 * 4)
    x = data(1000)
    x[:, 0] = np.arange(1000)
    rows = TrainingRows(open_vectors(x), TrainerConfig(holdout_rate=0.1), tmp_path)
    assert (tmp_path / "rows.f32").stat().st_size == 900 * 8 * 4
    assert rows.block_rows == 200
    epoch = [b.clone() for b in rows.batches(3, 70)]
    assert [len(b) for b in epoch] == [70] * 12 + [60]
    seen = torch.cat(epoch)[:, 0]
    held = rows.holdout[:, 0]
    assert sorted(torch.cat([seen, held]).tolist()) == list(range(1000))
    assert torch.equal(torch.cat(list(rows.batches(3, 70))), torch.cat(epoch))
    assert not torch.equal(torch.cat(list(rows.batches(4, 70))), torch.cat(epoch))
    assert not torch.equal(seen.sort().values, seen)
    assert len(rows.sample()) == 200
    encoder, figures = trained(x)
    assert figures["num_train_rows"] == 950
    assert 0 < figures["relative_mse"] < 1


def test_running_mean_and_deviation(monkeypatch):
    monkeypatch.setattr(training_rows, "_READ_ROWS", 33)
    x = data(500) + 100
    rows = TrainingRows(open_vectors(x), TrainerConfig(holdout_rate=0.0), Path())
    assert len(rows.holdout) == 0
    np.testing.assert_allclose(rows.mean, x.astype(np.float64).mean(0), rtol=1e-6)
    expected = float(np.square(x.astype(np.float64) - x.astype(np.float64).mean(0)).sum())
    assert rows.squared_deviation == pytest.approx(expected, rel=1e-5)


def test_sample_is_uniform_seeded_and_recorded(monkeypatch):
    monkeypatch.setattr(training_rows, "_READ_ROWS", 50)
    x = np.arange(1000, dtype=np.float32)[:, None].repeat(8, 1)
    taken = []
    for seed in range(30):
        config = TrainerConfig(max_train_rows=100, holdout_rate=0.1, seed=seed)
        rows = TrainingRows(open_vectors(x), config, Path())
        values = torch.cat([rows.sample(), rows.holdout])[:, 0].tolist()
        assert len(set(values)) == 100
        assert rows.num_train_rows == 90
        taken += values
    assert abs(np.mean(taken) - 499.5) < 4 * 288.7 / np.sqrt(3000)
    histogram = np.histogram(taken, bins=20, range=(0, 1000))[0]
    assert histogram.min() > 90
    assert histogram.max() < 220
    _, figures = trained(data(), config=TrainerConfig(max_train_rows=300))
    assert figures["trainer_config"]["max_train_rows"] == 300
    assert figures["num_source_rows"] == 1000
    assert figures["num_train_rows"] + figures["num_holdout_rows"] == 300


@pytest.mark.parametrize("power", [-30, 9])
def test_scaling_features_by_a_power_of_two_keeps_every_id(power):
    x = data()
    encoder, figures = trained(x, epochs=4)
    scaled, scaled_figures = trained(x * np.float32(2.0**power), epochs=4)
    assert scaled_figures["network_kept"] == figures["network_kept"]
    assert scaled_figures["relative_mse"] == figures["relative_mse"]
    x = torch.from_numpy(x)
    assert torch.equal(encoder.encode_codes(x), scaled.encode_codes(x * 2.0**power))


def test_network_trajectory_is_scale_free_too():
    """上一条里网络可能没被留下；这里没有留出行，网络必定留下，直接比较它。"""
    x = data()
    histories = []
    for power in (0, 9):
        encoder = SemanticIDEncoder(CONFIG)
        config = TrainerConfig(batch_size=128, kmeans_iterations=3, holdout_rate=0.0)
        trained(x * np.float32(2.0**power), epochs=5, config=config, encoder=encoder)
        histories.append(encoder)
    a, b = (e.rq_vae.decoder for e in histories)
    assert not a.is_identity()
    assert histories[0].rq_vae.encoder.is_identity()
    assert torch.equal(a.weight_out, b.weight_out)
    assert float(b.unit) == 2**9 * float(a.unit)


KILLED = """
import os, signal, torch
torch.set_num_threads(1)
from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.training.refine import Refiner
from algorithm.semantic_id.training.epochs import EpochRunner
from algorithm.semantic_id.training.state import RunState
def kill_at(owner, name, count):
    real, calls = getattr(owner, name), []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, wrapped)
kill_at({owner}, {name!r}, {count})
encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=8, codebook_sizes=(8, 16), hidden_dim=8))
train_codebook(encoder, {features!r}, 10, output_dir={output!r}, resume={resume}, progress=False,
               config=TrainerConfig(batch_size=128, kmeans_iterations=3))
"""


def killed(**fields):
    script = KILLED.format(**fields)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return sorted(p.name for p in (Path(fields["output"]) / "checkpoints").iterdir())


def test_resume_after_kill_9_gives_the_same_bytes(tmp_path):
    """三次 SIGKILL：第 3 个 epoch（精修）的第 8 轮，第 9 个（网络）的第 2 遍，最后的 refit；最终与不中断的逐位相同。"""
    x = data()
    np.save(tmp_path / "x.npy", x)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    reference, reference_figures = trained(x, epochs=10, output_dir=whole)
    common = {"features": str(tmp_path / "x.npy"), "output": str(cut)}
    assert killed(owner="Refiner", name="round_", count=2 * ROUNDS + 8, resume=False, **common) == ["epoch-000002"]
    assert not (cut / "config.json").exists()
    with pytest.raises(FileNotFoundError, match="not a finished model"):
        SemanticIDEncoder.from_pretrained(cut)
    with pytest.raises(FileExistsError, match=r"exists; pass --resume \(resume=True\) to go on"):
        trained(x, epochs=10, output_dir=cut)
    with pytest.raises(ValueError, match=r"cannot resume .* num_epochs is 6, the interrupted run had 10"):
        trained(x, epochs=6, output_dir=cut, resume=True)
    with pytest.raises(ValueError, match=r"cannot resume .* data_sha256"):
        trained(x + 1, epochs=10, output_dir=cut, resume=True)
    found = killed(owner="RunState", name="keep_if_best", count=8, resume=True, **common)
    assert found == ["epoch-000008"]
    found = killed(owner="EpochRunner", name="refit", count=1, resume=True, **common)
    assert found == ["epoch-000010"]
    resumed, figures = trained(x, epochs=10, output_dir=cut, resume=True)
    assert resumed.fingerprint() == reference.fingerprint()
    assert figures == reference_figures
    for name in ("model.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (cut, whole)]
    assert [len(log) for log in logs] == [11, 11]
    without_time = [[{k: v for k, v in json.loads(r).items() if k != "elapsed_s"} for r in log] for log in logs]
    assert without_time[0] == without_time[1]
    assert not (cut / "checkpoints").exists()


def test_damaged_checkpoint_is_refused(tmp_path, monkeypatch):
    class Stop(RuntimeError):
        pass

    def order(self, epoch):
        raise Stop  # 第 5 个 epoch 是第一个打乱行的

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(TrainingRows, "order", order)
        trained(data(), epochs=5, output_dir=tmp_path)
    path = tmp_path / "checkpoints" / "epoch-000004" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=r"is damaged \(model.safetensors\); delete it and resume"):
        trained(data(), epochs=5, output_dir=tmp_path, resume=True)
    # 别人写的 state.json：校验和对，内容不对
    state = path.with_name("state.json")
    whole, _ = unseal(state.read_bytes(), "state.json")
    for changed, complaint in (
        ({"phases": None}, "no valid 'phases'"),
        ({"epoch": 7}, "does not describe 7 epochs"),
        ({"best": {"key": ["x", 0], "epoch": 0}}, "does not describe 4 epochs"),
        ({"history": [{}] * 5}, "does not describe 4 epochs"),
        ({"sha256": {"../x": "0"}}, "lists no files"),
    ):
        if "sha256" not in changed:
            changed = {**changed, "sha256": {**whole["sha256"], "model": hashlib.sha256(path.read_bytes()).hexdigest()}}
        state.write_bytes(seal({**whole, **changed}))
        with pytest.raises(ValueError, match=complaint):
            trained(data(), epochs=5, output_dir=tmp_path, resume=True)


def test_metrics_per_epoch(tmp_path):
    trained(data(), epochs=5, output_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["phase"]) for r in rows] == [
        (0, "init"), *((epoch, "refine") for epoch in range(1, 5)), (5, "network")
    ]  # fmt: skip
    for row in rows[1:]:
        for name in ("utilization", "perplexity", "dead_codes", "holdout_level_mse"):
            assert len(row[name]) == 2
        for dead, used, size in zip(row["dead_codes"], row["utilization"], (8, 16), strict=True):
            assert dead == round((1 - used) * size)
    assert rows[-1]["reconstruction_loss"] <= rows[-2]["reconstruction_loss"]  # 编号不变，解码网络只会更准
    assert rows[-1]["holdout_level_mse"][0] > rows[-1]["holdout_level_mse"][1]
    assert 0.8 < rows[4]["reconstruction_loss"] / rows[4]["holdout_mse"] < 1.2  # 同一种误差，一个带着退火的噪声


def test_uniform_init_goes_through_ema_first(tmp_path):
    _, figures = trained(data(), epochs=10, config=UNIFORM, output_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["phase"] for r in rows] == ["init", *["ema"] * 5, *["refine"] * 3, *["network"] * 2]
    assert min(figures["utilization"]) >= 0.9


def test_keeps_the_best_state_by_held_back_error(monkeypatch):
    monkeypatch.setattr(epochs_room.EpochRunner, "refit", lambda self: 0)
    x = data()
    encoder, figures = trained(x, epochs=6)
    rows = TrainingRows(open_vectors(x), FAST, Path())
    now = judge(encoder, rows.holdout, rows.mean)
    assert now["relative_mse"] == figures["holdout_relative_mse"]


def test_refit_is_two_silent_rounds_over_every_row_with_the_reading_beam(monkeypatch):
    """与手工相同：先训练到选定的状态，再对训练行与留出行不加噪地更新两轮；留出的数字仍是更新之前的。"""
    x = data()
    encoder, figures = trained(x, epochs=6)
    with monkeypatch.context() as patch:
        patch.setattr(epochs_room.EpochRunner, "refit", lambda self: 0)
        by_hand, before = trained(x, epochs=6)
    rows = TrainingRows(open_vectors(x), FAST, Path())
    z = torch.cat([rows.draw(0), rows.holdout])
    for _ in range(2):
        Refiner(by_hand.rq_vae).round_(z, 0.0, 0, FAST.batch_size, beam_size=4)
    assert (before["num_refit_rows"], figures["num_refit_rows"]) == (0, 1000)
    for ours, theirs in zip(encoder.rq_vae.quantizers, by_hand.rq_vae.quantizers, strict=True):
        assert torch.equal(ours.embedding.weight, theirs.embedding.weight)
    assert figures["holdout_relative_mse"] == before["holdout_relative_mse"]
    now = judge(encoder, rows.holdout, rows.mean)["relative_mse"]
    assert now < figures["holdout_relative_mse"]


def test_no_refit_where_refining_never_beat_the_start():
    """每行都有自己的码字，k-means 已经没有误差；精修把码字向零收缩，留出行只会更差。"""
    x = np.repeat(data(16), 20, axis=0)
    _, figures = trained(x, epochs=4)
    assert figures["best_epoch"] == 0
    assert figures["num_refit_rows"] == 0
    assert figures["relative_mse"] < 1e-6


def test_no_refit_without_held_back_rows_or_where_the_rows_exceed_a_block(monkeypatch):
    config = TrainerConfig(batch_size=128, kmeans_iterations=3, holdout_rate=0.0)
    assert trained(data(), epochs=4, config=config)[1]["num_refit_rows"] == 0
    monkeypatch.setattr(training_rows, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(training_rows, "_CHUNK_ROWS", 256)
    assert trained(data(), epochs=4)[1]["num_refit_rows"] == 0


@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
def test_the_decoder_sees_every_row_with_its_own_code(monkeypatch, block_bytes):
    """一块放得下时编号只算一次，否则边走边算：都是这一行自己的编号，每行正好一次。"""
    monkeypatch.setattr(training_rows, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(training_rows, "_CHUNK_ROWS", 256)
    seen = []

    def decoder_pass(rq_vae, batches, num_rows, optimizer, bar, label):
        for x, codes in batches:
            assert torch.equal(codes, torch.stack(rq_vae.encode(x), 1))
            seen.append(x)
        return {}

    monkeypatch.setattr(epochs_room, "decoder_pass", decoder_pass)
    monkeypatch.setattr(plan_room, "passes_per_epoch", lambda *_: 1)
    x = data()
    trained(x, epochs=5)
    rows = TrainingRows(open_vectors(x), FAST, Path())
    want = torch.from_numpy(rows._read(0, rows.num_train_rows))
    found = torch.cat(seen)
    assert not torch.equal(found, want)  # 打乱过
    assert torch.equal(found[np.lexsort(found.numpy().T)], want[np.lexsort(want.numpy().T)])


def test_network_is_dropped_where_the_identity_is_better():
    """学习率大到网络只会变坏：留下的必须是恒等网络。"""
    bad = TrainerConfig(batch_size=128, kmeans_iterations=3, learning_rate=3.0)
    encoder, figures = trained(data(), epochs=5, config=bad)
    assert figures["network_kept"] is False
    assert figures["best_epoch"] < 5
    assert encoder.rq_vae.encoder.is_identity()
    assert encoder.rq_vae.decoder.is_identity()
