"""别人的编码：层与行要么对得上，要么报错；按行序对齐的，结果里说明。"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.evaluation.given_codes import read_codes
from algorithm.semantic_id.files.vectors import open_vectors

N = 60
X = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
CODES = np.random.default_rng(2).integers(0, 5, (N, 3))
IDS = [f"i{n}" for n in range(N)]
ORDER = np.random.default_rng(3).permutation(N)


@pytest.fixture
def named(tmp_path):
    """有编号的特征。"""
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    pq.write_table(pa.table({"item_id": IDS, "embedding": vectors}), tmp_path / "x.parquet")
    return open_vectors(tmp_path / "x.parquet")


def written(path, columns, order=None):
    """一份编码文件；`columns` 是列名，l 开头的依次取 CODES 的列，其余是编号。"""
    order = np.arange(N) if order is None else order
    levels = iter(range(3))
    data = [CODES[order, next(levels)] if name[0] in "lL" else [IDS[i] for i in order] for name in columns]
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in data], names=columns), path)
    return path


def test_rows_follow_the_ids(named, tmp_path):
    got = read_codes(written(tmp_path / "c.parquet", ["l1", "item_id", "l2", "l3"], ORDER), named, "item_id")
    assert got.matched_by == "id"
    assert (got.codes == CODES).all()


def test_rows_in_order_only_when_there_is_nothing_to_match_by(named, tmp_path):
    got = read_codes(written(tmp_path / "c.parquet", ["l1", "l2", "l3"]), named, "item_id")
    assert (got.matched_by, got.codes.tolist()) == ("row", CODES.tolist())
    np.save(tmp_path / "c.npy", CODES)
    assert read_codes(tmp_path / "c.npy", named, "item_id").matched_by == "row"


def test_row_numbers_are_ids_of_features_without_ids(tmp_path):
    table = pa.table({"item_id": ORDER, "l1": CODES[ORDER, 0], "l2": CODES[ORDER, 1]})
    pq.write_table(table, tmp_path / "c.parquet")
    got = read_codes(tmp_path / "c.parquet", open_vectors(X), "item_id")
    assert (got.matched_by, got.codes.tolist()) == ("id", CODES[:, :2].tolist())
    with pytest.raises(ValueError, match="the features have no item ids, so theirs are row numbers"):
        read_codes(written(tmp_path / "named.parquet", ["item_id", "l1"]), open_vectors(X), "item_id")


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (["item_id", "l0", "l1", "l2"], "counted from 1 without a gap: rename l0, l1, l2 to l1, l2, l3"),
        (["item_id", "l1", "l3"], "level columns l1, l3; .* give l1, l2"),
        (["item_id", "l2", "l3"], "level columns l2, l3"),
        (["item_id", "L1", "L2"], "level columns L1, L2; .* give l1, l2"),
        (["item_id", "l1", "l_2"], "level columns l1, l_2"),
        (["item_id", "l1", "l1"], "has column 'l1' more than once"),
        (["item_id"], "has no column 'l1'; columns present: item_id"),
        (["asin", "l1", "l2"], "no column 'item_id' to match its rows by, but has asin; rename the id column"),
    ],
)
def test_levels_and_rows_are_matched_or_refused(named, tmp_path, columns, text):
    with pytest.raises(ValueError, match=text):
        read_codes(written(tmp_path / "c.parquet", columns, ORDER), named, "item_id")


def test_the_result_says_how_rows_were_matched(named, tmp_path, capsys):
    bare = written(tmp_path / "c.parquet", ["l1", "l2", "l3"])
    arguments = ["evaluate", "--codes", str(bare), str(tmp_path / "x.parquet"), "--codebook-sizes", "5,5,5"]
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["codes_matched_by"] == "row"
    assert cli.main([*arguments, "--lang", "en"]) == 0
    assert "codes were matched to the features by row" in capsys.readouterr().out


def test_inferred_sizes_are_never_ok(named, tmp_path, capsys):
    # 1024 个码字的码本只用 2 个：由编码推出的大小是 2，利用率看起来是一
    np.save(tmp_path / "two.npy", CODES[:, :2] % 2)
    arguments = ["evaluate", "--codes", str(tmp_path / "two.npy"), str(tmp_path / "x.parquet"), "--json"]
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    usage = [v for v in result["verdicts"] if v["metric"] in ("utilization", "perplexity")]
    assert [v["severity"] for v in usage] == ["unknown"]
    assert cli.main([*arguments, "--codebook-sizes", "1024,1024"]) == 0
    result = json.loads(capsys.readouterr().out)
    usage = [v for v in result["verdicts"] if v["metric"] in ("utilization", "perplexity")]
    assert [v["severity"] for v in usage] == ["bad", "bad"]
