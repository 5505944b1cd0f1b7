"""报告里嵌着的数据：十万个物品怎样装进几 MB，又让浏览器很快打开。

形状字母：R 为物品行数，L 为层数，K_l 为码本大小。

物品按 (l1, …, lL, 去重位) 排序，所以同一前缀是连续的一段：浏览器建树、找邻居、数冲突都只是一次扫描，编号列也压得很小。
每一列是一个定宽数组（文字是换行隔开的 UTF-8），gzip 之后写成 base64；浏览器自带的 DecompressionStream 解开。内容相同的
块只存一份，几次运行用同一批物品时，标题不会重复。
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import pyarrow as pa

from ..evaluation.tables import choose_items
from ..files.printable import printable
from .runs import Run

__all__ = ["Blocks", "embedded_json", "pack_runs", "thin_items"]

# 标题再长，一行也只看得见这么多；目录里的原文不变
MAX_TITLE = 200
# 上色的标签只有几个，但名字都要能查；超过这么多种标签的多半是自由文本
MAX_LABELS = 60_000
_MISSING = 65535  # 坐标缺失的记号；有效值是 0…65534


class Blocks:
    """按内容去重的数据块。"""

    def __init__(self) -> None:
        self.encoded: List[str] = []
        self._known: Dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        """放一块，返回它的编号；同样的字节得到同样的编号。"""
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            self._known[key] = len(self.encoded)
            packed = gzip.compress(data, compresslevel=6, mtime=0)  # mtime=0：同样的输入给出同样的页面
            self.encoded.append(base64.b64encode(packed).decode("ascii"))
        return self._known[key]

    def array(self, values: np.ndarray) -> Dict[str, Any]:
        """一个小端定宽数组：{block, type}，type 是 JavaScript 里的数组种类。"""
        kinds = {"u1": "Uint8Array", "u2": "Uint16Array", "u4": "Uint32Array", "f4": "Float32Array"}
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        return {"block": self.add(np.ascontiguousarray(little).tobytes()), "type": kinds[values.dtype.str[1:]]}

    def text(self, values: Sequence[str | None]) -> Dict[str, Any]:
        """一列文字；换行会破坏切分，换成空格，别的看不见而会动作的字符写成转义。"""
        lines = ("" if value is None else printable(" ".join(value.splitlines())) for value in values)
        return {"block": self.add("\n".join(lines).encode("utf-8", "replace")), "type": "text"}


def pack_runs(runs: Sequence[Run]) -> Tuple[Dict[str, Any], Blocks]:
    """全部运行 → 网页的元数据（可写成 JSON）与数据块。

    Args:
        runs: `read_runs` 的结果。

    Returns:
        ({"labels": 标签名, "runs": 每次运行一项}, 数据块)；标签按物品数从多到少，各运行共用，颜色才一致。
    """
    blocks = Blocks()
    counts: Dict[str, int] = {}
    for run in runs:
        if run.items is not None:
            for pair in run.items.column("label").drop_null().value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    labels = sorted(counts, key=lambda name: (-counts[name], name))[:MAX_LABELS]
    numbers = {name: i for i, name in enumerate(labels)}
    return {"labels": list(map(printable, labels)), "runs": [_pack_run(run, numbers, blocks) for run in runs]}, blocks


def thin_items(items: pa.Table, num_levels: int, rows: int) -> pa.Table:
    """减到 `rows` 行，挑法与评估目录相同（`tables.choose_items`）；页面太大时用。

    Args:
        items: items.parquet。
        num_levels: 层数 L。
        rows: 留几行。

    Returns:
        原来的次序。
    """
    if items.num_rows <= rows:
        return items
    codes = np.stack([_ints(items, f"l{level + 1}") for level in range(num_levels)], axis=1)
    return items.take(pa.array(choose_items(codes, _floats(items, "error"), rows)[0]))


def _pack_run(run: Run, numbers: Dict[str, int], blocks: Blocks) -> Dict[str, Any]:
    """一次运行。"""
    out: Dict[str, Any] = {"name": run.name, "curves": _curves(run.curves), "items": None, "codewords": None}
    if run.evaluation is None or run.items is None or run.codewords is None:
        return out
    sizes = run.evaluation["codebook_sizes"]
    out["sizes"], out["num_items"] = sizes, run.evaluation["num_items"]
    out["sampled"] = run.items.num_rows < run.evaluation["num_items"]
    out["items"] = _pack_items(run.items, sizes, numbers, blocks)
    out["codewords"] = _pack_codewords(run.codewords, sizes, numbers, out["items"]["frame"], blocks)
    return out


def _pack_items(items: pa.Table, sizes: List[int], numbers: Dict[str, int], blocks: Blocks) -> Dict[str, Any]:
    """物品的各列，已按编号排好。"""
    columns = [_ints(items, f"l{level + 1}") for level in range(len(sizes))]
    suffix = _ints(items, "suffix") if "suffix" in items.column_names else None
    order = np.lexsort(([] if suffix is None else [suffix]) + columns[::-1])
    items = items.take(pa.array(order))
    error = _floats(items, "error")
    x, y, frame = _frame(_floats(items, "map_x"), _floats(items, "map_y"))
    titles = items.column("title").to_pylist()
    has_titles = any(title is not None for title in titles)
    short = [None if title is None else title[:MAX_TITLE] + ("…" if len(title) > MAX_TITLE else "") for title in titles]
    return {
        "rows": items.num_rows,
        "frame": frame,
        "ids": blocks.text(items.column("item_id").to_pylist()),
        "titles": blocks.text(short) if has_titles else None,
        "label": _pack_labels(items.column("label"), numbers, blocks),
        "levels": [blocks.array(_narrow(column[order])) for column in columns],
        "suffix": None if suffix is None else blocks.array(_narrow(suffix[order])),
        "error": None if np.isnan(error).all() else blocks.array(error),
        "x": blocks.array(x),
        "y": blocks.array(y),
    }


def _pack_codewords(
    codewords: pa.Table, sizes: List[int], numbers: Dict[str, int], frame: List[float], blocks: Blocks
) -> Dict[str, Any]:
    """每层的使用次数；第一层另有位置与最常见的标签。"""
    level = _ints(codewords, "level")
    count = codewords.column("count").to_numpy()
    first = codewords.filter(pa.array(level == 1))
    x, y = (_scaled(_floats(first, f"map_{axis}"), *frame[2 * i : 2 * i + 2]) for i, axis in enumerate("xy"))
    counts = [count[level == i + 1].clip(0, 2**32 - 1).astype(np.uint32) for i in range(len(sizes))]
    label = _pack_labels(first.column("label"), numbers, blocks)
    return {"counts": [blocks.array(c) for c in counts], "x": blocks.array(x), "y": blocks.array(y), "label": label}


def _pack_labels(column: pa.ChunkedArray, numbers: Dict[str, int], blocks: Blocks) -> Dict[str, Any] | None:
    """标签 → 全页共用的标签号加一，0 为没有标签（或太罕见）；整列都没有就是 None。"""
    if column.null_count == len(column):
        return None
    coded = column.combine_chunks().dictionary_encode()
    lookup = np.array([numbers.get(name, -1) + 1 for name in coded.dictionary.to_pylist()] + [0], dtype=np.uint32)
    indices = coded.indices.fill_null(len(lookup) - 1).to_numpy(zero_copy_only=False)
    return blocks.array(_narrow(lookup[indices]))


def _frame(x: np.ndarray, y: np.ndarray) -> Tuple[np.ndarray, np.ndarray, List[float]]:
    """坐标 → 16 位整数与外框 [x 小, x 大, y 小, y 大]：屏幕上看不出差别，体积减半。"""
    frame: List[float] = []
    for values in (x, y):
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        frame += [low, high if high > low else low + 1.0]
    return _scaled(x, *frame[:2]), _scaled(y, *frame[2:]), frame


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] → 0…65534；缺失的是 65535。"""
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low), 0.0, 1.0)
    return np.where(known, np.rint(share * (_MISSING - 1)), _MISSING).astype(np.uint16)


def _narrow(values: np.ndarray) -> np.ndarray:
    """非负整数用装得下的最窄类型。"""
    top = int(values.max()) if len(values) else 0
    return values.astype(np.uint8 if top < 2**8 else np.uint16 if top < 2**16 else np.uint32)


def _ints(table: pa.Table, name: str) -> np.ndarray:
    """整数列，空值当 0（评估目录里没有空值，别人写的可能有）。"""
    return table.column(name).fill_null(0).to_numpy()


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """float32 列，空值是 NaN。"""
    return table.column(name).to_numpy().astype(np.float32)


def _curves(records: List[Dict[str, Any]]) -> Dict[str, Any] | None:
    """metrics.jsonl 的各行 → 横轴与每条曲线；逐层的一条变几条，名字加 /L1、/L2……"""
    if not records:
        return None
    series: Dict[str, List[float | None]] = {}
    for row, record in enumerate(records):
        for key, value in record.items():
            parts = {f"{key}/L{i + 1}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
            for name, number in parts.items():
                if name != "epoch" and isinstance(number, (int, float)) and not isinstance(number, bool):
                    series.setdefault(name, [None] * len(records))[row] = number
    return {
        "epoch": [record["epoch"] for record in records],
        "phase": [str(record.get("phase", "")) for record in records],
        "series": series,
    }


def embedded_json(value: Any) -> str:
    """放进 `<script type="application/json">` 的 JSON：`<` 一律写成转义，`</script>` 与 `<!--` 都不会出现。"""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
