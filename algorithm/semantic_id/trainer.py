"""码本训练：初始化 → 逐 epoch 训练 → 在留出行上评判 → 记录与断点 → 留下最好的一个。

配方（做什么、多久、多快）是 `training/plan.py` 里的数据，执行在 `training/epochs.py`，记住的事在
`training/state.py`，落盘在 `training/checkpointing.py`；这里把它们连起来。

谁可以写：训练器写模型；`output_dir` 里 metrics.jsonl、checkpoints/（与装了 semid[track] 时的 tensorboard/）随训练更新，
模型文件最后才写。
同样的种子、数据次序、批大小、线程数与版本，得到同样的字节；`kill -9` 之后续训也一样。
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch

from .checks import check_one_process
from .codebook import DEAD_AFTER_EXPECTED_HITS
from .config import TrainerConfig
from .encoder import SemanticIDEncoder, save_model
from .errors import InputError, InputTypeError
from .files.progress import Progress
from .files.run_folder import RunFolder, open_run_folder
from .files.source import VectorSource
from .files.vectors import open_vectors
from .limits import check_int
from .training import checkpointing
from .training.behaviour import read_pairs
from .training.epochs import EpochRunner
from .training.initialize import initialize_
from .training.judge import judge
from .training.plan import EFFORTS, beam_size_of, make_plan, plan_phases
from .training.rows import TrainingRows
from .training.state import Job, RunState
from .training.tracking import EventLog

__all__ = ["compute_codebook_utilization", "train_codebook"]

_log = logging.getLogger(__name__)


def compute_codebook_utilization(encoder: SemanticIDEncoder) -> float:
    """最近一段训练里的码本利用率：各层「被命中过的码字比例」的平均。

    口径：最近 ⌈10 · max_l K_l⌉ 个训练行，即最大的码本均匀使用时每个码字期望命中 10 次的行数。

    Args:
        encoder: 编码器；从未训练过时返回 0.0。

    Returns:
        [0, 1] 内的一个数，可用 `:.2%` 格式化。
    """
    window = DEAD_AFTER_EXPECTED_HITS * max(encoder.codebook_sizes)
    shares = []
    for quantizer in encoder.rq_vae.quantizers:
        hit = (quantizer.last_hit_row > quantizer.rows_seen - window) & (quantizer.last_hit_row > 0)  # (K,)
        shares.append(float(hit.double().mean()))
    return sum(shares) / len(shares)


def train_codebook(
    encoder: SemanticIDEncoder,
    item_features: torch.Tensor | np.ndarray | str | Path | VectorSource,
    num_epochs: int = 10,
    *,
    config: TrainerConfig | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    reinit: bool = False,
    pairs: Any = None,
    id_column: str = "item_id",
    vector_column: str = "embedding",
    progress: bool = True,
) -> Dict[str, Any]:
    """在物品特征上训练编码器，就地修改它；留下留出误差最低的状态，最后让留出行也来教一次码本。

    依赖数据的初始化只在从未训练过的编码器上做一次；再次调用会从已学到的接着训练。

    Args:
        encoder: 要训练的编码器。
        item_features: (N, D) 张量、数组、memmap，`.npy` 路径，Parquet 文件或文件夹，或 `open_vectors` 的返回值。
        num_epochs: 训练遍数，≥ 0；0 只做初始化，已训练过的模型因此不变（只换上这份数据的均值与数字）。
        config: 力气、批大小、学习率、初始化方式、种子、抽样等，None 为默认。
        output_dir: 给出时在其中写 metrics.jsonl、断点，最后写模型。
        resume: 从 output_dir 的断点接着训练；没有断点则从头开始；同一次训练已经做完，就取来它的结果，什么也不训练。
        overwrite: 允许替换 output_dir 里已有的训练；新模型写好之前，旧模型还在。
        reinit: 丢掉已学到的，重新初始化。
        pairs: (P, 2) 常被一起消费的物品编号（数组、`.npy` 或两列的 Parquet 路径；没有编号列时是行号）。给出时语义 ID
            向行为靠拢，重建误差因此变大；只在初始化时起作用。
        id_column: Parquet 的物品编号列。
        vector_column: Parquet 的向量列。
        progress: 是否显示进度条（写到 stderr）。

    Returns:
        测得的数字（也存进 `encoder.training_figures`）：`relative_mse`、`utilization`、`collision_rate` 等，
        口径为训练行（至多一块）；`holdout_` 开头的是留出行，测于它们也来教码本（`num_refit_rows` > 0）之前；在同样的
        数据上接着训练时它们已经不是没见过的，记 None。

    Raises:
        TypeError: 参数类型不对。
        ValueError: 数据有坏行、宽度不符，或断点属于另一次训练。
        FileExistsError: output_dir 里已有训练（没给 resume、overwrite）或别的东西，或另一个进程正在写它。
        FileNotFoundError: 文件不存在。
        MultiProcessTrainingError: torch.distributed 的进程组里不止一个进程。
    """
    if not isinstance(encoder, SemanticIDEncoder):
        raise InputTypeError(f"encoder must be a SemanticIDEncoder, got {type(encoder).__name__}")
    check_int("num_epochs", num_epochs, 0, 2**31 - 1)
    check_one_process()
    if config is not None and not isinstance(config, TrainerConfig):
        raise InputTypeError(f"config must be a TrainerConfig, got {type(config).__name__}")
    config = config or TrainerConfig()
    if output_dir is None and (resume or overwrite):
        name = "resume" if resume else "overwrite"
        raise InputError(f"{name}=True needs output_dir, the folder of the earlier run")
    source = open_vectors(
        item_features, id_column=id_column, vector_column=vector_column, expected_dim=encoder.embedding_dim
    )
    _check_pairs_fit(encoder, pairs, reinit)
    was_training = encoder.training
    opened = open_run_folder(Path(output_dir), resume=resume, overwrite=overwrite) if output_dir else nullcontext()
    with opened as folder, tempfile.TemporaryDirectory() as spool, Progress(progress) as bar:
        item_pairs = None if pairs is None else read_pairs(pairs, source, config.seed)
        with bar.task("reading", source.num_rows) as report:
            rows_folder = Path(spool) if folder is None or folder.finished else folder.checkpoints
            rows = TrainingRows(source, config, rows_folder, report)
        fresh = reinit or not bool(encoder.rq_vae.initialized)
        encoder.set_beam_size_(beam_size_of(config, encoder.config, fresh=fresh))
        job = Job(encoder, rows, num_epochs, config, item_pairs, bar)
        if folder is not None and folder.finished:
            return _already_finished(job, folder)
        try:
            encoder.training_figures = figures = _run(job, folder, resume=resume, fresh=fresh)
        finally:
            encoder.train(was_training)
        if folder is not None:
            folder.check_unchanged()
            save_model(encoder, folder.path)
            folder.finish()
    return figures


def _check_pairs_fit(encoder: SemanticIDEncoder, pairs: Any, reinit: bool) -> None:
    """物品对只在初始化时起作用；在已训练的编码器上悄悄忽略它，用户会以为生效了。"""
    if pairs is not None and bool(encoder.rq_vae.initialized) and not reinit:
        raise InputError("pairs guide the initialisation, but this encoder is already trained; pass reinit=True too")


def _already_finished(job: Job, folder: RunFolder) -> Dict[str, Any]:
    """续训一个训练完的目录：就是这一次训练的结果，就取来用，什么也不训练；否则拒绝。"""
    finished = SemanticIDEncoder.from_pretrained(folder.path)
    if finished.training_figures.get("run_sha256") != checkpointing.run_sha256(job):
        raise FileExistsError(
            f"{str(folder.path)!r} is already finished, by a run with other settings or data (or of an older semid); "
            "use it as it is, or train again with --overwrite (overwrite=True)"
        )
    folder.finish()  # 上次收尾时被杀，临时文件还在
    job.encoder.load_state_dict(finished.state_dict())
    job.encoder.training_figures = finished.training_figures
    note = "already finished by this very run; nothing was trained"
    _log.warning("%r: %s", str(folder.path), note)
    return {**finished.training_figures, "notes": [*finished.training_figures["notes"], note]}


def _run(job: Job, folder: RunFolder | None, *, resume: bool, fresh: bool) -> Dict[str, Any]:
    """从头或从断点跑完，返回测得的数字。"""
    restored = checkpointing.restore(folder, job) if resume and folder is not None else None
    state = restored or RunState(num_taught_rows=0 if fresh else _taught_rows(job))
    if folder is not None:
        folder.begin()
    events = EventLog(None if folder is None else folder.path, state.epoch + 1 if restored else 0)
    try:
        if restored is None:
            _start(job, state, fresh)
        plan = make_plan(
            state.phases, job.config, job.encoder.config,
            num_rows=job.rows.num_train_rows, block_rows=job.rows.block_rows, guided=job.pairs is not None,
        )  # fmt: skip
        runner = EpochRunner(job, plan, state)
        if restored is None:
            if fresh:
                runner.fit_decoder()
            _finish_epoch(job, state, runner, {"phase": "init"}, folder, events)
        for epoch in plan.epochs[state.epoch :]:
            started, state.epoch = time.perf_counter(), epoch.number
            record = {"phase": epoch.phase, **runner.run(epoch)}
            record["elapsed_s"] = time.perf_counter() - started
            _finish_epoch(job, state, runner, record, folder, events)
    finally:
        events.close()
    job.encoder.load_state_dict(state.best_tensors)
    num_refit_rows = runner.refit()
    return _figures(job, state, num_refit_rows)


def _taught_rows(job: Job) -> int:
    """上一次在同样的数据上训练，最后用几行（含留出行）教过码本：留出行已经见过，留出的数字就不报了。"""
    known = job.encoder.training_figures
    return int(known.get("num_refit_rows", 0)) if known.get("data_sha256") == job.rows.sha256 else 0


def _start(job: Job, state: RunState, fresh: bool) -> None:
    """初始化（如果需要），定下各期。"""
    encoder = job.encoder
    if fresh:
        state.notes += initialize_(encoder, job.rows, job.config, job.bar, job.pairs)
    # 接着训练也更新：报告的 relative_mse 与模型里存的均值须是同一个
    encoder.feature_mean.copy_(torch.from_numpy(job.rows.mean))
    network = EFFORTS[job.config.effort].network or job.pairs is not None
    has_network = not fresh and _has_network(encoder)
    state.phases = plan_phases(
        job.num_epochs, job.config.init, has_network=has_network, fresh=fresh, network=network
    )  # fmt: skip


def _finish_epoch(
    job: Job, state: RunState, runner: EpochRunner, record: Dict[str, Any], folder: RunFolder | None, events: EventLog
) -> None:
    """评判当前状态，记一行，更新最好者，写断点。"""
    judged, _ = runner.judge()
    holdout = {f"holdout_{name}": value for name, value in judged.items()}
    state.history.append({"epoch": state.epoch, **record, **holdout})
    if folder is not None:
        checkpointing.save(folder, job, state)
    events.write(state.history[-1])


def _has_network(encoder: SemanticIDEncoder) -> bool:
    """特征网络是否已不再是恒等的。"""
    return not (encoder.rq_vae.encoder.is_identity() and encoder.rq_vae.decoder.is_identity())


def _figures(job: Job, state: RunState, num_refit_rows: int) -> Dict[str, Any]:
    """最好状态的最终数字：训练行上重新编码一遍，而不是训练途中的平均。"""
    encoder, rows = job.encoder, job.rows
    with job.bar.task("measuring", 1):
        train = judge(encoder, rows.sample(), rows.mean)
    best = state.history[state.best_epoch]
    unseen = not state.num_taught_rows
    return {
        **train,
        "holdout_relative_mse": best["holdout_relative_mse"] if unseen else None,
        "holdout_collision_rate": best["holdout_collision_rate"] if unseen else None,
        "num_source_rows": rows.num_source_rows,
        "num_train_rows": rows.num_train_rows,
        "num_holdout_rows": len(rows.holdout),
        "num_epochs": job.num_epochs,
        "best_epoch": state.best_epoch,
        "network_kept": _has_network(encoder),
        "trainer_config": job.config.to_dict(),
        "num_pairs": 0 if job.pairs is None else len(job.pairs.rows),
        "beam_size": encoder.config.beam,
        "data_sha256": rows.sha256,
        "torch_version": torch.__version__,
        "notes": state.notes,
        "num_refit_rows": max(num_refit_rows, state.num_taught_rows),
        "run_sha256": checkpointing.run_sha256(job),
    }
