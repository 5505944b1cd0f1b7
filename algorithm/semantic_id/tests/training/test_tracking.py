"""TensorBoard 事件：与 metrics.jsonl 逐点相同；续训不重复；没装时训练照旧。"""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, train_codebook, trainer
from algorithm.semantic_id.training import tracking
from algorithm.semantic_id.training.tracking import EventLog

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))


def new_encoder() -> SemanticIDEncoder:
    return SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 4)))


def curves(folder):
    """名字 → [(epoch, 值)]，读的是 TensorBoard 自己的读者。"""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(folder):
    want = {}
    for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for key, value in record.items():
            parts = {f"{key}/L{i + 1}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
            for name, number in parts.items():
                if key != "epoch" and isinstance(number, (int, float)):
                    want.setdefault(name, []).append((record["epoch"], pytest.approx(number, rel=1e-6)))
    return want


def test_events_repeat_the_log_point_by_point(tmp_path):
    pytest.importorskip("tensorboard")
    train_codebook(new_encoder(), X, 2, output_dir=tmp_path, progress=False)
    got = curves(tmp_path)
    assert got == expected(tmp_path)
    assert [step for step, _ in got["holdout_mse"]] == [0, 1, 2]
    assert "holdout_utilization/L2" in got
    # 再训练一次从头来过，旧的曲线不留
    train_codebook(new_encoder(), X, 1, output_dir=tmp_path, overwrite=True, progress=False)
    assert [step for step, _ in curves(tmp_path)["holdout_mse"]] == [0, 1]


def test_resumed_run_draws_every_epoch_once(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    class Killed(EventLog):
        def write(self, record):
            super().write(record)
            if record["epoch"] == 1:
                super().write({"epoch": 2, "holdout_mse": 99.0})  # 事件已写、断点没写：被杀得最不巧的时刻
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "EventLog", Killed)
        train_codebook(new_encoder(), X, 3, output_dir=tmp_path, progress=False)
    train_codebook(new_encoder(), X, 3, output_dir=tmp_path, resume=True, progress=False)
    assert curves(tmp_path)["holdout_mse"] == expected(tmp_path)["holdout_mse"]


def test_without_tensorboard_training_is_the_same(tmp_path, monkeypatch):
    with_events, without = new_encoder(), new_encoder()
    train_codebook(with_events, X, 1, output_dir=tmp_path / "a", progress=False)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        tracking.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name)
    )
    train_codebook(without, X, 1, output_dir=tmp_path / "b", progress=False)
    assert not (tmp_path / "b" / "tensorboard").exists()
    assert (tmp_path / "b" / "metrics.jsonl").is_file()
    assert with_events.fingerprint() == without.fingerprint()
