"""用户能改正的错误自成一类，好与我们自己的缺陷分开。

命令行据此决定：`UserError` 一行、退出码 2；没有人预料到的 `TypeError`、`ValueError` 是我们的缺陷，带回溯、退出码 1。
它们同时是内置的异常，所以库的用户照旧 `except ValueError`。文件与目录的错误用内置的 `OSError` 一族，本来就说得清。
"""

from __future__ import annotations

__all__ = ["InputError", "InputTypeError", "UserError"]


class UserError(Exception):
    """输入、参数或文件不对；信息说清字段、值、界限与怎么改。"""


class InputError(UserError, ValueError):
    """值不对。"""


class InputTypeError(UserError, TypeError):
    """类型不对。"""
