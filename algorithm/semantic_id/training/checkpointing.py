"""训练落盘的事：断点与 metrics.jsonl 写出去、读回来，以及它们属于哪一次训练。

断点 = `RunState` 的 JSON 部分（state.json）+ 模型、最好状态、误差标准差三组张量；先写新的再删旧的，任何时刻被杀
都至少剩一个完整的。metrics.jsonl 是 `RunState.history` 的副本，给人看，续训时不读它。
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, Set

from ..errors import InputError
from ..files import checkpoint
from ..files.run_folder import RunFolder
from ..files.sealed import canonical
from .state import Job, RunState

__all__ = ["identity_of", "restore", "run_sha256", "save"]


def identity_of(job: Job) -> Dict[str, Any]:
    """断点属于哪一次训练：任何一项不同，续训的结果就不可能与不中断的相同。"""
    return {
        "model_config": job.encoder.config.to_dict(),
        "trainer_config": job.config.to_dict(),
        "num_epochs": job.num_epochs,
        "data_sha256": job.rows.sha256,
        "pairs_sha256": None if job.pairs is None else job.pairs.sha256,
    }


def run_sha256(job: Job) -> str:
    """`identity_of` 的摘要；训练完也留在模型的训练记录里，再次续训时认得出是同一次。"""
    return hashlib.sha256(canonical(identity_of(job))).hexdigest()


def save(folder: RunFolder, job: Job, state: RunState) -> None:
    """写断点与日志。

    Args:
        folder: 训练目录。
        job: 料；存它的编码器与身份。
        state: 存它的全部。
    """
    groups = {"model": job.encoder.state_dict(), "best": state.best_tensors}
    if state.residual_std is not None:
        groups["refiner"] = {"residual_std": state.residual_std}
    remembered = {
        "run": identity_of(job),
        "epoch": state.epoch,
        "best": {"key": state.best_key, "epoch": state.best_epoch},
        "history": state.history,
        "notes": state.notes,
        "phases": state.phases,
        "num_taught_rows": state.num_taught_rows,
    }
    newest = folder.checkpoints / f"epoch-{state.epoch:06d}"
    checkpoint.write_state(newest, groups, remembered)
    folder.drop_epochs(keep=newest)
    folder.write_log("".join(json.dumps(record) + "\n" for record in state.history).encode("utf-8"))


def restore(folder: RunFolder, job: Job) -> RunState | None:
    """读最新的断点，把模型的张量装回 `job.encoder`。

    Args:
        folder: 训练目录。
        job: 料；身份须与断点的相同。

    Returns:
        断点时记住的事；没有断点为 None。

    Raises:
        ValueError: 断点属于另一次训练，或已损坏。
    """
    found = folder.epochs()
    if not found:
        return None
    groups, remembered = checkpoint.read_state(found[-1])
    _check_remembered(remembered, set(groups), found[-1].name)
    for name, value in identity_of(job).items():
        if remembered["run"].get(name) != value:
            raise InputError(
                f"cannot resume {str(folder.path)!r}: {name} is {value!r}, the interrupted run had "
                f"{remembered['run'].get(name)!r}; repeat its arguments and data, or start over with --overwrite"
            )
    job.encoder.load_state_dict(groups["model"])
    device = job.encoder.feature_mean.device
    refiner = groups.get("refiner")
    mse, collision_rate = remembered["best"]["key"]
    return RunState(
        phases=remembered["phases"],
        num_taught_rows=remembered["num_taught_rows"],
        epoch=remembered["epoch"],
        notes=remembered["notes"],
        history=remembered["history"],
        best_key=(mse, collision_rate),
        best_epoch=remembered["best"]["epoch"],
        best_tensors=groups["best"],
        residual_std=None if refiner is None else refiner["residual_std"].to(device),
    )


_KINDS: Dict[str, type] = {
    "run": dict, "epoch": int, "best": dict, "history": list, "notes": list, "phases": list, "num_taught_rows": int,
}  # fmt: skip
_JUDGED = ("holdout_mse", "holdout_relative_mse", "holdout_collision_rate")


def _check_remembered(remembered: Dict[str, Any], groups: Set[str], name: str) -> None:
    """校验和挡不住别人写的断点：键要齐、种类要对、每个 epoch 各有一行，续训才不会走到一半才崩。

    Raises:
        ModelFileError: 不是训练写的断点。
    """
    for key, kind in _KINDS.items():
        if not isinstance(remembered.get(key), kind) or isinstance(remembered[key], bool):
            raise checkpoint.ModelFileError(f"checkpoint {name} has no valid {key!r}; delete it and resume")
    epoch, best, history = remembered["epoch"], remembered["best"], remembered["history"]
    rows_fit = len(history) == epoch + 1 and all(
        isinstance(row, dict) and isinstance(row.get("phase"), str) and all(_is_number(row.get(k)) for k in _JUDGED)
        for row in history
    )
    key = best.get("key")
    best_fits = isinstance(key, list) and len(key) == 2 and all(map(_is_number, key))
    best_fits = best_fits and best.get("epoch") in range(epoch + 1)
    texts = [*remembered["notes"], *remembered["phases"]]
    if not rows_fit or not best_fits or not {"model", "best"} <= groups or not all(isinstance(t, str) for t in texts):
        raise checkpoint.ModelFileError(f"checkpoint {name} does not describe {epoch} epochs; delete it and resume")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
