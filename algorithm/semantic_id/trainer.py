"""码本训练：初始化 → 逐 epoch 训练 → 在留出行上评判 → 记录与断点 → 留下最好的一个。

配方：依赖数据的初始化（默认逐层残差 k-means；有物品对时先训练特征编码网络）→ 各层联合精修（`training/refine.py`）→
最后五分之一的 epoch 冻结码本、训练解码网络，语义 ID 因此不变。留出误差最低的状态胜出，所以网络只有确实比恒等
更好时才会留下；胜出的状态最后带上留出行再更新两轮（`_refit`）。uniform 起步时先用 EMA 与死码字复活过一半的
epoch。轮数、编码的束宽由 `TrainerConfig.effort` 定。

谁可以写：训练器写模型；`output_dir` 里 metrics.jsonl、checkpoints/（与装了 semid[track] 时的 tensorboard/）随训练更新，
模型文件最后才写。
同样的种子、数据次序、批大小、线程数与版本，得到同样的字节；`kill -9` 之后续训也一样。
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch

from .codebook import DEAD_AFTER_EXPECTED_HITS
from .config import EFFORTS, TrainerConfig
from .encoder import SemanticIDEncoder
from .files import checkpoint
from .files.durable import write_atomically
from .files.progress import Progress
from .files.source import VectorSource
from .files.vectors import open_vectors
from .limits import check_int
from .training.behaviour import ItemPairs, fit_decoder_, read_pairs
from .training.epochs import (
    Round,
    decoder_pass,
    ema_epoch,
    passes_per_epoch,
    plan_phases,
    refine_epoch,
    rounds_per_epoch,
)
from .training.initialize import initialize_, latents_of
from .training.judge import judge
from .training.refine import Refiner
from .training.rows import TrainingRows
from .training.tracking import EventLog

__all__ = ["compute_codebook_utilization", "train_codebook"]

_LOG_NAME = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"
_PATIENCE = 3  # 解码网络连续几遍没有让留出误差更低，这个 epoch 就停
_NETWORK_DECAY = 0.3  # 每个 network epoch 的学习率是上一个的几倍
_CODE_ROWS = 65536  # 编码这么多行报一次进度
_REFIT_ROUNDS = 2  # 再多几轮，误差不再降（docs/log.md）


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
    reinit: bool = False,
    pairs: Any = None,
    id_column: str = "item_id",
    vector_column: str = "embedding",
    progress: bool = True,
    effort: str | None = None,
    batch_size: int | None = None,
    init: str | None = None,
    seed: int | None = None,
    max_train_rows: int | None = None,
) -> Dict[str, Any]:
    """在物品特征上训练编码器，就地修改它；留下留出误差最低的状态，最后让留出行也来教一次码本（`_refit`）。

    依赖数据的初始化只在从未训练过的编码器上做一次；再次调用会从已学到的接着训练。

    Args:
        encoder: 要训练的编码器。
        item_features: (N, D) 张量、数组、memmap，`.npy` 路径，Parquet 文件或文件夹，或 `open_vectors` 的返回值。
        num_epochs: 训练遍数，≥ 0；0 只做初始化。
        config: 批大小、学习率、初始化方式、种子、抽样等，None 为默认。
        output_dir: 给出时在其中写 metrics.jsonl、断点，最后写模型。
        resume: 从 output_dir 的断点接着训练；没有断点则从头开始。
        reinit: 丢掉已学到的，重新初始化。
        pairs: (P, 2) 常被一起消费的物品编号（数组、`.npy` 或两列的 Parquet 路径；没有编号列时是行号）。给出时语义 ID
            向行为靠拢，重建误差因此变大；只在初始化时起作用。
        id_column: Parquet 的物品编号列。
        vector_column: Parquet 的向量列。
        progress: 是否显示进度条（写到 stderr）。
        effort: `"fast"`、`"default"`、`"max"`；非 None 时覆盖 config 的同名字段，下面四个也是。
        batch_size: 网络每步的行数。
        init: `"kmeans"` 或 `"uniform"`。
        seed: 随机种子。
        max_train_rows: 最多用多少行。

    Returns:
        测得的数字（也存进 `encoder.training_figures`）：`relative_mse`、`utilization`、`collision_rate` 等，
        口径为训练行（至多一块）；`holdout_` 开头的是留出行，测于它们也来教码本（`num_refit_rows` > 0）之前；在同样的
        数据上接着训练时它们已经不是没见过的，记 None。

    Raises:
        TypeError: 参数类型不对。
        ValueError: 数据有坏行、宽度不符，或断点属于另一次训练。
        FileNotFoundError: 文件不存在。
    """
    if not isinstance(encoder, SemanticIDEncoder):
        raise TypeError(f"encoder must be a SemanticIDEncoder, got {type(encoder).__name__}")
    check_int("num_epochs", num_epochs, 0)
    if config is not None and not isinstance(config, TrainerConfig):
        raise TypeError(f"config must be a TrainerConfig, got {type(config).__name__}")
    shortcuts: Dict[str, Any] = {
        "effort": effort, "batch_size": batch_size, "init": init, "seed": seed, "max_train_rows": max_train_rows
    }  # fmt: skip
    config = replace(config or TrainerConfig(), **{k: v for k, v in shortcuts.items() if v is not None})
    if resume and output_dir is None:
        raise ValueError("resume=True needs output_dir, the folder of the interrupted run")
    source = open_vectors(
        item_features, id_column=id_column, vector_column=vector_column, expected_dim=encoder.embedding_dim
    )
    folder = Path(output_dir) if output_dir is not None else None
    if folder is not None and not resume and (folder / _CHECKPOINTS).exists():
        raise ValueError(
            f"{str(folder)!r} holds an unfinished run; continue it with resume=True or choose another folder"
        )
    _check_pairs_fit(encoder, pairs, reinit)
    item_pairs = None if pairs is None else read_pairs(pairs, source, config.seed)
    was_training = encoder.training
    with tempfile.TemporaryDirectory() as spool, Progress(progress) as bar:
        rows_folder = folder / _CHECKPOINTS if folder is not None else Path(spool)
        with bar.task("reading", source.num_rows) as report:
            rows = TrainingRows(source, config, rows_folder, report)
        if config.beam_size is not None or encoder.config.beam_size == 1:
            encoder.set_beam_size_(config.beam_size or EFFORTS[config.effort].beam_size)
        run = _Run(encoder, rows, num_epochs, config, folder, bar, item_pairs)
        try:
            figures = run.run(resume=resume, reinit=reinit)
        finally:
            encoder.train(was_training)
    if folder is not None:
        encoder.save_pretrained(folder)
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    return figures


def _check_pairs_fit(encoder: SemanticIDEncoder, pairs: Any, reinit: bool) -> None:
    """物品对只在初始化时起作用；在已训练的编码器上悄悄忽略它，用户会以为生效了。"""
    if pairs is not None and bool(encoder.rq_vae.initialized) and not reinit:
        raise ValueError("pairs guide the initialisation, but this encoder is already trained; pass reinit=True too")


class _Run:
    """一次训练的全部状态；断点存取的就是它。"""

    def __init__(
        self,
        encoder: SemanticIDEncoder,
        rows: TrainingRows,
        num_epochs: int,
        config: TrainerConfig,
        folder: Path | None,
        bar: Progress,
        pairs: ItemPairs | None,
    ):
        self.encoder, self.rows, self.config, self.num_epochs, self.pairs = encoder, rows, config, num_epochs, pairs
        self.folder, self.bar = folder, bar
        self.device = encoder.feature_mean.device
        self.judge_rows = rows.holdout if len(rows.holdout) else rows.sample()
        self.epoch = 0
        self.notes: List[str] = []
        self.history: List[Dict[str, Any]] = []
        self._record: Dict[str, Any] = {"phase": "init"}
        self.best: Dict[str, Any] = {"key": [math.inf, math.inf], "epoch": -1, "state": None}
        # 有物品对时 L1 停在 k-means 的位置：那里最贴近行为，精修只为误差，会把它又拉回去
        self.refiner = Refiner(encoder.rq_vae, min(int(pairs is not None), len(encoder.codebook_sizes) - 1))
        self._latents: torch.Tensor | None = None
        self._codes: torch.Tensor | None = None
        self.phases: List[str] = []
        self.events = EventLog(None)

    def run(self, *, resume: bool, reinit: bool) -> Dict[str, Any]:
        """从头或从断点跑完，返回测得的数字。"""
        taught = 0 if reinit or not bool(self.encoder.rq_vae.initialized) else self._taught_rows()
        restored = resume and self._restore()
        self.events = EventLog(self.folder, self.epoch + 1 if restored else 0)
        try:
            if not restored:
                self._start(reinit)
            while self.epoch < self.num_epochs:
                self.epoch += 1
                self._train_epoch()
                self._finish_epoch()
        finally:
            self.events.close()
        self.encoder.load_state_dict(self.best["state"])
        num_refit_rows = self._refit()
        figures = {**self._figures(), "num_refit_rows": num_refit_rows}
        if taught:
            figures["num_refit_rows"] = max(num_refit_rows, taught)
            figures["holdout_relative_mse"] = figures["holdout_collision_rate"] = None
        self.encoder.training_figures = figures
        return figures

    def _has_network(self) -> bool:
        """特征网络是否已不再是恒等的。"""
        rq_vae = self.encoder.rq_vae
        return not (rq_vae.encoder.is_identity() and rq_vae.decoder.is_identity())

    def _taught_rows(self) -> int:
        """上一次在同样的数据上训练，最后用几行（含留出行）教过码本：留出行已经见过，留出的数字就不报了。"""
        known = self.encoder.training_figures
        return known.get("num_refit_rows", 0) if known.get("data_sha256") == self.rows.sha256 else 0

    def _start(self, reinit: bool) -> None:
        """第 0 个 epoch：初始化（如果需要），评判，断点。"""
        fresh = reinit or not bool(self.encoder.rq_vae.initialized)
        if fresh:
            self.notes += initialize_(self.encoder, self.rows, self.config, self.bar, self.pairs)
            self._fit_decoder()
        # 接着训练也更新：报告的 relative_mse 与模型里存的均值须是同一个
        self.encoder.feature_mean.copy_(torch.from_numpy(self.rows.mean))
        has_network = not fresh and self._has_network()
        network = EFFORTS[self.config.effort].network or self.pairs is not None
        self.phases = plan_phases(
            self.num_epochs, self.config.init, has_network=has_network, fresh=fresh, network=network
        )
        self._finish_epoch()

    def _train_epoch(self) -> None:
        """按计划过一个 epoch。"""
        rq_vae, phase = self.encoder.rq_vae, self.phases[self.epoch - 1]
        label = f"{phase} {self.epoch}/{self.num_epochs}"
        started = time.perf_counter()
        if phase == "refine":
            record = refine_epoch(
                self.refiner, rq_vae, self._rounds(), self._latents_of_round, self.config.batch_size, self.bar, label,
                rotating=not self.rows.fits_one_block,
            )  # fmt: skip
            self._fit_decoder()
        elif phase == "network":
            record = self._network_epoch(label)
        else:
            batches = self.rows.batches(self.epoch, self.config.batch_size)
            record = ema_epoch(rq_vae, batches, self.rows.num_train_rows, self.bar, label)
        self._record = {"phase": phase, **record, "elapsed_s": time.perf_counter() - started}

    def _network_epoch(self, label: str) -> Dict[str, Any]:
        """从最好的状态起训练解码网络若干遍，每遍都评判，结束时停在最好的一遍上；返回最后一遍的记录。

        编码网络不动：训练它，未见误差只升不降（docs/log.md），编码还要多算一个网络。码本也不动，所以几个 network epoch
        都是同样的编号，行一块放得下时只算一次。优化器每个 epoch 新建，断点不必存它。
        """
        rq_vae, config = self.encoder.rq_vae, self.config
        self.encoder.load_state_dict(self.best["state"])
        order = self.epoch - 1 - self.phases.index("network")
        rate = config.learning_rate * _NETWORK_DECAY**order
        optimizer = torch.optim.Adam(rq_vae.decoder.parameters(), lr=rate, fused=True)  # 逐参数写要走四遍
        passes = passes_per_epoch(EFFORTS[config.effort], self.rows.num_train_rows, self.encoder.config)
        record: Dict[str, Any] = {}
        stale = 0
        if self._codes is None and self.rows.fits_one_block:
            self._codes = self._encode(self.rows.draw(0), label)
        for number in range(1, passes + 1):
            batches = self._coded_batches((self.epoch - 1) * passes + number)
            title = f"{label}, pass {number}/{passes}"
            record = decoder_pass(rq_vae, batches, self.rows.num_train_rows, optimizer, self.bar, title)
            stale = 0 if self._keep_if_best(judge(self.encoder, self.judge_rows, self.rows.mean)) else stale + 1
            if stale == _PATIENCE:
                break
        rq_vae.zero_grad(set_to_none=True)
        self.encoder.load_state_dict(self.best["state"])
        return {**record, "passes": number, "learning_rate": rate}

    def _encode(self, x: torch.Tensor, label: str) -> torch.Tensor:
        """`x` (S, D) 的编号 (S, L) int64，在 CPU 上。"""
        parts = []
        with self.bar.task(f"{label}, encoding", len(x)) as report:
            for start in range(0, len(x), _CODE_ROWS):
                codes = self.encoder.rq_vae.encode(x[start : start + _CODE_ROWS].to(self.device))
                parts.append(torch.stack([level.cpu() for level in codes], 1))
                report(start, len(x))
        return torch.cat(parts)

    def _coded_batches(self, epoch: int) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """第 epoch 遍打乱的批次：特征与编号；没有记着编号时边走边编码。"""
        size = self.config.batch_size
        if self._codes is None:
            for batch in self.rows.batches(epoch, size):
                yield batch, torch.stack(list(self.encoder.rq_vae.encode(batch.to(self.device))), 1)
            return
        x, order = self.rows.draw(0), torch.from_numpy(self.rows.order(epoch))
        for part in order.split(size):
            yield x[part], self._codes[part]

    def _rounds(self) -> List[Round]:
        """这个精修 epoch 的各轮：序号、噪声的种子、已完成的比例。"""
        rows = min(self.rows.num_train_rows, self.rows.block_rows)
        count = rounds_per_epoch(EFFORTS[self.config.effort], rows, self.encoder.config)
        first = (self.epoch - 1 - self.phases.index("refine")) * count
        total = self.phases.count("refine") * count
        seed = self.config.seed * 1_000_003 % 2**40
        return [Round(number, seed + number, number / total) for number in range(first, first + count)]

    def _refit(self) -> int:
        """选定之后，留出行也来教码本：训练行与留出行一起，不加噪、按读码时的束宽更新两轮；返回用了几行。

        不再评判，所以 `holdout_` 的数字仍是它们没有参与时的，略微保守。三种情形不做，返回 0：没有留出行；
        数据超过一块，留出行不到 3%，不值得；精修一次也没有胜过起点，那么再更新两轮也不会。训练过的解码网络留着不动。
        """
        if not len(self.rows.holdout) or not self.rows.fits_one_block or not self._refining_paid():
            return 0
        z = latents_of(self.encoder, torch.cat([self.rows.draw(0), self.rows.holdout]))
        rounds = [Round(number, self.config.seed, 1.0) for number in range(_REFIT_ROUNDS)]
        refine_epoch(
            self.refiner, self.encoder.rq_vae, rounds, lambda _: z, self.config.batch_size, self.bar, "refit",
            rotating=False, beam_size=self.encoder.config.beam_size,
        )  # fmt: skip
        if self.history[self.best["epoch"]]["phase"] != "network":
            self._fit_decoder()
        return len(z)

    def _refining_paid(self) -> bool:
        """有没有哪个精修 epoch 的留出误差低于精修之前的。"""
        before = min(r["holdout_mse"] for r in self.history if r["phase"] in ("init", "ema"))
        return any(r["holdout_mse"] < before for r in self.history if r["phase"] == "refine")

    def _fit_decoder(self) -> None:
        """有物品对时隐向量离特征有一段距离，码本每变一次，就重新求一次从码字之和回到特征的线性映射。"""
        if self.pairs is not None:
            x = self.rows.draw(0)
            fit_decoder_(self.encoder.rq_vae, x, latents_of(self.encoder, x))

    def _latents_of_round(self, number: int) -> torch.Tensor:
        """第 number 轮用的隐向量 (S, H)；行一块放得下时只算一次，否则每轮换一批行。"""
        if self._latents is None or not self.rows.fits_one_block:
            self._latents = latents_of(self.encoder, self.rows.draw(number))
        return self._latents

    def _finish_epoch(self) -> None:
        """评判当前状态，记一行，更新最好者，写断点。"""
        judged = judge(self.encoder, self.judge_rows, self.rows.mean)
        holdout = {f"holdout_{name}": value for name, value in judged.items()}
        self.history.append({"epoch": self.epoch, **self._record, **holdout})
        self._keep_if_best(judged)
        if self.folder is not None:
            self._checkpoint(self.folder)
        self.events.write(self.history[-1])

    def _keep_if_best(self, judged: Dict[str, Any]) -> bool:
        """当前状态若比最好的还好，记下它；先比误差，再比冲突率。"""
        key = [judged["mse"], judged["collision_rate"]]
        if not key < self.best["key"]:
            return False
        state = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}
        self.best = {"key": key, "epoch": self.epoch, "state": state}
        return True

    def _identity_card(self) -> Dict[str, Any]:
        """断点属于哪一次训练：任何一项不同，续训的结果就不可能与不中断的相同。"""
        return {
            "model_config": self.encoder.config.to_dict(),
            "trainer_config": self.config.to_dict(),
            "num_epochs": self.num_epochs,
            "data_sha256": self.rows.sha256,
            "pairs_sha256": None if self.pairs is None else self.pairs.sha256,
        }

    def _checkpoint(self, folder: Path) -> None:
        """写日志与断点；先有新断点，再删旧的，任何时刻被杀都至少剩一个完整的。"""
        groups = {"model": self.encoder.state_dict(), "best": self.best["state"]}
        if self.refiner.residual_std is not None:
            groups["refiner"] = {"residual_std": self.refiner.residual_std}
        state = {
            "run": self._identity_card(),
            "epoch": self.epoch,
            "best": {"key": self.best["key"], "epoch": self.best["epoch"]},
            "history": self.history,
            "notes": self.notes,
            "phases": self.phases,
        }
        root = folder / _CHECKPOINTS
        checkpoint.write_state(root / f"epoch-{self.epoch:06d}", groups, state)
        for old in root.glob("epoch-*"):
            if old.name != f"epoch-{self.epoch:06d}":
                shutil.rmtree(old, ignore_errors=True)
        log = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(folder / _LOG_NAME, log.encode("utf-8"))

    def _restore(self) -> bool:
        """从最新的断点恢复；没有断点返回 False。"""
        assert self.folder is not None
        found = sorted(p for p in (self.folder / _CHECKPOINTS).glob("epoch-*") if not p.name.endswith(".tmp"))
        if not found:
            return False
        groups, state = checkpoint.read_state(found[-1])
        for name, value in self._identity_card().items():
            if state["run"][name] != value:
                raise ValueError(
                    f"cannot resume {str(self.folder)!r}: {name} is {value!r}, the interrupted run had "
                    f"{state['run'][name]!r}; repeat its arguments and data, or start over with --overwrite"
                )
        self.encoder.load_state_dict(groups["model"])
        self.epoch, self.history, self.notes = state["epoch"], state["history"], state["notes"]
        self.phases = state["phases"]
        self.best = {**state["best"], "state": groups["best"]}
        if "refiner" in groups:
            self.refiner.residual_std = groups["refiner"]["residual_std"].to(self.device)
        return True

    def _figures(self) -> Dict[str, Any]:
        """最好状态的最终数字：训练行上重新编码一遍，而不是训练途中的平均。"""
        with self.bar.task("measuring", 1):
            train = judge(self.encoder, self.rows.sample(), self.rows.mean)
        holdout = next(r for r in self.history if r["epoch"] == self.best["epoch"])
        return {
            **train,
            "holdout_relative_mse": holdout["holdout_relative_mse"],
            "holdout_collision_rate": holdout["holdout_collision_rate"],
            "num_source_rows": self.rows.num_source_rows,
            "num_train_rows": self.rows.num_train_rows,
            "num_holdout_rows": len(self.rows.holdout),
            "num_epochs": self.num_epochs,
            "best_epoch": self.best["epoch"],
            "network_kept": self._has_network(),
            "trainer_config": self.config.to_dict(),
            "num_pairs": 0 if self.pairs is None else len(self.pairs.rows),
            "beam_size": self.encoder.config.beam_size,
            "data_sha256": self.rows.sha256,
            "torch_version": torch.__version__,
            "notes": self.notes,
        }
