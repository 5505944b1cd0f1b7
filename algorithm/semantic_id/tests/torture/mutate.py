"""有结构的胡闹：改 JSON 的一处、改 safetensors 与 .npy 的头、拼一个列类型离奇的 Parquet。"""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algorithm.semantic_id.files import sealed

__all__ = ["mutate_json", "mutate_npy", "mutate_safetensors", "odd_column", "reseal", "write_odd_parquet"]

_ODD: List[Any] = [
    None, True, False, -1, 0, 1, 2, 5, 255, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 2**70, 4_000_000, 0.5, -0.0, 1e308,
    3e38, math.nan, math.inf, "", "x", "0", "\x1b[31mred", "a" * 5000, "../../etc/passwd", "/dev/zero", "\ud800",
    "part-00000.parquet", [], {}, [[]], [None], [0, 0, 0], ["a"], [2**40] * 3, [4_000_000] * 3, {"a": 1}, {"": {}},
    [1] * 3000,
]  # fmt: skip


def mutate_json(record: Any, rng: random.Random) -> bytes:
    """改一到三处；偶尔从文本上改。"""
    record = json.loads(json.dumps(record))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        record = _mutated(record, rng)
    text = json.dumps(record, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.06:
        deep = rng.choice([50, 900, 3000, 100_000])
        place = rng.choice([": ", ", ", "["])
        text = text.replace(place, place + "[" * deep + "]" * deep + ",", 1)
    elif rng.random() < 0.06:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(["NaN", "}", "\x00", '"', "1e999", ",", "-"]) + text[place:]
    return text.encode("utf-8", errors="surrogatepass")


def _mutated(value: Any, rng: random.Random) -> Any:
    """走到随机的一处，换掉、删掉、重复或改名。"""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.12:
            del value[key]
        elif kind < 0.17:
            value[rng.choice(["", "x", key + "_", "bytes"])] = value.pop(key)
        elif kind < 0.22:
            value[key] = value[rng.choice(list(value))]
        else:
            value[key] = _mutated(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.75:
        place, kind = rng.randrange(len(value)), rng.random()
        if kind < 0.15:
            del value[place]
        elif kind < 0.3:
            value.insert(place, value[rng.randrange(len(value))])
        else:
            value[place] = _mutated(value[place], rng)
        return value
    if isinstance(value, int) and rng.random() < 0.4:
        return value + rng.choice([-1, 1, 7, -value - 1, 1000])
    if isinstance(value, str) and value and rng.random() < 0.3:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(["", "0", "/", "é", " "]) + value[place + 1 :]
    return json.loads(json.dumps(rng.choice(_ODD)))


def reseal(data: bytes, original: Dict[str, Any]) -> bytes:
    """重算文件自己的校验和，好像是伪造者写的；算不出来就原样。"""
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            return data
        for key in (sealed.SEAL, "config_sha256"):
            if key in original:
                record.pop(key, None)
                text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
                record[key] = hashlib.sha256(text).hexdigest()
        return json.dumps(record, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return data


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """改文件头的 JSON、长度、载荷里的数，或截断。"""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], bytearray(data[8 + size :])
    kind = rng.random()
    if kind < 0.6:
        header = mutate_json(json.loads(header), rng)
    elif kind < 0.85 and len(body) >= 4:
        place = rng.randrange(len(body) // 4) * 4
        body[place : place + 4] = struct.pack("<f", rng.choice([math.nan, math.inf, -math.inf, 3e38, 1e-42, -1.0]))
    elif kind < 0.95:
        del body[rng.randrange(len(body) + 1) :]
    else:
        size = rng.choice([0, 2**63, 2**31, size + 1, 10**9])
        return struct.pack("<Q", size) + header + bytes(body)
    return struct.pack("<Q", len(header)) + header + bytes(body)


def mutate_npy(array: np.ndarray, rng: random.Random) -> bytes:
    """头里写别的形状、类型、次序、版本或长度；或换一个离奇的数组。"""
    shape, descr, order = array.shape, array.dtype.str, "False"
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.randrange(4)
        if kind == 0:
            shape = rng.choice([(), (0,), (-1, 6), (2**40, 2**40), (2**62,), (2, 3, 4), (1, 0), (10**9, 6), (3, True)])
        elif kind == 1:
            descr = rng.choice(
                [
                    "|O",
                    "<f2",
                    ">f8",
                    "<c8",
                    "<U5",
                    "|S3",
                    "|b1",
                    "<i8",
                    "<u8",
                    ">i4",
                    "<m8[s]",
                    "<M8[ns]",
                    "|V7",
                    "",
                    "x",
                    "<f16",
                ]
            )
        elif kind == 2:
            order = rng.choice(["True", "None", "0", "'x'", "__import__('os')"])
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.15:
        text = rng.choice(
            [
                "{}",
                "[]",
                "(",
                "(" * 3000,
                "9" * 5000,
                "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}",
                "\xff",
            ]
        )
    version = rng.choice([(1, 0)] * 6 + [(2, 0), (3, 0), (9, 9), (0, 0)])
    header = text.encode("latin1")
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 65535, 2**31])
    packed = struct.pack("<H", length & 0xFFFF) if version[0] == 1 else struct.pack("<I", length)
    data = b"\x93NUMPY" + bytes(version) + packed + header + array.tobytes()
    return data[: rng.randrange(len(data))] if rng.random() < 0.15 else data


def odd_column(rng: random.Random, rows: int, like: str) -> pa.Array:
    """一列；大半是像样的，其余的类型或值离奇。

    Args:
        rng: 随机数。
        rows: 行数。
        like: ids、vectors 或 codes：像样的时候是什么。
    """
    if rng.random() < 0.55:
        return _decent(rng, rows, like)
    numbers = [rng.choice([0, 1, -1, 7, 2**31, 2**53 + 1]) for _ in range(rows)]
    texts = [rng.choice(["a", "", "\x1b]0;x\x07", "é" * 50, str(i)]) for i in range(rows)]
    makers = [
        lambda: pa.array(numbers, pa.int64()),
        lambda: pa.array([n % 200 for n in numbers], pa.uint8()),
        lambda: pa.array([abs(n) for n in numbers], pa.uint64()),
        lambda: pa.array([rng.choice([math.nan, math.inf, 0.5, 1.0]) for _ in range(rows)], pa.float64()),
        lambda: pa.array([1.0] * rows, pa.float32()).cast(pa.float16()) if rows else pa.array([], pa.float16()),
        lambda: pa.array(texts),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts, pa.string_view()),
        lambda: pa.array([t.encode() for t in texts], pa.binary()),
        lambda: pa.array([b"abc"] * rows, pa.binary(3)),
        lambda: pa.array([True] * rows),
        lambda: pa.nulls(rows),
        lambda: pa.nulls(rows, pa.string()),
        lambda: pa.nulls(rows, pa.list_(pa.float32())),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array([Decimal(1)] * rows, pa.decimal128(9, 2)),
        lambda: pa.array(range(rows), pa.int32()).cast(pa.date32()),
        lambda: pa.array(range(rows), pa.timestamp("us", tz="UTC")),
        lambda: pa.array(range(rows), pa.time64("us")),
        lambda: pa.array(range(rows), pa.duration("s")),
        lambda: pa.array([{"a": 1}] * rows),
        lambda: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int32())),
        lambda: pa.array([[1.0] * rng.randrange(8) for _ in range(rows)]),
        lambda: pa.array([[1.0, None, 2.0, 3.0, 4.0, 5.0]] * rows),
        lambda: pa.array([None if i % 2 else [1.0] * 6 for i in range(rows)], pa.list_(pa.float32(), 6)),
        lambda: pa.array([[1] * 6] * rows, pa.list_(pa.int8(), 6)),
        lambda: pa.array([["a"] * 6] * rows),
        lambda: pa.array([[[1.0]] * 6] * rows),
        lambda: pa.array([[1.0] * 6] * rows, pa.large_list(pa.float64())),
        lambda: pa.array([[1e308, math.nan, 0, 0, 0, 0]] * rows, pa.list_(pa.float64(), 6)),
        lambda: pa.array([[]] * rows, pa.list_(pa.float32(), 0)),
    ]
    return rng.choice(makers)()


def _decent(rng: random.Random, rows: int, like: str) -> pa.Array:
    if like == "ids":
        return pa.array([f"sku-{i}" for i in range(rows)]) if rng.random() < 0.6 else pa.array(range(rows), pa.int64())
    if like == "codes":
        top = rng.choice([3, 3, 3, 300])
        return pa.array(
            [rng.randrange(top + 1) for _ in range(rows)],
            rng.choice([pa.int32(), pa.int64(), pa.uint8(), pa.int16()]) if top < 100 else pa.int64(),
        )
    x = np.random.default_rng(rng.randrange(1 << 30)).standard_normal((rows, 6)).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 6)


def write_odd_parquet(path: Path, rng: random.Random, columns: Dict[str, str]) -> Tuple[str, ...]:
    """写一个 Parquet；列名偶尔也离奇。返回各列的类型，用来说明。"""
    rows = rng.choice([0, 1, 3, 20, 240, 240])
    arrays = [odd_column(rng, rows, like) for like in columns.values()]
    names = [rng.choice([name] * 12 + ["", "item_id", name.upper()]) for name in columns]
    table = pa.table(arrays, names=names)
    pq.write_table(
        table, path, row_group_size=rng.choice([1, 7, 1000]), compression=rng.choice(["none", "zstd", "snappy"])
    )
    data = path.read_bytes()
    if rng.random() < 0.12:
        path.write_bytes(data[: rng.randrange(len(data))])
    elif rng.random() < 0.12:
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :])
    return (f"{rows} rows", *(f"{name}: {array.type}" for name, array in zip(names, arrays, strict=True)))
