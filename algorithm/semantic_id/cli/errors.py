"""异常 → 退出码与 stderr 上恰好一行。"""

from __future__ import annotations

import errno
import sys
import traceback

__all__ = ["interrupted", "report"]


def interrupted() -> int:
    """Ctrl-C：一行，退出码 130。"""
    return _fail("interrupted; an unfinished `semid train` goes on with --resume", 130)


def report(error: Exception) -> int:
    """用户能改正的：一行，退出码 2；其余是我们的缺陷：回溯，退出码 1。"""
    if type(error).__name__ == "Abort":  # 旧版 typer 把 Ctrl-C 变成它
        return interrupted()
    if hasattr(error, "format_message"):  # click 的用法错误；typer 新版自带一份 click，所以不能按类型认
        return _fail(f"{error.format_message()} (try `semid --help`)", 2)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename!r}" if error.filename else ""
        if error.errno == errno.ENOSPC and "free some space" not in error.strerror:
            where += "; free some space and run again"
        return _fail(f"{error.strerror}{where}", 2)
    if isinstance(error, ImportError) and "pip install" in str(error):  # 缺一个可选的包
        return _fail(str(error), 2)
    if isinstance(error, (TypeError, ValueError, OSError)):
        return _fail(str(error), 2)
    traceback.print_exception(error)
    return 1


def _fail(message: str, code: int) -> int:
    """在 stderr 上写恰好一行。"""
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code
