"""子进程：训练一个工具，读出编号与误差。由 row.run 启动，参数是一个 JSON。"""

from __future__ import annotations

import ctypes
import importlib
import json
import platform
import resource
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from quality.data import DATASETS, split
from quality.tools import TOOLS

ENCODE_SECONDS = 1800  # 训练之后的编码另有时限，免得一家的编码器把整晚占住


def main() -> None:
    job = json.loads(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG：父进程被杀，这里也不留
    cell, folder = job["cell"], Path(job["folder"])
    dataset, tool, sizes = DATASETS[cell["dataset"]], TOOLS[cell["tool"]], tuple(cell["sizes"])
    vectors = dataset.load(Path(job["data_folder"]))
    parts = split(len(vectors), dataset.train_rows, cell["seed"], cell["inner"])
    train, unseen = vectors[parts.train], vectors[parts.unseen]
    del vectors
    _single_thread(tool.module)

    limit_cpu(job["cpu_limit"])
    reset_peak()
    base, started, cpu = peak_bytes(), time.perf_counter(), time.process_time()
    readings = tool.fit(train, sizes, cell["seed"], tool.settings)
    measured: dict[str, Any] = {
        "train_cpu_s": time.process_time() - cpu,
        "train_wall_s": time.perf_counter() - started,
        "peak_bytes": peak_bytes(),
        "base_bytes": base,
    }
    limit_cpu(ENCODE_SECONDS)
    mean = train.mean(axis=0, dtype=np.float64)
    sides = {"train": train, "unseen": unseen}
    measured["rows"] = {side: len(x) for side, x in sides.items()}
    measured["deviation"] = {side: squares(x, mean) for side, x in sides.items()}
    measured["readings"] = {name: read_out(name, read, sides, sizes, folder) for name, read in readings.items()}
    measured["versions"] = {name: metadata.version(name) for name in ("numpy", "torch", tool.package)} | {
        "python": platform.python_version()
    }
    (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def read_out(name: str, read: Any, sides: dict[str, np.ndarray], sizes: tuple[int, ...], folder: Path) -> dict:
    """一种读法：两组行各编码、重建一遍，编号写成 .npy，误差留数字。"""
    out: dict[str, Any] = {"squared_error": {}, "encode_cpu_s": {}}
    for side, x in sides.items():
        cpu = time.process_time()
        codes, rebuilt = read(x)
        out["encode_cpu_s"][side] = time.process_time() - cpu
        codes = np.asarray(codes)
        if codes.shape != (len(x), len(sizes)) or codes.min() < 0 or (codes.max(axis=0) >= np.array(sizes)).any():
            raise ValueError(f"{name}: codes of shape {codes.shape} with maxima {codes.max(axis=0)} do not fit {sizes}")
        np.save(folder / f"{name.replace(' ', '-')}.{side}.npy", codes.astype(np.int32))
        out["squared_error"][side] = squares(x, rebuilt)
    return out


def squares(x: np.ndarray, y: np.ndarray, block: int = 8192) -> float:
    """Σ‖x − y‖²，float64 累加，按块；y 是同形的矩阵或一行。"""
    total = 0.0
    for start in range(0, len(x), block):
        other = y[start : start + block] if y.ndim == 2 else y
        total += float(np.square(x[start : start + block].astype(np.float64) - other).sum())
    return total


def limit_cpu(seconds: int) -> None:
    """从现在起再用这么多 CPU 秒就收 SIGXCPU。只动软上限，之后还能放宽。"""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, resource.RLIM_INFINITY))


def reset_peak() -> None:
    """让 VmHWM 从现在的占用重新记起（ru_maxrss 会带着 fork 之前父进程的峰值）。"""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes() -> int:
    """常驻内存的峰值。"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _single_thread(module: str) -> None:
    """先把工具与 torch 导进来（导入不算训练），再限定一个线程。"""
    importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)


if __name__ == "__main__":
    main()
