"""输出与输入须分开：写进正在读的目录会弄坏它，或在下次读它时混进去。"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

__all__ = ["check_apart"]


def check_apart(output: Path | None, *inputs: Path | None) -> None:
    """输出不是输入、不在输入的目录里，输入也不在输出的目录里；符号链接看它指向哪里。

    Args:
        output: 要写的文件或目录；None 为不写。
        inputs: 要读的文件与目录；None 为没给。

    Raises:
        InputError: 两者重叠；此时什么也没写。
    """
    if output is None:
        return
    place = output.resolve()
    for path in inputs:
        if path is None:
            continue
        there = path.resolve()
        if place == there:
            raise InputError(f"output {str(output)!r} is an input of this command; choose another output")
        if there in place.parents and there.is_dir():
            raise InputError(f"output {str(output)!r} lies inside the input {str(path)!r}; choose another output")
        if place in there.parents:
            raise InputError(f"output {str(output)!r} holds the input {str(path)!r}; choose another output")
