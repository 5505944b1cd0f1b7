"""分叉出去的进程：在里面跑一个命令，可以在第 n 次动磁盘之前杀掉它、停住它，或限制它写的文件的大小。

父进程只导入、不计算，所以没有线程，分叉是安全的；一个命令因此只要几十毫秒，不必每次重新导入 torch。
「动磁盘」是解释器审计事件里的新建、改名、删除、建目录，再加上 fsync；给定种子，第 n 次总是同一处。
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

__all__ = ["Child", "Ended", "Trial", "Verdict", "call", "launch", "run"]

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MOVES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}


class Verdict(NamedTuple):
    """一次试验的结果：说的是什么试验；不对的地方，对则为空。"""

    what: str
    wrong: str = ""


class Trial(NamedTuple):
    """一次试验需要知道的：第几次、属于它自己的随机数、一个空目录。"""

    index: int
    rng: random.Random
    folder: Path


class Ended(NamedTuple):
    """一个结束了的进程：退出码（被信号杀死为负）、标准输出、标准错误、动了几次磁盘。"""

    code: int
    out: str
    err: str
    ops: int

    def complaint(self) -> str:
        """不该有的样子：缺陷的退出码 1、被信号杀死，或用户错误不是恰好一行；没有为空。"""
        if self.code not in (0, 2):
            return f"exit {self.code}: {self.err.strip().splitlines()[-1:]}"
        if self.code == 2 and (self.err.count("\n") != 1 or not self.err.startswith("error: ")):
            return f"exit 2 without exactly one error line: {self.err!r}"
        return ""


class _Hook:
    """数动磁盘的次数；到了就杀掉或停住自己。"""

    def __init__(self, root: str, counter: mmap.mmap, kill_at: int, stop_at: int) -> None:
        self.root, self.counter, self.kill_at, self.stop_at = root, counter, kill_at, stop_at
        self.count = 0

    def __call__(self, event: str, args: Tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(args[2], int) and args[2] & _WRITES and self._is_here(args[0]):
                self.tick()
        elif event in _MOVES and (self._is_here(args[0]) or (isinstance(args[-1], int) and args[-1] >= 0)):
            self.tick()

    def _is_here(self, path: Any) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.root)

    def tick(self) -> None:
        self.count += 1
        self.counter[:8] = self.count.to_bytes(8, "little")
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)


@dataclass
class Child:
    """一个正在跑的进程。"""

    pid: int
    counter: mmap.mmap
    logs: Tuple[Path, Path]

    def wait(self) -> Ended:
        """等它结束。"""
        _, status = os.waitpid(self.pid, 0)
        return self._ended(status)

    def wait_or_stop(self) -> Ended | None:
        """等它结束或停住；停住为 None。"""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return None if os.WIFSTOPPED(status) else self._ended(status)

    def wait_for(self, seconds: float) -> Ended | None:
        """至多等这么久；还没有结束为 None。"""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return self._ended(status)
            time.sleep(0.003)
        return None

    def send(self, number: int) -> None:
        """发一个信号。"""
        os.kill(self.pid, number)

    def _ended(self, status: int) -> Ended:
        out, err = (log.read_text(encoding="utf-8", errors="replace") for log in self.logs)
        for log in self.logs:
            log.unlink()
        return Ended(os.waitstatus_to_exitcode(status), out, err, int.from_bytes(self.counter[:8], "little"))


def launch(
    argv: Sequence[str], root: Path, *, kill_at: int = 0, stop_at: int = 0, file_limit: int | None = None
) -> Child:
    """在一个新进程里跑 `semid ARGV`。

    Args:
        argv: 参数。
        root: 在它下面动磁盘才数。
        kill_at: 第几次动磁盘之前杀掉，0 为不杀。
        stop_at: 第几次动磁盘之前停住，0 为不停。
        file_limit: 一个文件至多几字节。
    """
    counter = mmap.mmap(-1, 8)
    logs = tuple(Path(tempfile.mkstemp(prefix="torture-log-")[1]) for _ in range(2))
    pid = os.fork()
    if pid:
        return Child(pid, counter, logs)  # type: ignore[arg-type]
    code = 70
    try:
        for number, log in zip((1, 2), logs, strict=True):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), number)
        hook = _Hook(str(root), counter, kill_at, stop_at)
        os.fsync = lambda descriptor: hook.tick()  # type: ignore[assignment]  # SIGKILL 不丢页缓存，不必等磁盘
        sys.addaudithook(hook)
        if file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        from algorithm.semantic_id.cli.app import main

        code = main([str(argument) for argument in argv])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def run(argv: Sequence[str], root: Path, **limits: Any) -> Ended:
    """跑完一个命令。"""
    return launch(argv, root, **limits).wait()


def call(function: Callable[[Callable[[Any], None]], None], memory: int | None = None) -> Tuple[List[Any], str]:
    """在一个新进程里调用一个函数，取回它交出的东西。

    Args:
        function: 参数是「交出一件可写成 JSON 的东西」的函数；死在半路，之前交出的也收得到。
        memory: 在已有的之外至多再用几字节的地址空间。

    Returns:
        (交出的东西, 怎么死的)；正常时后者为空。
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as pipe:
            lines = pipe.read().split("\n")
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return [json.loads(line) for line in lines[:-1]], ("" if code == 0 else f"died with {code}")
    code = 70
    try:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # 被测的东西往终端写的一概不要
        if memory is not None:
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        function(lambda value: _send(writer, value))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _send(pipe: int, value: Any) -> None:
    data = (json.dumps(value) + "\n").encode("utf-8")
    while data:
        data = data[os.write(pipe, data) :]
