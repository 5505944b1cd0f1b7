"""Ctrl-C 与 SIGTERM：正在写的东西照常收拾，再说清这个命令怎样接着做。

SIGTERM 默认当场杀死进程，收拾不了；这里把它变成与 Ctrl-C 一样的异常。退出码是 128 + 信号：130、143。
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Iterator

__all__ = ["Stopped", "Terminated", "terminable"]


class Terminated(KeyboardInterrupt):
    """收到 SIGTERM。"""


class Stopped(Exception):
    """一个命令被打断；由 `app.py` 包住命令时抛出，因为只有那里知道是哪个命令。

    Args:
        stop: 打断它的异常。
        how: 怎样接着做，例如 "run `semid encode` again with --resume"。
    """

    def __init__(self, stop: KeyboardInterrupt, how: str) -> None:
        is_term = isinstance(stop, Terminated)
        super().__init__(f"{'terminated' if is_term else 'interrupted'}; {how}")
        self.exit_code = 128 + (signal.SIGTERM if is_term else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """在里面时 SIGTERM 是一个 `Terminated`；离开时恢复原来的处理。只有主线程能管信号，别的线程里什么也不做。"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated
