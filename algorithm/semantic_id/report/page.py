"""报告：几次运行 → 一个自足的网页，不联网，从磁盘直接打开。

页面由 `report/assets/` 里的模板、样式与脚本拼成；用到的图表库 uPlot 与它的许可证也在那里（决定 0010）。数据怎样装进去见
`data.py`。标题来自别人的数据，绝不当作标记：模板自动转义，JSON 里的 `<` 写成转义，脚本只用 textContent，
内容安全策略只放行这一段脚本（按它的 SHA-256）。

谁可以写：只写 `output` 一个文件，原子地换上；运行途中出现在那里的别的东西留着不动。不 import 模型。
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from .. import __version__
from ..errors import InputError
from ..evaluation.summary import notes, split_table
from ..files.durable import FileTarget, one_writer
from .data import embedded_json, pack_runs, thin_items
from .figures import compare_rows, figure_tiles, format_metric, overall
from .runs import Run, read_runs

__all__ = ["MAX_PAGE_BYTES", "write_report"]

# 邮件附件与浏览器都受得了的上限；超过就少画一些物品
MAX_PAGE_BYTES = 15_000_000
_PAGE = Path(__file__).with_name("assets")
_UNSEALED = (
    "这份评估是旧版本写的，清单没有校验和：被改动过也看不出来。重新评估一次就有。",
    "this evaluation was written by an older version without a checksum of its own: changes to it would go unnoticed. "
    "Evaluate again to have one.",
)
_SCRIPTS = ("text", "data", "paint", "charts", "tree", "tree_view", "map", "lists", "main")


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    lang: str = "zh",
    overwrite: bool = False,
) -> Dict[str, Any]:
    """把几次运行写成一个网页。

    Args:
        runs: `semid evaluate --output` 或 `semid train` 的目录，至少一个；几个就并排比较。
        output: 写到哪里，以 .html 结尾。
        lang: 打开时的语言，zh 或 en；页面上随时可以换。
        overwrite: 允许替换已有的文件。

    Returns:
        {output, bytes, num_runs, runs: [{name, num_items, items_shown}]}。

    Raises:
        ImportError: 没有装 semid[report]。
        FileExistsError, FileNotFoundError: 输出已有；运行不存在。
        ValueError: 参数不对，或某个目录读不懂；出错时什么也没写。
    """
    path = Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {str(path)!r} must end in .html")
    if lang not in ("zh", "en"):
        raise InputError(f"lang={lang!r} is not supported; use zh or en")
    target = FileTarget(path, overwrite)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {str(path.parent)!r} of the report does not exist; make it first")
    template = _template()
    read = read_runs(runs)
    page = _fitting(template, read, lang)
    with one_writer(path), target.writing() as file:
        file.write(page[0])
    shown = [
        {
            "name": run.name,
            "num_items": None if run.evaluation is None else run.evaluation["num_items"],
            "items_shown": None if run.items is None else run.items.num_rows,
        }
        for run in page[1]
    ]
    return {"output": os.fspath(path), "bytes": len(page[0]), "num_runs": len(read), "runs": shown}


def _template() -> Any:
    """模板；自动转义开着，缺了变量就报错。"""
    try:
        import jinja2
    except ImportError:
        raise ImportError("the report needs jinja2; pip install 'semid[report]'") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _fitting(template: Any, runs: List[Run], lang: str) -> Tuple[bytes, List[Run]]:
    """渲染；太大就按比例少放物品，直到装得下。固定的部分不到 1 MB，所以几步之内一定停。"""
    while True:
        page = _render(template, runs, lang).encode("utf-8")
        rows = max((run.items.num_rows for run in runs if run.items is not None), default=0)
        limit = int(rows * 0.9 * MAX_PAGE_BYTES / max(1, len(page)))
        if len(page) <= MAX_PAGE_BYTES or rows <= 1000:
            return page, runs
        thinned = [
            run
            if run.items is None or run.evaluation is None
            else run._replace(items=thin_items(run.items, len(run.evaluation["codebook_sizes"]), limit))
            for run in runs
        ]
        runs = thinned


def _render(template: Any, runs: List[Run], lang: str) -> str:
    """一遍渲染。"""
    data, blocks = pack_runs(runs)
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    evaluations = [run.evaluation for run in runs]
    legend: Dict[str, Dict[str, Any]] = {}
    for evaluation in evaluations:
        for entry in (evaluation or {}).get("legend", []):
            legend.setdefault(entry["key"], entry)
    features = {(e["features"], e["num_items"]) for e in evaluations if e is not None}
    return template.render(
        lang=lang,
        version=__version__,
        runs=[_run_view(run) for run in runs],
        compare=compare_rows(evaluations) if len(runs) > 1 else [],
        mixed=len(features) > 1,
        legend=list(legend.values()),
        has_curves=any(run.curves for run in runs),
        has_items=any(run.items is not None for run in runs),
        style=_text("uplot/uPlot.min.css") + _text("style.css"),
        script=script,
        script_hash=digest,
        data=embedded_json(data),
        blocks=blocks.encoded,
    )


def _run_view(run: Run) -> Dict[str, Any]:
    """模板里一次运行的全部内容。"""
    evaluation = run.evaluation
    if evaluation is None:
        return {"name": run.name, "evaluation": None, "epochs": len(run.curves)}
    tiles = figure_tiles(evaluation)
    severity, summary = overall(tiles)
    figures = {**evaluation["metrics"], "codebook_sizes": evaluation["codebook_sizes"]}
    return {
        "name": run.name,
        "evaluation": evaluation,
        "stale": run.stale,
        "tiles": tiles,
        "severity": severity,
        "summary": summary,
        "levels": split_table(figures, "level", everything=True),
        "prefixes": split_table(figures, "prefix", everything=True),
        "notes": notes(figures) + ([] if evaluation["sealed"] else [_UNSEALED]),
        "figures": {key: format_metric(key, value) for key, value in evaluation["metrics"].items()},
        "shown": 0 if run.items is None else run.items.num_rows,
        "sampled": {key: value for key, value in evaluation["sampled"].items() if value is not None},
    }


def _script() -> str:
    """全部脚本，一段；里面不许出现 </script，否则会提前结束。"""
    parts = [_text("uplot/uPlot.iife.min.js"), '(function () {\n"use strict";']
    parts += [_text(f"{name}.js") for name in _SCRIPTS] + ["})();"]
    return "\n".join(parts)


def _text(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")
