"""一次评估：打开输入、量、体检、落盘；参数进，可写成 JSON 的字典出，不打印。

模型与物品表由调用者给出打开它们的函数，这里只认协议。
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, Dict

from .. import __version__
from ..files.progress import Progress
from .folder import EvaluationTarget
from .legend import legend_of
from .measure import Result, counter, measure, num_rows_read
from .opening import Request, open_inputs
from .verdicts import judge_health

__all__ = ["run_evaluation"]

# 写在 evaluation.json 最外层的说明，不再写进 metrics
_OUTSIDE = ("num_items", "codebook_sizes", "fingerprint", "features", "sampled")


def run_evaluation(
    request: Request,
    *,
    block_rows: int = 8192,
    output: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Dict[str, Any]:
    """评估一个模型，或别人的编码。

    Args:
        request: 评估什么，见 `Request`。
        block_rows: 一次处理多少行；只影响内存与速度。
        output: 评估目录；None 则不写。
        overwrite: 允许替换已有的评估。
        progress: 是否显示进度。

    Returns:
        全部指标（键见 `metrics/records/`），加上 verdicts、sampled、codebook_sizes、fingerprint、features、output。

    Raises:
        FileExistsError, FileNotFoundError, TypeError, ValueError: 见各扇门；出错时什么也没写。
    """
    target = None if output is None else EvaluationTarget(output, overwrite)
    inputs = open_inputs(request)
    num_rows = num_rows_read(inputs)
    with Progress(progress) as bar, bar.task("evaluate", num_rows) as report:
        measured = measure(inputs, block_rows, counter(num_rows, report))
    result = {**measured.figures, **measured.facts}
    result["verdicts"] = [verdict._asdict() for verdict in judge_health(result)]
    if target is not None:
        _write(target, result, measured)
        result["output"] = os.fspath(target.path)
    return result


def _write(target: EvaluationTarget, result: Dict[str, Any], measured: Result) -> None:
    """写评估目录。"""
    folder = target.path.resolve()
    # 放在训练目录的 evaluation/ 里时，名字取那个目录的：比较几次训练时人认得的是它
    name = folder.parent.name if folder.name == "evaluation" else folder.name
    evaluation_json = {
        "name": name,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "semid_version": __version__,
        **{key: result[key] for key in _OUTSIDE},
        "metrics": {key: value for key, value in result.items() if key not in (*_OUTSIDE, "verdicts")},
        "verdicts": result["verdicts"],
        "legend": legend_of(measured.figures),
        "items_in_folder": measured.chosen,
    }
    target.write(evaluation_json, measured.items, measured.codewords)
