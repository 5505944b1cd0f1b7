"""物品表那层楼的提醒（旧格式缺什么）写到 stderr，一条一行，同样的只说一次。"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import Iterator, Set

from ..files.printable import printable

__all__ = ["notes"]


class _Notes(logging.Handler):
    """每条提醒一行。"""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: Set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """写出没说过的。"""
        line = printable(" ".join(record.getMessage().split()))
        if line not in self._said:
            self._said.add(line)
            print("note:", line, file=sys.stderr)


@contextmanager
def notes(quiet: bool) -> Iterator[None]:
    """一条命令的期间；`--quiet` 就不说。"""
    logger, handler = logging.getLogger("algorithm.semantic_id.catalog"), _Notes()
    if not quiet:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
