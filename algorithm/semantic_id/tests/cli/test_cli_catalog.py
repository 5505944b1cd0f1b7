"""物品表的命令：查找、更新、迁移、漂移、导入导出，全程走通，错误一行。"""

from __future__ import annotations

import hashlib
import itertools
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.catalog import Catalog
from algorithm.semantic_id.catalog.changes.drift import population_stability_index
from algorithm.semantic_id.catalog.changes.migrate import align_codes, align_level
from algorithm.semantic_id.cli import app as cli

N, D = 400, 6
RNG = np.random.default_rng(3)
CENTERS = RNG.standard_normal((8, D)) * 4
X = (CENTERS[RNG.integers(0, 8, N)] + RNG.standard_normal((N, D))).astype(np.float32)
SMALL = ["--codebook-sizes", "8,8,16", "--epochs", "2", "--batch-size", "64"]


def write_items(path, x, ids):
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x, np.float32).ravel()), D)
    pq.write_table(pa.table({"item_id": ids, "embedding": rows}), path)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """一个训练好的小模型、它的数据与一张物品表，全文件共用，只读。"""
    folder = tmp_path_factory.mktemp("room")
    write_items(folder / "x.parquet", X, [f"sku-{i}" for i in range(N)])
    items, model = str(folder / "x.parquet"), str(folder / "model")
    assert cli.main(["train", items, "--output", model, "--quiet", *SMALL]) == 0
    assert cli.main(["encode", model, items, "--output", str(folder / "cat"), "--unique", "--quiet"]) == 0
    return folder


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, *arguments, code=0):
    got, out, err = run(capsys, *arguments, "--json")
    assert (got, err) == (code, ""), err
    return json.loads(out)


def fails(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_lookup(room, capsys):
    table = Catalog.open(room / "cat").read()
    first = [table.column(name)[0].as_py() for name in ("l1", "l2", "l3", "suffix")]
    found = run_json(capsys, "lookup", room / "cat", "--item", "sku-0", "--item", "nope")
    assert found["rows"] == [{"item_id": "sku-0", "id": first}, {"item_id": "nope", "id": None}]
    back = run_json(capsys, "lookup", room / "cat", "--sid", ",".join(map(str, first)))
    assert back["rows"] == [{"item_id": "sku-0", "id": first}]
    under = run_json(capsys, "lookup", room / "cat", "--prefix", f"{first[0]},{first[1]}", "--limit", 3)
    same = [(a, b) == tuple(first[:2]) for a, b in zip(table["l1"].to_pylist(), table["l2"].to_pylist(), strict=True)]
    assert (under["num_items"], len(under["rows"])) == (sum(same), min(3, sum(same)))
    code, out, _ = run(capsys, "lookup", room / "cat", "--prefix", first[0], "--limit", 1)
    assert code == 0
    assert "只列出 1 个" in out
    assert "exactly one of --item, --prefix and --sid" in fails(capsys, "lookup", room / "cat")
    assert "--prefix '1;2' must be ints" in fails(capsys, "lookup", room / "cat", "--prefix", "1;2")
    assert "has l1=8; codes must be in [0, 8)" in fails(capsys, "lookup", room / "cat", "--prefix", "8")
    assert "has 2 codes; an ID here is l1,l2,l3,suffix" in fails(capsys, "lookup", room / "cat", "--sid", "1,2")
    assert "does not exist" in fails(capsys, "lookup", room / "none", "--item", "a")


def test_lookup_of_nothing_and_of_numbers_too_big(room, tmp_path, capsys):
    model = SemanticIDEncoder.from_pretrained(room / "model")
    model.save_pretrained(tmp_path / "model")
    write_items(tmp_path / "x.parquet", X, pa.array(range(N), pa.int32()))
    run_json(capsys, "encode", tmp_path / "model", tmp_path / "x.parquet", "--output", tmp_path / "cat", "--unique")
    assert run_json(capsys, "lookup", tmp_path / "cat", "--item", "5")["rows"][0]["id"] is not None
    for item in ("99999999999999999999", "5000000000"):
        assert "item ids must be of type int32" in fails(capsys, "lookup", tmp_path / "cat", "--item", item)
    write_items(tmp_path / "y.parquet", X[:3], pa.array([1, 2**63, 2**64 - 1], pa.uint64()))
    run_json(capsys, "encode", tmp_path / "model", tmp_path / "y.parquet", "--output", tmp_path / "big")
    found = run_json(capsys, "lookup", tmp_path / "big", "--item", 2**63, "--item", 2**64 - 1, "--item", 7)["rows"]
    assert [row["id"] is not None for row in found] == [True, True, False]
    assert "must be of type uint64" in fails(capsys, "lookup", tmp_path / "big", "--item", 2**64)
    assert "--item 'five' is no integer" in fails(capsys, "lookup", tmp_path / "cat", "--item", "five")
    every = {tuple(row[:3]) for row in Catalog.open(tmp_path / "cat").find(range(N)).tolist()}
    empty = next(path for path in itertools.product(range(8), range(8), range(16)) if path not in every)
    assert run(capsys, "lookup", tmp_path / "cat", "--prefix", ",".join(map(str, empty)))[1] == "没有这样的物品\n"


def test_update_from_the_command_line(room, tmp_path, capsys):
    encode = ("encode", room / "model", room / "x.parquet", "--output", tmp_path / "cat", "--unique", "nearest-free")
    run_json(capsys, *encode)
    before = Catalog.open(tmp_path / "cat").read()
    write_items(tmp_path / "delta.parquet", X[:3] + 0.01, ["new-0", "new-1", "sku-2"])
    pq.write_table(pa.table({"item_id": ["sku-0", "sku-9"]}), tmp_path / "gone.parquet")
    update = ("update", tmp_path / "cat", "--model", room / "model")
    done = run_json(capsys, *update, tmp_path / "delta.parquet", "--retire", tmp_path / "gone.parquet")
    assert (done["generation"], done["num_items"], done["num_added"], done["num_retired"]) == (1, N, 2, 2)
    after = Catalog.open(tmp_path / "cat")
    assert (after.find(["sku-0"]) == -1).all()
    stays = [item for item in before.column("item_id").to_pylist() if item not in ("sku-0", "sku-9")]
    where = {item: i for i, item in enumerate(before.column("item_id").to_pylist())}
    old = np.stack([before.column(name).to_numpy() for name in ("l1", "l2", "l3")], axis=1)
    np.testing.assert_array_equal(after.find(stays), old[[where[item] for item in stays]])
    code, out, _ = run(capsys, *update, "--retire", tmp_path / "gone.parquet")
    assert code == 2
    assert "拿回原来的 ID" in run(capsys, *update, room / "x.parquet")[1]
    assert "no readable column 'item_id'" in fails(capsys, *update, "--retire", room / "model" / "README.md")
    other = SemanticIDEncoder(SemanticIDConfig(embedding_dim=D, codebook_sizes=(8, 8, 16)))
    other.save_pretrained(tmp_path / "other")
    text = fails(capsys, "update", tmp_path / "cat", room / "x.parquet", "--model", tmp_path / "other")
    assert "written by another model" in text


def test_drift_verdicts_and_exit_codes(room, tmp_path, capsys):
    drift = ("drift", room / "cat", "--model", room / "model")
    same = run_json(capsys, *drift, room / "x.parquet")
    assert (same["verdict"], same["reasons"]) == ("ok", [])
    assert same["error_ratio"] == pytest.approx([1, 1, 1], rel=1e-9)
    assert same["psi"] == [0, 0, 0]
    assert "ok: " in run(capsys, *drift, room / "x.parquet")[1]
    write_items(tmp_path / "far.parquet", X * 1.6 + 1, [f"f{i}" for i in range(N)])
    moved = run_json(capsys, *drift, tmp_path / "far.parquet", code=3)
    assert moved["verdict"] == "drifted"
    assert moved["error_ratio"][2] > 1.25
    assert any(reason.startswith("error after L3 is ") for reason in moved["reasons"])
    # 误差大了一成多：值得留意，但定时任务不必报警，退出码是 0
    write_items(tmp_path / "near.parquet", X * 1.05, [f"n{i}" for i in range(N)])
    near = run_json(capsys, *drift, tmp_path / "near.parquet")
    assert near["verdict"] == "watch", near
    # 只剩一类物品：误差没变大，用量变了
    first = Catalog.open(room / "cat").read().column("l1").to_numpy()
    one = X[first == np.bincount(first).argmax()]
    write_items(tmp_path / "one.parquet", np.tile(one, (4, 1)), list(map(str, range(4 * len(one)))))
    tilted = run_json(capsys, *drift, tmp_path / "one.parquet", code=3)
    assert any("usage of L1 moved" in reason for reason in tilted["reasons"])


def test_psi_by_hand():
    psi, noise = population_stability_index(np.array([30, 10]), np.array([10, 30]))
    p = np.array([30.5, 10.5]) / 41
    assert psi == pytest.approx(2 * (p[0] - p[1]) * np.log(p[0] / p[1]))
    assert noise == pytest.approx(2 / 40)


# ---- 迁移 ----


def test_alignment_is_optimal_against_brute_force():
    rng = np.random.default_rng(0)
    for size, _ in itertools.product((2, 3, 5), range(8)):
        old, new = rng.integers(0, size, (2, 30))
        agree = rng.random(30) < 0.7
        label = align_level(old, new, size, agree)
        assert sorted(label.tolist()) == list(range(size))

        def kept(permutation, rows, old=old, new=new):
            return int((np.array(permutation)[new[rows]] == old[rows]).sum())

        best = max(kept(p, agree) for p in itertools.permutations(range(size)))
        assert kept(label, agree) == best


def test_a_renumbered_model_is_aligned_back_completely():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, (4, 6, 8), (300, 3))
    shuffles = [rng.permutation(size) for size in (4, 6, 8)]
    new = np.stack([shuffle[codes[:, i]] for i, shuffle in enumerate(shuffles)], axis=1)
    labels = align_codes(codes, new, (4, 6, 8))
    for i, (label, shuffle) in enumerate(zip(labels, shuffles, strict=True)):
        np.testing.assert_array_equal(label[shuffle], np.arange((4, 6, 8)[i]))


def test_relabel_moves_the_numbers_and_nothing_else():
    torch.manual_seed(0)
    model = SemanticIDEncoder(SemanticIDConfig(embedding_dim=D, codebook_sizes=(4, 8)))
    for quantizer in model.rq_vae.quantizers:
        torch.nn.init.normal_(quantizer.embedding.weight)
    x = torch.from_numpy(X[:50])
    before = model.encode_codes(x)
    labels = [torch.randperm(4), torch.randperm(8)]
    model.relabel_(labels)
    after = model.encode_codes(x)
    assert torch.equal(after, torch.stack([label[before[:, i]] for i, label in enumerate(labels)], dim=1))
    with pytest.raises(ValueError, match="labels of L2 are no permutation"):
        model.relabel_([labels[0], torch.zeros(8, dtype=torch.int64)])
    with pytest.raises(ValueError, match="labels of 1 levels"):
        model.relabel_(labels[:1])


def test_migrate_from_the_command_line(room, tmp_path, capsys):
    # 「重新训练」：同一个模型换了编号，再轻轻挪动码字
    model = SemanticIDEncoder.from_pretrained(room / "model")
    torch.manual_seed(0)
    model.relabel_([torch.randperm(size) for size in (8, 8, 16)])
    with torch.no_grad():
        for quantizer in model.rq_vae.quantizers:
            quantizer.embedding.weight += 0.002 * torch.randn_like(quantizer.embedding.weight)
    model.save_pretrained(tmp_path / "retrained")
    migrate = ("migrate", room / "cat", tmp_path / "retrained", room / "x.parquet", "--output")
    moved = run_json(capsys, *migrate, tmp_path / "new")
    assert moved["num_common"] == N
    assert moved["changed_rate"] < 0.2 < 0.9 < moved["unaligned_changed_rate"]
    moves = pq.read_table(tmp_path / "new" / "moves.parquet")
    assert moves.column("changed").to_pylist().count(True) == moved["num_changed"]
    assert moves.column_names[1:5] == ["old_l1", "old_l2", "old_l3", "old_suffix"]
    new, old = Catalog.open(tmp_path / "new" / "catalog"), Catalog.open(room / "cat")
    items = moves.column("item_id").to_pylist()
    np.testing.assert_array_equal((new.find(items) != old.find(items)).any(axis=1), moves.column("changed").to_numpy())
    shown = run_json(capsys, "info", tmp_path / "new" / "model")
    assert shown["fingerprint"] == new.fingerprint == moved["fingerprint"]
    assert sorted(os.listdir(tmp_path / "new")) == ["catalog", "model", "moves.parquet"]
    assert "exists; choose another" in fails(capsys, *migrate, tmp_path / "new")
    SemanticIDEncoder(SemanticIDConfig(embedding_dim=D, codebook_sizes=(8, 8))).save_pretrained(tmp_path / "two")
    text = fails(capsys, "migrate", room / "cat", tmp_path / "two", room / "x.parquet", "--output", tmp_path / "n2")
    assert "codebook_sizes=(8, 8), but the catalog has (8, 8, 16)" in text
    # 坏数据、类型不符的编号：一行错误，旁边不留半成品
    bad = X.copy()
    bad[7, 3] = np.nan
    write_items(tmp_path / "nan.parquet", bad, [f"sku-{i}" for i in range(N)])
    write_items(tmp_path / "int.parquet", X, list(range(N)))
    before = sorted(os.listdir(tmp_path))
    for name, complaint in (("nan.parquet", "row 7 (item_id 'sku-7') has nan"), ("int.parquet", "must be of type")):
        retrained = tmp_path / "retrained"
        text = fails(capsys, "migrate", room / "cat", retrained, tmp_path / name, "--output", tmp_path / "n2")
        assert complaint in text
        assert sorted(os.listdir(tmp_path)) == before


def test_migrating_to_the_same_model_keeps_every_id_and_every_rest(room, tmp_path, capsys):
    encode = ("encode", room / "model", room / "x.parquet", "--output", tmp_path / "cat", "--unique")
    run_json(capsys, *encode)
    gone = [f"sku-{i}" for i in range(0, N, 10)]
    pq.write_table(pa.table({"item_id": gone}), tmp_path / "gone.parquet")
    run_json(capsys, "update", tmp_path / "cat", "--model", room / "model", "--retire", tmp_path / "gone.parquet")
    keep = [i for i in range(N) if i % 10]
    write_items(tmp_path / "kept.parquet", X[keep], [f"sku-{i}" for i in keep])
    migrate = ("migrate", tmp_path / "cat", room / "model", tmp_path / "kept.parquet", "--output", tmp_path / "new")
    done = run_json(capsys, *migrate)
    assert (done["num_common"], done["num_changed"], done["unaligned_changed_rate"]) == (len(keep), 0, 0)
    (before, after) = (Catalog.open(tmp_path / "cat"), Catalog.open(tmp_path / "new" / "catalog"))
    assert after.manifest == before.manifest
    assert after.read().equals(before.read())
    # 输出在运行途中出现：不覆盖，也不留下半成品
    assert "exists; choose another" in fails(capsys, *migrate)
    assert sorted(os.listdir(tmp_path)) == ["cat", "gone.parquet", "kept.parquet", "new"]


def test_encode_says_what_uniqueness_cost(room, tmp_path, capsys):
    encode = ("encode", room / "model", room / "x.parquet", "--lang", "en", "--output")
    suffix = json.loads(run(capsys, *encode, tmp_path / "a", "--unique", "--json")[1])
    shown = run(capsys, *encode, tmp_path / "b", "--unique")[1]
    assert f"{suffix['num_contenders']} items share codes; largest suffix {suffix['max_suffix']}" in shown
    free = json.loads(run(capsys, *encode, tmp_path / "c", "--unique", "nearest-free", "--json")[1])
    shown = " ".join(run(capsys, *encode, tmp_path / "d", "--unique", "nearest-free")[1].split())
    assert f"moved {free['num_moved']} (prefix changed {free['num_prefix_changed']}, placed greedily 0)" in shown
    assert f"MSE grew by {free['added_mse']:.3g}" in shown
    assert "share codes" not in run(capsys, *encode, tmp_path / "e")[1]


# ---- 导入导出 ----


def test_index_json_round_trip(room, tmp_path, capsys):
    codes = {"0": [1, 0, 2], "7": [0, 3, 1], "x y": [1, 0, 2]}
    text = json.dumps({item: [f"<{c}_{v}>" for c, v in zip("abc", row, strict=True)] for item, row in codes.items()})
    (tmp_path / "in.index.json").write_text(text)
    done = run_json(capsys, "import", tmp_path / "in.index.json", "--output", tmp_path / "cat")
    assert (done["num_items"], done["codebook_sizes"], done["num_shared"]) == (3, [2, 4, 3], 2)
    assert done["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    catalog = Catalog.open(tmp_path / "cat")
    assert catalog.find(list(codes)).tolist() == list(codes.values())
    run_json(capsys, "export", tmp_path / "cat", "--index-json", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text().strip() == text
    assert "exists; pass --overwrite" in fails(
        capsys, "export", tmp_path / "cat", "--index-json", tmp_path / "out.json"
    )
    # 去重位接在最后
    run_json(capsys, "export", room / "cat", "--index-json", tmp_path / "ours.json")
    ours = json.loads((tmp_path / "ours.json").read_text())
    assert len(ours) == N
    assert [token[:3] for token in ours["sku-0"]] == ["<a_", "<b_", "<c_", "<d_"]
    assert len({tuple(tokens) for tokens in ours.values()}) == N


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"a": ["<a_1>", "<c_2>"]}', "item 'a' has '<c_2>' for L2"),
        ('{"a": ["<a_1>"], "b": ["<a_1>", "<b_2>"]}', "item 'b' has 2 levels, the first has 1"),
        ('{"a": ["<a_1>"], "a": ["<a_2>"]}', "item 'a' twice"),
        ('{"a": ["<a_5>"]}', "codes must be in [0, 4)"),
        ('{"a": ["<a_01>"]}', "item 'a' has '<a_01>' for L1"),  # 与 <a_1> 不是同一个词
        ('{"a": ["<a_\u0663>"]}', "no leading zero"),
        ('{"a": 3, "b": ["<a_1>"]}', "item 'a' has 3; write a list"),
        ('{"a": 0.5}', "item 'a' has 0.5; write a list"),
        ('{"a": ["<a_1>"], "\\ud800": ["<a_2>"]}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_index_json_leaves_nothing(text, complaint, tmp_path, capsys):
    (tmp_path / "in.json").write_text(text)
    arguments = ("import", tmp_path / "in.json", "--output", tmp_path / "cat")
    sizes = ("--codebook-sizes", "4") if "a_5" in text else ()
    assert complaint in fails(capsys, *arguments, *sizes)
    assert os.listdir(tmp_path) == ["in.json"]


def test_import_never_removes_a_strangers_partial_folder(tmp_path, capsys):
    (tmp_path / "in.json").write_text('{"a": ["<a_1>"]}')
    (tmp_path / "cat.partial").mkdir()
    (tmp_path / "cat.partial" / "mine.txt").write_text("")
    assert "holds 'mine.txt', not ours" in fails(capsys, "import", tmp_path / "in.json", "--output", tmp_path / "cat")
    assert (tmp_path / "cat.partial" / "mine.txt").exists()
