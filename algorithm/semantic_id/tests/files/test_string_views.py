"""Parquet 里的 string_view：没有 filter 等算子的新类型，读进来就换成普通的字符串。"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from algorithm.semantic_id.files.parquet_bytes import read_table


def test_string_views_become_plain_strings(tmp_path):
    ids = pa.array(["a", None, "很长的一个编号，放不进视图里"], pa.string_view())
    pq.write_table(pa.table({"user_id": ids, "n": [1, 2, 3]}), tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet")
    assert table.column("user_id").filter(pa.array([True, True, False])).to_pylist() == ["a", None]
    assert table.column("user_id").to_pylist() == ids.to_pylist()
    assert table.column("n").to_pylist() == [1, 2, 3]
