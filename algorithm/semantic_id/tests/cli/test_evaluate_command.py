"""`semid evaluate`、`semid advise`：输入的门、从命令到目录、图例齐全、每条体检都能惹出来。"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, train_codebook
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.evaluation.folder import read_evaluation_folder
from algorithm.semantic_id.evaluation.given_codes import read_codes
from algorithm.semantic_id.evaluation.inputs import read_item_facts
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.metrics import records

N, D = 400, 8
RNG = np.random.default_rng(3)
TOPIC = RNG.integers(0, 6, N)
X = (RNG.normal(0, 3, (6, D))[TOPIC] + RNG.normal(0, 1, (N, D))).astype(np.float32)
IDS = [f"i{n}" for n in range(N)]


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    facts = {"item_id": IDS, "title": [f"<b>{n}" for n in range(N)], "topic": TOPIC, "embedding": embedding}
    pq.write_table(pa.table(facts), folder / "x.parquet")
    pq.write_table(pa.table({**facts, "embedding": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel() * 3), D)}),
                   folder / "far.parquet")  # fmt: skip
    order = RNG.permutation(N)
    shuffled = pa.table({"item_id": [IDS[i] for i in order], "name": order, "topic": TOPIC[order].astype(str)})
    pq.write_table(shuffled, folder / "facts.parquet")
    same = [[IDS[j] for j in np.flatnonzero(TOPIC == TOPIC[i])[:4]] for i in range(60)]
    users = {"train_items": [row[:2] for row in same], "valid_item": [row[2] for row in same]}
    users["test_item"] = [row[3] for row in same]
    pq.write_table(pa.table(users), folder / "users.parquet")
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=D, codebook_sizes=(6, 8)))
    train_codebook(encoder, X, 2, output_dir=folder / "model", progress=False)
    np.save(folder / "codes.npy", encoder.encode_codes(torch.from_numpy(X)).numpy())
    assert cli.main(["encode", f"{folder}/model", f"{folder}/x.parquet", "--output", f"{folder}/catalog",
                     "--unique", "-q"]) == 0  # fmt: skip
    return folder


def test_everything_at_once(room, capsys, tmp_path):
    got = run_json(
        capsys, "evaluate", room / "model", room / "x.parquet", "--labels", "topic", "--interactions",
        room / "users.parquet", "--catalog", room / "catalog", "--unseen", room / "far.parquet", "--output",
        tmp_path / "e",
    )  # fmt: skip
    assert got["num_items"] == got["num_in_catalog"] == N
    assert got["collision_rate"] > 0.5
    assert got["assigned_collision_rate"] == got["assigned_changed_rate"] == got["num_not_in_catalog"] == 0
    assert got["level_relative_mse"] == sorted(got["level_relative_mse"], reverse=True)
    # 隐空间为恒等时，逐层误差的最后一个就是相对误差
    assert got["level_relative_mse"][-1] == pytest.approx(got["relative_mse"], rel=1e-4)
    assert got["prefix_mean_relative_mse"][-1] <= got["relative_mse"]
    assert got["neighbour_share"][0] > 3 * got["prefix_chance"][0]
    assert got["label_purity"][0] > got["label_purity_chance"][0] + 0.2
    assert got["co_consumption_lift"][0] > 2
    assert got["generalisation_ratio"] > 1
    assert got["sampled"] == {"neighbour_share": None, "embedding_hit_rate": None, "prefix_mean_relative_mse": None}
    # 图例不多不少
    evaluation, items, codewords = read_evaluation_folder(tmp_path / "e")
    known = records.by_key()
    measured = {key for key in got if key in known and got[key] is not None}
    assert {"co_consumption_lift", "label_purity", "generalisation_ratio", "assigned_collision_rate"} <= measured
    assert {entry["key"] for entry in evaluation["legend"]} == measured
    assert evaluation["name"] == "e"
    assert set(got) - set(known) - set(evaluation["metrics"]) <= {
        "num_items", "codebook_sizes", "verdicts", "sampled", "fingerprint", "features", "output"
    }  # fmt: skip
    assert items.column("title").to_pylist()[3] == "<b>3"
    assert items.column("label").to_pylist() == [str(t) for t in TOPIC]
    assert "suffix" in items.column_names
    assert np.mean(items.column("error").to_numpy()) == pytest.approx(got["relative_mse"], rel=1e-5)
    assert sum(codewords.column("count").to_pylist()) == 2 * N
    # 第二次写要 --overwrite
    code, _, err = run(capsys, "evaluate", room / "model", room / "x.parquet", "--output", tmp_path / "e", "-q")
    assert code == 2
    assert "--overwrite" in err
    again = run_json(capsys, "evaluate", room / "model", room / "x.parquet", "--output", tmp_path / "e", "--overwrite")
    assert again["relative_mse"] == got["relative_mse"]
    assert read_evaluation_folder(tmp_path / "e")[0]["metrics"].get("label_purity") is None


def test_codes_without_a_model(room, capsys, tmp_path):
    ours = run_json(capsys, "evaluate", room / "model", room / "x.parquet")
    got = run_json(capsys, "evaluate", "--codes", room / "codes.npy", room / "x.parquet", "--output", tmp_path / "e")
    assert (got["reconstruction"], got["fingerprint"], got["codebook_sizes"]) == ("additive_means", None, [6, 8])
    assert got["relative_mse"] == pytest.approx(ours["relative_mse"], rel=0.15)
    for key in (
        "utilization",
        "perplexity",
        "neighbour_share",
        "collision_rate",
        "id_gini",
        "prefix_mean_relative_mse",
    ):
        assert got[key] == pytest.approx(ours[key])
    assert read_evaluation_folder(tmp_path / "e")[1].column("error").null_count == 0
    wide = run_json(capsys, "evaluate", "--codes", room / "codes.npy", room / "x.parquet", "--codebook-sizes", "60,8")
    assert wide["dead_codes"] == [54, 0]
    code, out, _ = run(capsys, "evaluate", "--codes", room / "codes.npy", room / "x.parquet", "--lang", "en")
    assert code == 0
    assert "no decoder" in out


def test_command_doors(room, capsys, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.int64))
    np.save(tmp_path / "huge.npy", np.full((N, 2), 2**30))
    np.save(tmp_path / "float.npy", np.zeros((N, 2)))
    model, x, codes = room / "model", room / "x.parquet", room / "codes.npy"
    for arguments, text in (
        ((model,), "needs MODEL and FEATURES"),
        (("--codes", codes, model, x), "leave MODEL out"),
        (("--codes", tmp_path / "short.npy", x), "short.npy has 3 rows, but x.parquet (400 x 8"),
        (("--codes", tmp_path / "huge.npy", x), "renumber the codes of each level from 0"),
        (("--codes", tmp_path / "float.npy", x), "must have an integer dtype"),
        (("--codes", tmp_path / "none.npy", x), "does not exist"),
        (("--codes", codes, x, "--codebook-sizes", "5,8"), "need at least 6,8"),
        (("--codes", codes, x, "--unseen", x), "--unseen needs a MODEL"),
        ((model, x, "--codebook-sizes", "6,8"), "only for --codes"),
        ((model, x, "--labels", "brand"), "no column 'brand'; columns present: item_id, title, topic, embedding"),
        ((model, x, "--labels", "embedding"), "labels must be strings or integers"),
        ((model, x, "--interactions", x), "has no valid pairs: give train_items and valid_item"),
        ((model, x, "--interactions", room / "users.parquet", "--pairs-of", "train"), "use valid or test"),
        ((model, x, "--items", tmp_path / "none.parquet"), "does not exist"),
        ((model, x, "--catalog", tmp_path / "none"), "does not exist"),
        ((model, x, "--unseen", room / "codes.npy"), "dtype"),
    ):
        code, out, err = run(capsys, "evaluate", *arguments, "--output", tmp_path / "out")
        assert (code, out) == (2, ""), arguments
        assert text in err, (arguments, err)
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_advise_command(room, capsys):
    got = run_json(capsys, "advise", room / "x.parquet", "--levels", "2")
    assert len(got["codebook_sizes"]) == 2
    code, out, _ = run(capsys, "advise", room / "x.parquet", "--levels", "2", "--lang", "en")
    assert code == 0
    assert "--codebook-sizes " + ",".join(map(str, got["codebook_sizes"])) in out
    assert "use 1..8" in run(capsys, "advise", room / "x.parquet", "--levels", "9")[2]


def test_facts_are_joined_by_id_whatever_the_order(room, tmp_path):
    source = open_vectors(room / "x.parquet")
    facts = read_item_facts(
        room / "facts.parquet", source, label_column="topic", id_column="item_id", title_column="name"
    )
    assert facts.labels.to_pylist() == [str(t) for t in TOPIC]
    assert facts.titles.to_pylist() == [str(n) for n in range(N)]
    part = pq.read_table(room / "facts.parquet").slice(0, 100)
    pq.write_table(part, tmp_path / "part.parquet")
    facts = read_item_facts(tmp_path / "part.parquet", source, label_column="topic", id_column="item_id")
    assert facts.num_missing == 300
    assert facts.labels.null_count == 300
    pq.write_table(part.rename_columns(["asin", "name", "topic"]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"bare.parquet has no column 'item_id', but the features have item ids.*asin"):
        read_item_facts(tmp_path / "bare.parquet", source, label_column="topic", id_column="item_id")
    by_row = read_item_facts(
        tmp_path / "bare.parquet", open_vectors(X[:100]), label_column="topic", id_column="item_id"
    )
    assert by_row.matched_by == "row"
    assert by_row.labels.to_pylist() == part.column("topic").to_pylist()
    with pytest.raises(ValueError, match=r"bare.parquet has 100 rows, but .* has 400"):
        read_item_facts(tmp_path / "bare.parquet", open_vectors(X), label_column="topic", id_column="item_id")
    strange = part.set_column(0, "item_id", pa.array([f"z{n}" for n in range(100)]))
    pq.write_table(strange, tmp_path / "strange.parquet")
    with pytest.raises(ValueError, match="no item_id of strange.parquet is an item"):
        read_item_facts(tmp_path / "strange.parquet", source, label_column="topic", id_column="item_id")


def test_parquet_codes_follow_the_ids(room, tmp_path):
    source = open_vectors(room / "x.parquet")
    codes = np.load(room / "codes.npy")
    order = RNG.permutation(N)
    table = pa.table({"item_id": [IDS[i] for i in order], "l1": codes[order, 0], "l2": codes[order, 1]})
    pq.write_table(table, tmp_path / "c.parquet")
    got = read_codes(tmp_path / "c.parquet", source, "item_id")
    assert got.matched_by == "id"
    assert (got.codes == codes).all()
    pq.write_table(table.set_column(0, "item_id", pa.array(["i0"] * N)), tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="do not hold the same items: 399 items have no codes"):
        read_codes(tmp_path / "twice.parquet", source, "item_id")
    with pytest.raises(ValueError, match="no column 'l1'"):
        read_codes(room / "facts.parquet", source, "item_id")
    np.save(tmp_path / "minus.npy", codes - 1)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 2\*\*31\)"):
        read_codes(tmp_path / "minus.npy", source, "item_id")


def test_pairs_of_says_which_held_out_step_is_judged(room, capsys):
    command = ("evaluate", "--codes", room / "codes.npy", room / "x.parquet", "--interactions", room / "users.parquet")
    chosen, final = (run_json(capsys, *command, *more) for more in ((), ("--pairs-of", "test")))
    assert chosen["interactions"] == "pairs (last of train_items, valid_item)"
    assert final["interactions"] == "pairs (valid_item, test_item)"
    assert (chosen["num_users"], chosen["num_unknown_interactions"]) == (60, 0)
    assert 0 < chosen["num_pairs"] <= 60
