"""配方：计划是手算得出的数据，执行照着它；每个决定（docs/decisions/0006）改掉一个都会红。"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, config, train_codebook
from algorithm.semantic_id.files.progress import Progress
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.training import epochs as epochs_room
from algorithm.semantic_id.training import refine as refine_room
from algorithm.semantic_id.training.epochs import EpochRunner
from algorithm.semantic_id.training.initialize import initialize_
from algorithm.semantic_id.training.plan import EFFORTS, Epoch, Plan, beam_size_of, make_plan
from algorithm.semantic_id.training.refine import SHRINK_VOTES, Refiner, votes
from algorithm.semantic_id.training.rows import TrainingRows
from algorithm.semantic_id.training.state import Job, RunState

CONFIG = SemanticIDConfig(embedding_dim=6, codebook_sizes=(8, 8), hidden_dim=8)
SETTINGS = TrainerConfig(batch_size=64, kmeans_iterations=2, seed=3)


def data(num_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((20, 6)) * 3
    return (centers[rng.integers(20, size=num_rows)] + rng.standard_normal((num_rows, 6))).astype(np.float32)


def plan_of(phases, effort="default", *, num_rows=1000, block_rows=10**6, guided=False):
    settings = TrainerConfig(effort=effort, learning_rate=1e-3, seed=2)
    return make_plan(phases, settings, CONFIG, num_rows=num_rows, block_rows=block_rows, guided=guided)


def job_of(x, pairs=None):
    encoder = SemanticIDEncoder(CONFIG)
    rows = TrainingRows(open_vectors(x), SETTINGS, Path())
    job = Job(encoder, rows, 3, SETTINGS, pairs, Progress(False))
    initialize_(encoder, rows, SETTINGS, job.bar)
    return job


# ---- 计划 ----


def test_the_efforts_the_config_accepts_are_the_planned_ones():
    assert tuple(EFFORTS) == config.EFFORTS


def test_learning_rate_decays_by_epoch_of_the_network():
    plan = plan_of(["refine", "refine", "network", "network", "network"])
    assert [epoch.learning_rate for epoch in plan.epochs] == [0, 0, *(pytest.approx(1e-3 * 0.3**i) for i in range(3))]


def test_rounds_go_through_the_whole_run_and_cool_down():
    """两个精修 epoch，fast 在小数据上每个 4 轮：轮号、种子连续，完成的比例从 0 到 7/8。"""
    plan = plan_of(["ema", "refine", "refine"], "fast")
    assert [epoch.shuffles for epoch in plan.epochs] == [(1,), (), ()]
    rounds = [r for epoch in plan.epochs for r in epoch.rounds]
    assert [r.number for r in rounds] == list(range(8))
    assert [r.seed for r in rounds] == [2 * 1_000_003 + i for i in range(8)]
    assert [r.progress for r in rounds] == [i / 8 for i in range(8)]
    assert [len(epoch.rounds) for epoch in plan.epochs] == [0, 4, 4]


def test_every_pass_of_the_network_has_its_own_order():
    passes = EFFORTS["default"].max_rounds
    plan = plan_of(["refine", "network", "network"])
    shuffles = [s for epoch in plan.epochs for s in epoch.shuffles]
    assert shuffles == list(range(passes + 1, 3 * passes + 1))


def test_refit_is_two_rounds_without_noise():
    assert [(r.number, r.seed, r.progress) for r in plan_of([]).refit] == [(0, 2, 1.0), (1, 2, 1.0)]


def test_behaviour_pairs_freeze_level_one():
    assert (plan_of([]).num_frozen, plan_of([], guided=True).num_frozen) == (0, 1)
    single = SemanticIDConfig(embedding_dim=6, codebook_sizes=(8,))
    assert make_plan([], SETTINGS, single, num_rows=9, block_rows=9, guided=True).num_frozen == 0


@pytest.mark.parametrize(("effort", "beam"), [("fast", 1), ("default", 4), ("max", 8)])
def test_the_recipe_decides_the_beam_only_once(effort, beam):
    settings = TrainerConfig(effort=effort)
    assert beam_size_of(settings, SemanticIDConfig(), fresh=True) == beam
    assert beam_size_of(settings, SemanticIDConfig(), fresh=False) is None
    assert beam_size_of(settings, SemanticIDConfig(beam_size=1), fresh=True) == 1
    assert beam_size_of(TrainerConfig(effort=effort, beam_size=1), SemanticIDConfig(beam_size=5), fresh=False) == 1


# ---- 执行 ----


def test_the_optimizer_uses_the_planned_rate(monkeypatch):
    rates = []

    def decoder_pass(rq_vae, batches, num_rows, optimizer, bar, label):
        rates.append(optimizer.param_groups[0]["lr"])
        return {}

    monkeypatch.setattr(epochs_room, "decoder_pass", decoder_pass)
    job = job_of(data())
    state = RunState(best_tensors=job.encoder.state_dict())
    record = EpochRunner(job, Plan((), (), 0), state).run(Epoch(1, "network", shuffles=(1,), learning_rate=0.125))
    assert rates == [0.125]
    assert record["learning_rate"] == 0.125


@pytest.mark.parametrize(
    ("errors", "passes"),
    [
        ([9, 9, 9, 9, 9, 9, 9], 3),  # 从未更好：三遍就停
        ([4, 9, 9, 9, 1, 1, 1], 4),  # 第一遍更好，之后三遍没有
        ([4, 9, 9, 3, 9, 9, 2], 7),  # 总在第三遍之前又好了
    ],
)
def test_a_network_epoch_stops_after_three_passes_without_gain(monkeypatch, errors, passes):
    monkeypatch.setattr(epochs_room, "decoder_pass", lambda *_: {})
    scores = iter(errors)
    monkeypatch.setattr(epochs_room, "judge", lambda *_: {"mse": next(scores), "collision_rate": 0.5})
    job = job_of(data())
    state = RunState(best_key=(5.0, 0.5), best_tensors=job.encoder.state_dict())
    runner = EpochRunner(job, Plan((), (), 0), state)
    assert runner.run(Epoch(1, "network", shuffles=tuple(range(7)), learning_rate=1e-3))["passes"] == passes


def test_lower_error_wins_and_collisions_break_ties():
    encoder, state = SemanticIDEncoder(CONFIG), RunState()

    def offer(epoch, mse, collision_rate):
        state.epoch = epoch
        return state.keep_if_best(encoder, {"mse": mse, "collision_rate": collision_rate})

    assert offer(0, 2.0, 0.1)
    assert not offer(1, 2.0, 0.1)  # 一样：留先来的
    assert not offer(2, 2.1, 0.0)
    assert offer(3, 2.0, 0.05)  # 误差一样，冲突少
    assert offer(4, 1.9, 0.9)  # 误差先比
    assert (state.best_epoch, state.best_key) == (4, (1.9, 0.9))


@pytest.mark.parametrize(("phase", "survives"), [("network", True), ("refine", False)])
def test_a_trained_decoder_survives_the_refit(monkeypatch, phase, survives):
    """有物品对时码本一变就重新求解码；最好的状态若出自训练过的解码网络，就不许再盖掉它。"""
    decoders = []
    real = EpochRunner.refit

    def refit(self):
        self._state.history[self._state.best_epoch]["phase"] = phase
        self._state.refining_paid = lambda: True
        decoder = self._job.encoder.rq_vae.decoder
        decoders.append(decoder.weight_out.detach().clone())
        rows = real(self)
        decoders.append(decoder.weight_out.detach().clone())
        return rows

    monkeypatch.setattr(EpochRunner, "refit", refit)
    pairs = np.random.default_rng(0).integers(400, size=(100, 2))
    encoder = SemanticIDEncoder(CONFIG)
    figures = train_codebook(encoder, data(), 2, config=SETTINGS, pairs=pairs, progress=False)
    assert figures["num_refit_rows"] == 400
    assert bool(decoders[0].any())
    assert torch.equal(*decoders) == survives


def swept(z, codes, books, weights, num_sweeps):
    """各层轮流重算 num_sweeps 遍，照定义写：其余各层留下的误差的加权和 / (权重之和 + λ)。"""
    books = [book.double().clone() for book in books]
    for _ in range(num_sweeps):
        for level, indices in enumerate(codes):
            rest = z.double() - sum(b[c] for i, (b, c) in enumerate(zip(books, codes, strict=True)) if i != level)
            for k in indices.unique():
                rows = indices == k
                books[level][k] = (weights[rows, None] * rest[rows]).sum(0) / (weights[rows].sum() + SHRINK_VOTES)
    return books


def test_a_round_sweeps_the_levels_twice():
    job = job_of(data())
    rq_vae, z = job.encoder.rq_vae, job.rows.draw(0)
    before = [quantizer.embedding.weight.clone() for quantizer in rq_vae.quantizers]
    codes = Refiner(rq_vae).round_(z, 0.0, 0, batch_size=64)
    weights = votes(codes, CONFIG.codebook_sizes).double()
    used = [indices.unique() for indices in codes]

    def gap(num_sweeps):
        books = swept(z, codes, before, weights, num_sweeps)
        pairs = zip(rq_vae.quantizers, books, used, strict=True)
        return max(float((q.embedding.weight[k] - book[k]).abs().max()) for q, book, k in pairs)

    assert gap(2) < 1e-4
    assert min(gap(1), gap(3)) > 1e-3
    assert refine_room._SWEEPS == 2


def test_relative_errors_are_centred_on_the_training_mean(monkeypatch):
    """留出的两行离训练均值很远，它们自己的均值则很近：分母差得多，不会弄混。"""
    monkeypatch.setattr(EpochRunner, "refit", lambda self: 0)
    x = data(40, seed=1)
    rows = TrainingRows(open_vectors(x), SETTINGS, Path())
    held = [int(np.flatnonzero((x == row).all(1))[0]) for row in rows.holdout.numpy()]
    x[held] += 30
    rows = TrainingRows(open_vectors(x), SETTINGS, Path())
    encoder = SemanticIDEncoder(CONFIG)
    figures = train_codebook(encoder, x, 2, config=SETTINGS, progress=False)
    train = np.delete(x, held, axis=0).astype(np.float64)
    assert len(held) == 2

    def error(part):
        part = torch.from_numpy(part.astype(np.float32))
        return float((part - encoder.decode_codes(encoder.encode_codes(part))).double().square().sum())

    for name, part in (("relative_mse", train), ("holdout_relative_mse", x[held].astype(np.float64))):
        expected = error(part) / np.square(part - train.mean(0)).sum()
        assert figures[name] == pytest.approx(expected, rel=1e-5), name
    torch.testing.assert_close(encoder.feature_mean, torch.from_numpy(train.mean(0)).float())
