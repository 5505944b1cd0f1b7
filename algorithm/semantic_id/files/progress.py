"""进度条：rich 画在 stderr 上，不用时完全安静。"""

from __future__ import annotations

from contextlib import contextmanager
from types import TracebackType
from typing import Callable, Iterator, Type

__all__ = ["OnProgress", "Progress"]

# 报进度的唯一说法：(已完成多少, 总共多少)
OnProgress = Callable[[int, int], None]


class Progress:
    """一组可以先后（或嵌套）出现的进度条。

    rich 在构造时才导入：不显示进度的库用户不为它付导入的代价。

    Args:
        enabled: False 时什么也不画。
    """

    def __init__(self, enabled: bool):
        self._bars = None
        if enabled:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            console = Console(stderr=True)
            self._bars = Bars(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
            )

    def __enter__(self) -> Progress:
        """开始绘制。"""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: Type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """停止绘制，出错时也不留下半条。"""
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[OnProgress]:
        """一条进度；得到的函数以（已完成, 总共）调用。正常结束时补满，出错时停在原处。"""
        if self._bars is None:
            yield lambda done, total: None
            return
        bars = self._bars
        task = bars.add_task(description, total=total)
        yield lambda done, total: bars.update(task, completed=done, total=total)
        bars.update(task, completed=bars.tasks[task].total)
