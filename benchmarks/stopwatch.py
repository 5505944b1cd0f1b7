"""随设备而变的测量：时间与内存。bench_*.py 里别处都不必知道自己在哪种设备上。

CPU：进程的 CPU 时间，别的进程占着处理器也不算；内存是常驻内存的峰值增量，只有 Linux 给得出。
CUDA：前后各同步一次的墙上时间；内存是 PyTorch 分配器的峰值增量。
"""

from __future__ import annotations

import ctypes
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import torch


class Stopwatch:
    """一种设备上的时间与内存。"""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"
        self.unit = "秒" if self.is_cuda else "CPU 秒"

    def seconds(self, run: Callable[..., Any], *arguments: Any) -> float:
        """跑一遍 `run(*arguments)` 用的秒数。"""
        clock = time.perf_counter if self.is_cuda else time.process_time
        self._wait()
        start = clock()
        run(*arguments)
        self._wait()
        return clock() - start

    def latency_ms(self, run: Callable[..., Any], *arguments: Any) -> float:
        """墙上时间的中位数，毫秒。"""
        times = []
        for _ in range(30):
            self._wait()
            start = time.perf_counter()
            run(*arguments)
            self._wait()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    def extra_megabytes(self, run: Callable[..., Any], *arguments: Any) -> float | None:
        """运行期间内存峰值的增量；给不出时是 None。"""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run(*arguments)
            self._wait()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        try:
            ctypes.CDLL(None).malloc_trim(0)  # 还掉前一位留下的空闲堆，否则后来者显得不占内存
            Path("/proc/self/clear_refs").write_text("5")
            before = _status_kb("VmRSS")
            run(*arguments)
            return (_status_kb("VmHWM") - before) / 1024
        except (OSError, AttributeError, TypeError):
            return None

    def hardware(self) -> str:
        """处理器或显卡的名字。"""
        if self.is_cuda:
            return torch.cuda.get_device_name(self.device)
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            return "unknown processor"

    def _wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
