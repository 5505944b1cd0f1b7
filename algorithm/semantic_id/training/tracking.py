"""训练曲线写成 TensorBoard 事件；装了 semid[track] 才有，没装时训练照旧，`metrics.jsonl` 总在。

谁可以写：只写训练目录里的 tensorboard/。事件里有时间，所以字节不可复现；模型与断点不读它。
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Mapping

__all__ = ["FOLDER_NAME", "EventLog"]

FOLDER_NAME = "tensorboard"


class EventLog:
    """一次训练的事件文件；没有装 tensorboard 或没有输出目录时什么也不做。

    Args:
        run: 训练目录；None 为不写。
        first_step: 从第几个 epoch 写起。0 则清掉上一次训练的事件；续训时给断点之后的 epoch，被打断之前多写的点由
            TensorBoard 丢掉（purge_step）。

    """

    def __init__(self, run: Path | None, first_step: int = 0) -> None:
        self._writer: Any = None
        if run is None or importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = run / FOLDER_NAME
        if first_step == 0:
            for events in folder.glob("events.out.tfevents.*"):  # 只删事件；别的不是我们写的
                events.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def write(self, record: Mapping[str, Any]) -> None:
        """记一个 epoch：每个有限的数一条曲线；逐层的数各一条，名字加 /L1、/L2……

        Args:
            record: `metrics.jsonl` 的一行，含 epoch。
        """
        if self._writer is None:
            return
        step = int(record["epoch"])
        for key, value in record.items():
            if key == "epoch":
                continue
            parts = (
                {f"{key}/L{i + 1}": part for i, part in enumerate(value)} if isinstance(value, list) else {key: value}
            )
            for name, number in parts.items():
                if isinstance(number, (int, float)) and math.isfinite(number):
                    self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self) -> None:
        """关上文件；可以多次调用。"""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
