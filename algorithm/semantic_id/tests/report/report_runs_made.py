"""报告测试共用的运行：一个小评估、一个训练目录；标题里有各种想变成标记的东西。"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pyarrow as pa

from algorithm.semantic_id.evaluation.folder import EvaluationTarget, codeword_schema, item_schema
from algorithm.semantic_id.evaluation.legend import legend_of

SIZES = (4, 3, 5)
NASTY = (
    "<script>alert(1)</script>",
    '</script><img src=x onerror="window.pwned=1">',
    "<!-- <b>bold</b>",
    "two\nlines & {{ 7 * 7 }}",
)
METRICS: Dict[str, Any] = {
    "mse": 0.01, "relative_mse": 0.4, "level_relative_mse": [0.8, 0.6, 0.4], "utilization": [1.0, 1.0, 0.8],
    "perplexity": [3.9, 2.8, 4.0], "gini": [0.1, 0.1, 0.2], "dead_codes": [0, 0, 1], "collision_rate": 0.125,
    "collided_item_rate": 0.2, "max_collision": 7, "neighbour_share": [0.6, 0.3, 0.1],
    "prefix_chance": [0.25, 0.08, 0.01], "label_purity": [0.7, 0.8, 0.9], "label_purity_chance": [0.4, 0.5, 0.6],
    "num_items": 200,
}  # fmt: skip
VERDICTS = [
    {"code": "perplexity_ok", "severity": "ok", "zh": "码字都用得上。", "en": "all used.", "metric": "perplexity"},
    {"code": "collisions_high", "severity": "bad", "zh": "挤。加一层。", "en": "crowded. Add a level.",
     "metric": "collision_rate"},
    {"code": "level_idle", "severity": "watch", "zh": "L3 闲着。", "en": "L3 idles.", "metric": "level_relative_mse"},
]  # fmt: skip


def make_items(rows: int = 200, *, seed: int = 0, suffix: bool = False, labels: bool = True) -> pa.Table:
    """随机的编号、标题与误差；前几个标题是 NASTY。第 0 行误差最大。"""
    rng = np.random.default_rng(seed)
    columns: Dict[str, Any] = {
        "item_id": [f"id-{i}" for i in range(rows)],
        "title": [NASTY[i] if i < len(NASTY) else f"thing number {i}" for i in range(rows)],
        "label": [None if i % 17 == 0 else f"kind {i % 3}" for i in range(rows)] if labels else [None] * rows,
        **{f"l{level + 1}": rng.integers(0, size, rows).astype(np.int32) for level, size in enumerate(SIZES)},
        "error": [9.0, None, *rng.random(rows - 2).tolist()],
        "map_x": rng.standard_normal(rows).astype(np.float32),
        "map_y": rng.standard_normal(rows).astype(np.float32),
    }
    if suffix:
        columns["suffix"] = np.zeros(rows, np.int32)
    schema = item_schema(len(SIZES), suffix)
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


def make_evaluation(name: str = "mine", **changes: Any) -> Dict[str, Any]:
    """evaluation.json 的内容；图例是真的。"""
    metrics = {**METRICS, **changes}
    return {
        "name": name, "created": "2026-11-26T01:02:03+00:00", "semid_version": "0", "fingerprint": "f" * 64,
        "features": "x.npy (200 x 8)", "num_items": 200, "codebook_sizes": list(SIZES), "sampled": {"mse": None},
        "metrics": metrics, "verdicts": VERDICTS, "legend": legend_of(metrics), "items_in_folder": {"rows": 200},
    }  # fmt: skip


def make_codewords(items: pa.Table) -> pa.Table:
    """按物品数出来的用量；位置随便。"""
    rows: List[Dict[str, Any]] = []
    for level, size in enumerate(SIZES):
        counts = np.bincount(items.column(f"l{level + 1}").to_numpy(), minlength=size)
        for code in range(size):
            where = {"map_x": 0.1 * code, "map_y": 0.2} if level == 0 else {"map_x": None, "map_y": None}
            rows.append({"level": level + 1, "code": code, "count": int(counts[code]), "label": "kind 0", **where})
    return pa.Table.from_pylist(rows, schema=codeword_schema())


def make_run(folder: Path, name: str = "mine", items: pa.Table | None = None, **changes: Any) -> Path:
    """评估目录。"""
    items = make_items() if items is None else items
    EvaluationTarget(folder, overwrite=True).write(make_evaluation(name, **changes), items, make_codewords(items))
    return folder


def make_training(folder: Path, fingerprint: str = "f" * 64, epochs: int = 4) -> Path:
    """训练目录：曲线与指纹，没有权重（报告不读）。"""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"epoch": e, "phase": "refine", "reconstruction_loss": 1.0 / (e + 1), "holdout_relative_mse": 0.5 / (e + 1),
         "utilization": [1.0, 0.9, float("nan")], "perplexity": [3.0, 2.0, 4.0]}
        for e in range(epochs)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps({"fingerprint": fingerprint}))
    return folder
