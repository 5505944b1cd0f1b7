"""一格 = （数据、码本大小、种子、工具）：在自己的子进程里训练，编号与误差存进缓存。

缓存的一格是一个文件夹，名字带着键的摘要：`row.json`，以及每种读法的编号 `<读法>.<train|unseen>.npy`。先写到旁边、
再改名，所以中途被杀不留半格；指标以后由编号算，换一个指标不必重训。键里有一切决定结果的东西：数据的摘要、划分、码本
大小、种子、工具的版本、做法与设置，我们自己的工具另加源码的摘要。

子进程：单线程，训练的 CPU 秒有上限（RLIMIT_CPU），超了由内核结束，父进程记为 not finished。
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCHEMA = 1
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")}


@dataclass(frozen=True)
class Cell:
    """表里的一格。"""

    dataset: str
    sizes: tuple[int, ...]
    seed: int
    tool: str
    inner: bool

    @property
    def label(self) -> str:
        parts = [self.dataset, "-".join(map(str, self.sizes)), f"seed{self.seed}", self.tool]
        return "_".join([*parts, *(["inner"] if self.inner else [])])


def key_of(cell: Cell, data_folder: Path) -> dict[str, Any]:
    """决定这一格结果的一切。"""
    from quality.data import DATASETS, INNER_RATE
    from quality.tools import TOOLS

    dataset, tool = DATASETS[cell.dataset], TOOLS[cell.tool]
    return {
        "schema": SCHEMA,
        **asdict(cell),
        "sizes": list(cell.sizes),
        "train_rows": dataset.train_rows,
        "inner_rate": INNER_RATE if cell.inner else None,
        "data": dataset.digest(data_folder),
        "version": tool.version(),
        "recipe": tool.recipe(),
        "settings": tool.settings,
    }


def folder_of(cell: Cell, data_folder: Path, cache: Path) -> Path:
    """这一格在缓存里的文件夹。"""
    text = json.dumps(key_of(cell, data_folder), sort_keys=True)
    return cache / f"{cell.label}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def read_row(folder: Path) -> dict[str, Any] | None:
    """缓存里的一格；没有为 None。"""
    path = folder / "row.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_done(row: dict[str, Any] | None, cpu_limit: int) -> bool:
    """不必再跑：跑完了，或者在至少这么宽的时限里没跑完。"""
    return row is not None and (
        row["status"] == "finished" or (row["status"] == "not finished" and row["cpu_limit"] >= cpu_limit)
    )


def run(cell: Cell, data_folder: Path, cache: Path, cpu_limit: int) -> dict[str, Any]:
    """跑一格；返回写进缓存的那一行。失败也记下，但下次会重试。"""
    from quality.tools import TOOLS

    folder, tool = folder_of(cell, data_folder, cache), TOOLS[cell.tool]
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    job = {"cell": asdict(cell), "data_folder": str(data_folder), "folder": str(part), "cpu_limit": cpu_limit}
    # PYTHONPATH 里放 benchmarks/ 与仓库根；子进程不走命令行，免得与 bench_quality 的参数纠缠
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = {**os.environ, **THREADS, **tool.environment, "PYTHONPATH": paths}
    child = subprocess.run(
        [sys.executable, "-m", "quality.worker", json.dumps(job)],
        env=environment,
        stdout=subprocess.DEVNULL,  # 有的工具每个 epoch 都要说话
        stderr=subprocess.PIPE,
        text=True,
    )
    (part / "stderr.txt").write_text(child.stderr[-20_000:], encoding="utf-8")
    row: dict[str, Any] = {"key": key_of(cell, data_folder), "cpu_limit": cpu_limit}
    if child.returncode == 0:
        row.update(json.loads((part / "measured.json").read_text(encoding="utf-8")), status="finished")
    elif child.returncode == -signal.SIGXCPU:
        row.update(status="not finished")
    else:
        lines = child.stderr.strip().splitlines()
        row.update(status="failed", code=child.returncode, error=lines[-1] if lines else "")
    (part / "measured.json").unlink(missing_ok=True)
    (part / "row.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return row
