"""异常 → 退出码与 stderr 上恰好一行。"""

from __future__ import annotations

import errno
import sys
import traceback

from ..errors import UserError
from ..files.printable import printable
from .interrupts import Stopped

__all__ = ["report"]


def report(error: BaseException) -> int:
    """用户或环境的：一行，退出码 2；被打断：一行，130 或 143；其余是我们的缺陷：回溯，退出码 1。"""
    if isinstance(error, KeyboardInterrupt):  # 还没有走进哪个命令
        error = Stopped(error, "nothing was done")
    if isinstance(error, Stopped):
        return _fail(str(error), error.exit_code)
    if hasattr(error, "format_message"):  # click 的用法错误；typer 新版自带一份 click，所以不能按类型认
        return _fail(f"{error.format_message()} (try `semid --help`)", 2)
    line = _of_the_user(error)
    if line is not None:
        return _fail(line, 2)
    print(*map(printable, "".join(traceback.format_exception(error)).splitlines()), sep="\n", file=sys.stderr)
    return 1


def _of_the_user(error: BaseException) -> str | None:
    """用户能改正的错误写成一行；不是就返回 None。"""
    if isinstance(error, OSError) and error.strerror:  # 系统说的：没有权限、磁盘满、没有这个文件
        where = f": {error.filename!r}" if error.filename else ""
        if error.errno == errno.ENOSPC and "free some space" not in error.strerror:
            where += "; free some space and run again"
        return f"{error.strerror}{where}"
    if isinstance(error, ImportError) and "pip install" in str(error):  # 缺一个可选的包
        return str(error)
    if _is_out_of_memory(error):
        return f"out of memory ({str(error) or 'no detail'}); use fewer rows at a time or a larger machine"
    if isinstance(error, (UserError, OSError)):
        return str(error)
    return None


def _fail(message: str, code: int) -> int:
    """在 stderr 上写恰好一行。"""
    print("error:", printable(" ".join(message.split())), file=sys.stderr)
    return code


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch 的两种内存不足没有共同的类，CPU 上的只认得出文字；这里不导入 torch。"""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
