"""报告的输入：一个 RUN 是 `semid evaluate --output` 的目录、`semid train` 的目录，或两者兼有。

只读，不认模型：评估经 `evaluation/folder.py`，训练曲线是 `metrics.jsonl`，指纹取 `config.json` 里写着的那个。
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import pyarrow as pa

from ..errors import InputError
from ..evaluation.folder import find_evaluation, read_evaluation_folder
from ..files.printable import printable

__all__ = ["Run", "read_runs"]

_LOG_NAME = "metrics.jsonl"
_CONFIG_NAME = "config.json"


class Run(NamedTuple):
    """一次运行里读到的东西；没有的那一半是 None 或空。

    Attributes:
        name: 显示的名字，各个运行互不相同。
        evaluation: evaluation.json 的内容；没有评估时为 None。
        items: items.parquet。
        codewords: codewords.parquet。
        curves: metrics.jsonl 的各行，非有限的数已换成 None。
        stale: 评估的指纹与训练目录里现在的模型不同：评估之后又训练过。
    """

    name: str
    evaluation: Dict[str, Any] | None
    items: pa.Table | None
    codewords: pa.Table | None
    curves: List[Dict[str, Any]]
    stale: bool


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> List[Run]:
    """读全部运行；名字重复时后面的加序号，否则对比表里分不清。

    Args:
        folders: 至少一个目录。

    Returns:
        与 `folders` 同序。

    Raises:
        FileNotFoundError: 目录不存在。
        ValueError: 没有给目录、同一个目录给了两次、既不是评估也不是训练目录，或内容损坏。
    """
    if not folders:
        raise InputError(
            "report needs at least one RUN: a folder written by `semid evaluate --output` or `semid train`"
        )
    runs: List[Run] = []
    seen: Dict[Path, str] = {}
    for folder in folders:
        path = Path(folder)
        real = path.resolve()
        if real in seen:
            raise InputError(f"RUN {str(path)!r} is given twice; name each folder once")
        seen[real] = str(path)
        run = _read_run(path)
        taken = {other.name for other in runs}
        name, number = run.name, 2
        while name in taken:
            name, number = f"{run.name} ({number})", number + 1
        runs.append(run._replace(name=name))
    return runs


def _read_run(path: Path) -> Run:
    """读一个目录；评估在它自己或 evaluation/ 里，曲线在它自己或（它叫 evaluation 时）上一级里。"""
    if not path.is_dir():
        raise FileNotFoundError(
            f"RUN {str(path)!r} is no folder; give a folder of `semid evaluate --output` or `train`"
        )
    found = find_evaluation(path)
    training = path.resolve()
    if found is not None and training.name == "evaluation" and (training.parent / _CONFIG_NAME).is_file():
        training = training.parent
    curves = _read_curves(training / _LOG_NAME)
    if found is None and not curves:
        raise InputError(
            f"RUN {str(path)!r} holds neither evaluation.json nor metrics.jsonl; run `semid evaluate … --output "
            f"{path}/evaluation` first"
        )
    if found is None:
        return Run(printable(training.name), None, None, None, curves, False)
    raw, items, codewords = read_evaluation_folder(found)
    evaluation = _printable(raw)
    fingerprint = _fingerprint(training / _CONFIG_NAME)
    stale = None not in (fingerprint, evaluation["fingerprint"]) and fingerprint != evaluation["fingerprint"]
    return Run(evaluation["name"], evaluation, items, codewords, curves, stale)


def _printable(value: Any) -> Any:
    """清单里的每段文字：看不见而会动作的字符写成转义，页面与终端都不会被它们摆布。"""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(part) for part in value]
    return {key: _printable(part) for key, part in value.items()} if isinstance(value, dict) else value


def _read_curves(path: Path) -> List[Dict[str, Any]]:
    """metrics.jsonl；没有就是空。训练正在写的最后一行可能只有一半，丢掉它；中间的坏行是损坏。"""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; train again") from None
    records: List[Dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            epoch = record["epoch"]
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines):
                break  # 没有换行结尾的一行：还没写完
            raise InputError(f"{path} line {number} is no training record; train again") from None
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise InputError(f"{path} line {number} has epoch={epoch!r}, expected an int; train again")
        parts = [part for value in record.values() for part in (value if isinstance(value, list) else [value])]
        if not all(isinstance(part, (int, float, str, type(None))) for part in parts):
            raise InputError(f"{path} line {number} holds nested values, which no training record has; train again")
        records.append({key: _finite(value) for key, value in record.items()})
    return records


def _finite(value: Any) -> Any:
    """NaN 与无穷换成 None：网页里的 JSON 不认它们。"""
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fingerprint(path: Path) -> str | None:
    """训练目录里现在这个模型的指纹；没有训练完就是 None。"""
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    found = config.get("fingerprint") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None
