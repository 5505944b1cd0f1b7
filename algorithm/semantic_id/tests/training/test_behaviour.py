"""行为引导与隐向量投影：共同消费的物品更常共享前缀，只看内容的新物品也跟着走；坏的物品对在门口报错。"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.files.vectors import open_vectors
from algorithm.semantic_id.training import behaviour
from algorithm.semantic_id.training.behaviour import read_pairs

SMALL = SemanticIDConfig(embedding_dim=16, codebook_sizes=(8, 16), hidden_dim=32)
FAST = TrainerConfig(effort="fast", batch_size=128)


def tribes(num_rows=800, seed=0):
    """内容由八个大方向与一个弱方向组成；人们只在弱方向的符号相同的物品之间来回。返回特征与「部落」。"""
    rng = np.random.default_rng(seed)
    centers = np.linalg.qr(np.random.default_rng(9).standard_normal((16, 16)))[0] * 3
    tribe = rng.integers(2, size=num_rows)
    x = centers[rng.integers(8, size=num_rows)] + (2 * tribe[:, None] - 1) * centers[15] * 0.25
    return (x + 0.1 * rng.standard_normal((num_rows, 16))).astype(np.float32), tribe


def pairs_within(tribe, count=4000, seed=1):
    rng = np.random.default_rng(seed)
    left = rng.integers(len(tribe), size=count)
    same = [np.flatnonzero(tribe == t) for t in (0, 1)]
    return np.stack([left, [rng.choice(same[tribe[i]]) for i in left]], axis=1)


def purity_of_first_level(encoder, x, tribe):
    codes = encoder.encode(torch.from_numpy(x))[0].numpy()
    return sum(max((tribe[codes == c] == t).sum() for t in (0, 1)) for c in np.unique(codes)) / len(x)


def test_pairs_pull_ids_together_for_new_items_too():
    x, tribe = tribes()
    new, new_tribe = tribes(seed=5)
    purity = {}
    for name, pairs in (("content", None), ("behaviour", pairs_within(tribe))):
        encoder = SemanticIDEncoder(SMALL)
        figures = train_codebook(encoder, x, 10, config=FAST, pairs=pairs, progress=False)
        purity[name] = [purity_of_first_level(encoder, *items) for items in ((x, tribe), (new, new_tribe))]
        assert figures["num_pairs"] == (0 if pairs is None else (pairs[:, 0] != pairs[:, 1]).sum())
        assert figures["relative_mse"] < 0.3
    assert max(purity["content"]) < 0.75  # 内容上弱方向不值得一层
    assert min(purity["behaviour"]) > 0.95


def test_same_seed_same_bytes_and_resume_checks_the_pairs(tmp_path, monkeypatch):
    x, tribe = tribes(300)
    pairs = pairs_within(tribe, 500)
    monkeypatch.setattr(behaviour, "STEPS", 20)
    prints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = SemanticIDEncoder(SMALL)
        train_codebook(encoder, x, 3, config=FAST, pairs=pairs, progress=False)
        prints.add(encoder.fingerprint())
    assert len(prints) == 1

    class Stop(RuntimeError):
        pass

    def stop(*args, **kwargs):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("algorithm.semantic_id.training.epochs.refine_epoch", stop)
        train_codebook(SemanticIDEncoder(SMALL), x, 3, config=FAST, pairs=pairs, output_dir=tmp_path, progress=False)
    again = {"config": FAST, "output_dir": tmp_path, "resume": True, "progress": False}
    for other in (None, pairs[::-1]):
        with pytest.raises(ValueError, match="pairs_sha256"):
            train_codebook(SemanticIDEncoder(SMALL), x, 3, pairs=other, **again)
    encoder = SemanticIDEncoder(SMALL)
    train_codebook(encoder, x, 3, pairs=pairs, **again)
    assert encoder.fingerprint() in prints


def test_item_ids_of_parquet_and_every_kind_of_pairs(tmp_path):
    x, _ = tribes(5)
    names = ["e", "d", "c", "b", "a"]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 16)
    pq.write_table(pa.table({"item_id": names, "embedding": vectors}), tmp_path / "x.parquet")
    source = open_vectors(tmp_path / "x.parquet")
    pq.write_table(pa.table({"one": ["a", "c"], "other": ["b", "a"]}), tmp_path / "pairs.parquet")
    for given in (tmp_path / "pairs.parquet", np.array([["a", "b"], ["c", "a"]])):
        pairs = read_pairs(given, source, 0)
        left, right = (pairs.vectors[pairs.rows[:, i]].numpy() for i in (0, 1))
        np.testing.assert_array_equal(left, x[[4, 2]])
        np.testing.assert_array_equal(right, x[[3, 4]])
    np.save(tmp_path / "pairs.npy", np.array([[4, 3], [2, 4]], dtype=np.int32))
    by_row = read_pairs(str(tmp_path / "pairs.npy"), open_vectors(x), 0)
    np.testing.assert_array_equal(by_row.vectors[by_row.rows[:, 0]].numpy(), x[[4, 2]])


@pytest.mark.parametrize(
    ("pairs", "error", "text"),
    [
        (np.zeros((3, 3), dtype=int), ValueError, r"pairs must have shape \(P, 2\), got \(3, 3\)"),
        (np.zeros((0, 2), dtype=int), ValueError, "pairs is empty"),
        (np.zeros((3, 2)), TypeError, r"pairs must hold item ids \(ints or strings\), got float64"),
        (np.array([[0, 1], [2, 300]]), ValueError, r"pairs name item 300, which features \(300 x 16\) does not have"),
        (np.array([["a", "b"]]), TypeError, "pairs hold string and string, but the item ids of .* are int64"),
        (np.array([[7, 7]]), ValueError, "no pair of two different items"),
        ("nowhere.npy", FileNotFoundError, "pairs path 'nowhere.npy' does not exist"),
    ],
)
def test_bad_pairs(pairs, error, text, tmp_path):
    encoder = SemanticIDEncoder(SMALL)
    before = encoder.fingerprint()
    with pytest.raises(error, match=text):
        train_codebook(encoder, tribes(300)[0], pairs=pairs, output_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert encoder.fingerprint() == before


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("p.parquet", b"junk", ValueError, "not a readable Parquet file"),
        ("p.parquet", pa.table({"a": [[1.0]], "b": [[1.0]]}), TypeError, "but the item ids of .* are int64"),
        ("p.parquet", pa.table({"a": pa.array([1], pa.date32()), "b": [1]}), TypeError, "but the item ids of"),
        ("p.npy", b"junk", ValueError, "not a readable .npy file"),
        ("p.npy", b"\x93NUMPY\x01\x00", ValueError, "not a readable .npy file"),
    ],
)
def test_bad_files_of_pairs(name, content, error, text, tmp_path):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, path)
    with pytest.raises(error, match=text):
        read_pairs(path, open_vectors(tribes(30)[0]), 0)


def test_a_header_that_promises_the_moon_allocates_nothing(tmp_path):
    whole = np.lib.format.magic(1, 0) + b"\x76\x00"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904, 2), }"
    (tmp_path / "p.npy").write_bytes(whole + header.ljust(0x75) + b"\n" + bytes(64))
    with pytest.raises(ValueError, match=r"p\.npy is cut short"):
        read_pairs(tmp_path / "p.npy", open_vectors(tribes(30)[0]), 0)


def test_pairs_on_a_trained_encoder_are_refused():
    x, tribe = tribes(300)
    encoder = SemanticIDEncoder(SMALL)
    train_codebook(encoder, x, 0, config=FAST, progress=False)
    with pytest.raises(ValueError, match=r"already trained; pass reinit=True too"):
        train_codebook(encoder, x, 1, config=FAST, pairs=pairs_within(tribe, 50), progress=False)


def test_latent_dim_projects_on_principal_components(tmp_path):
    """数据只在四维的斜子空间里：投影到四维不丢东西，误差与不投影时相当，码字窄了四倍。"""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((16, 4)))[0]
    x = (rng.standard_normal((600, 4)) @ basis.T + 5).astype(np.float32)
    errors = {}
    for latent_dim in (None, 4):
        encoder = SemanticIDEncoder(SemanticIDConfig(16, codebook_sizes=(16, 32), hidden_dim=8, latent_dim=latent_dim))
        errors[latent_dim] = train_codebook(encoder, x, 4, config=FAST, progress=False)["relative_mse"]
    assert errors[4] == pytest.approx(errors[None], rel=0.1)
    assert encoder.get_codebook_embeddings(2).shape == (32, 4)
    projection = encoder.rq_vae.encoder.projection.double()
    torch.testing.assert_close(projection.T @ projection, torch.eye(4).double(), atol=1e-5, rtol=0)
    z = encoder.rq_vae.encoder(torch.from_numpy(x))
    torch.testing.assert_close(encoder.rq_vae.decoder(z), torch.from_numpy(x), atol=1e-3, rtol=0)
    encoder.save_pretrained(tmp_path)
    again = SemanticIDEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode_codes(torch.from_numpy(x)), encoder.encode_codes(torch.from_numpy(x)))
    one_by_one = torch.cat([again.encode_codes(torch.from_numpy(row[None])) for row in x[:50]])
    assert torch.equal(one_by_one, again.encode_codes(torch.from_numpy(x[:50])))
