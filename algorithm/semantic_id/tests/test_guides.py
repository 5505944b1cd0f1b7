"""指南里的代码是真的：Spark 的几行用假的 spark 跑，产物与本机逐字节相同。"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from algorithm.semantic_id.catalog import encode_catalog
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog import digest
from algorithm.semantic_id.tests.fake_model import FakeModel

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "cluster.md"


class FakeFrame:
    """只会 repartition、mapInArrow、collect 的 DataFrame；每个分区一批。"""

    def __init__(self, rows):
        self.rows = rows

    def repartition(self, count):
        assert count >= 1
        return self

    def mapInArrow(self, function, schema):
        assert schema == "job int"
        batches = [pa.record_batch({"job": pa.array([job], pa.int32())}) for (job,) in self.rows]
        found = [value for batch in batches for out in function(iter([batch])) for value in out.column(0).to_pylist()]
        return FakeFrame([(value,) for value in found])

    def collect(self):
        return [SimpleNamespace(job=job) for (job,) in self.rows]


@pytest.mark.skipif(not GUIDE.is_file(), reason="the guides are not part of an installed wheel")
def test_the_spark_recipe_gives_the_same_bytes(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(blocks[0], str(GUIDE), "exec"), names)
    spark = SimpleNamespace(createDataFrame=lambda rows, schema: FakeFrame(rows))
    x = (np.random.default_rng(0).random((50, 3)) * [3, 4, 5]).astype(np.float32)
    source, shape = open_vectors(x), {"rows_per_part": 12, "unique": "nearest-free"}
    load = lambda: FakeModel((3, 4, 16))  # noqa: E731
    encode_catalog(load(), source, tmp_path / "local", **shape)
    encode_catalog(load(), source, tmp_path / "spark", engine=names["SparkEngine"](spark, load), **shape)
    assert digest(tmp_path / "spark") == digest(tmp_path / "local")
