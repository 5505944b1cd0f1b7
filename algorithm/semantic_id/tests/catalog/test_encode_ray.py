"""Ray 引擎：真起一个本机 Ray，杀掉一个 actor，文件与本机逐字节相同；救不活的分片不留清单。"""

from __future__ import annotations

import functools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.catalog import CatalogError, encode_catalog
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.tests.catalog.test_catalog import digest
from algorithm.semantic_id.tests.fake_model import DeadlyModel, FakeModel

pytest.importorskip("ray", reason="install semid[ray] to test the Ray engine")

N, SHAPE = 64, ((3, 4, 16), 4)


@pytest.fixture(scope="module")
def ray():
    import ray

    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    ray.init(
        address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    yield ray
    ray.shutdown()


def features(folder, broken=False):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((N, 3)) * [3, 4, 5], np.arange(N)[:, None]], axis=1).astype(np.float32)
    if broken:
        x[50, 0] = np.nan
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(N)], "embedding": rows}), folder / "x.parquet")
    return open_vectors(folder / "x.parquet")


def engine(load, num_actors=2, **kwargs):
    from algorithm.semantic_id.catalog.encoding.encode_ray import RayEngine

    return RayEngine(load, num_actors=num_actors, **kwargs)


def test_a_killed_actor_changes_no_byte(ray, tmp_path):
    source, shape = features(tmp_path), {"rows_per_part": 16, "unique": "nearest-free"}
    encode_catalog(FakeModel(*SHAPE), source, tmp_path / "local", **shape)
    seen = []
    encode_catalog(
        FakeModel(*SHAPE),
        source,
        tmp_path / "ray",
        engine=engine(functools.partial(DeadlyModel, *SHAPE, str(tmp_path / "killed"))),
        progress=lambda *pair: seen.append(pair),
        **shape,
    )
    assert (tmp_path / "killed").exists(), "no actor was killed"
    assert digest(tmp_path / "ray") == digest(tmp_path / "local")
    assert seen == [(16, N), (32, N), (48, N), (64, N)]
    assert ray.is_initialized()  # 不是我们起的 Ray 不停


def test_the_command_line_encodes_on_ray(ray, tmp_path, capsys):
    torch.manual_seed(0)
    model = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 8, 64)))
    model.save_pretrained(tmp_path / "model")
    features(tmp_path)
    encode = ["encode", str(tmp_path / "model"), str(tmp_path / "x.parquet"), "--unique", "-q"]
    assert cli.main([*encode, "--output", str(tmp_path / "local")]) == 0
    assert cli.main([*encode, "--output", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    assert capsys.readouterr().err == ""
    assert digest(tmp_path / "ray") == digest(tmp_path / "local")


def test_a_poisoned_shard_ends_the_run_without_a_manifest(ray, tmp_path):
    source = features(tmp_path)
    deadly = engine(functools.partial(DeadlyModel, *SHAPE, ""), num_actors=1, max_tries=1)
    with pytest.raises(CatalogError, match=r"failed 1 times on Ray; nothing was sealed"):
        encode_catalog(FakeModel(*SHAPE), source, tmp_path / "cat", engine=deadly, rows_per_part=32)
    # 坏数据重试也没用：原样抛出，指出行号
    plain = engine(functools.partial(FakeModel, *SHAPE), num_actors=1)
    with pytest.raises(ValueError, match="row 50 .*has nan"):
        encode_catalog(FakeModel(*SHAPE), features(tmp_path, broken=True), tmp_path / "cat", engine=plain)
    assert sorted(os.listdir(tmp_path)) == ["x.parquet"]
