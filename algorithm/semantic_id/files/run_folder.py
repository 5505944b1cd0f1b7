"""输出目录的门：训练与演示只动自己写的东西，绝不删别人的文件。"""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["check_demo_folder", "check_run_folder", "remove_traces"]

# 训练目录里我们写的名字；--overwrite 只敢动只含这些的目录
_RUN_NAMES = {"config.json", "model.safetensors", "README.md", "metrics.jsonl", "checkpoints"}
_RUN_NAMES |= {"tensorboard", "evaluation"}  # 训练曲线；`semid evaluate --output my-model/evaluation`
_RUN_MARKS = ("config.json", "metrics.jsonl", "checkpoints")
_DEMO_NAMES = {"model", "catalog", "demo.json", "report.html"}


def check_run_folder(output: Path, resume: bool, overwrite: bool) -> None:
    """训练目录须不存在、为空、可续训，或是允许替换的训练目录；绝不动别人的文件。"""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite contradict each other; choose one")
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"output {str(output)!r} exists and is a file; choose another folder")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    names = {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))}
    if not names:
        return
    strangers = sorted(names - _RUN_NAMES)
    if strangers or not names.intersection(_RUN_MARKS):
        raise FileExistsError(
            f"output folder {str(output)!r} holds {(strangers or sorted(names))[0]!r}, which is no training run; "
            "choose another folder"
        )
    if resume and "checkpoints" not in names and "config.json" in names:
        raise FileExistsError(f"{str(output)!r} is already finished; use it as it is, or train again with --overwrite")
    if not resume and not overwrite:
        hint = "pass --resume to go on or --overwrite to start over" if "checkpoints" in names else "pass --overwrite"
        raise FileExistsError(f"output folder {str(output)!r} exists; {hint}, or choose another")


def remove_traces(output: Path, existed: bool) -> None:
    """还没有断点就失败（多半是坏数据）：收拾干净，好像没跑过；有断点则留着续训。"""
    checkpoints = output / "checkpoints"
    if any(path.suffix != ".tmp" for path in checkpoints.glob("epoch-*")):
        return
    shutil.rmtree(checkpoints, ignore_errors=True)
    if not existed and output.is_dir() and not any(output.iterdir()):
        output.rmdir()


def check_demo_folder(output: Path) -> None:
    """只替换演示自己写的目录。"""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"output {str(output)!r} exists and is a file; choose another folder")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    names = {name for name in names if not name.endswith((".tmp", ".partial", ".old"))}
    if names and (names - _DEMO_NAMES or "demo.json" not in names):
        raise FileExistsError(
            f"output folder {str(output)!r} was not made by `semid demo`; choose another with --output"
        )
