"""模型文件夹：存取逐位相同；截断、翻转一个比特、缺文件、改配置都被认出来。"""

import json
import os
import sys

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, train_codebook
from algorithm.semantic_id.files import checkpoint as checkpoint_room
from algorithm.semantic_id.files import durable
from algorithm.semantic_id.files.checkpoint import ModelFileError, fingerprint_of


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = SemanticIDEncoder(SemanticIDConfig(embedding_dim=8, codebook_sizes=(4, 6), hidden_dim=4))
    train_codebook(model, torch.randn(300, 8), 2, progress=False)
    return model


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_is_bit_exact(encoder, folder):
    again = SemanticIDEncoder.from_pretrained(folder)
    assert not again.training
    assert again.config == encoder.config
    assert isinstance(again.config.codebook_sizes, tuple)
    assert again.fingerprint() == encoder.fingerprint()
    assert again.training_figures == json.loads(json.dumps(encoder.training_figures))
    assert bool(again.rq_vae.initialized)
    x = torch.randn(500, 8)
    assert torch.equal(again.encode_codes(x), encoder.encode_codes(x))
    assert torch.equal(again.decode_codes(again.encode_codes(x)), encoder.decode_codes(encoder.encode_codes(x)))
    again.save_pretrained(folder.parent / "second")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (folder / name).read_bytes() == (folder.parent / "second" / name).read_bytes()


def test_files_and_card(encoder, folder):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (folder / "README.md").read_text("utf-8")
    assert encoder.fingerprint() in card
    assert f"{encoder.training_figures['relative_mse']:.4g}" in card
    assert card.startswith("---\nlibrary_name: semid\n")


def test_fingerprint_depends_on_everything_that_decides_ids():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    base = fingerprint_of({"x": 1}, tensors)
    assert fingerprint_of({"x": 1}, dict(reversed(tensors.items()))) == base
    assert fingerprint_of({"x": 2}, tensors) != base
    assert fingerprint_of({"x": 1}, {**tensors, "a": torch.zeros(3, 2)}) != base
    assert fingerprint_of({"x": 1}, {**tensors, "b": torch.ones(1).double()}) != base
    changed = torch.zeros(2, 3)
    changed[1, 2] = -0.0
    assert fingerprint_of({"x": 1}, {**tensors, "a": changed}) != base


def test_any_flipped_bit_is_noticed(folder):
    """整个文件里均匀取 40 个位置，每处翻转一个比特，两个文件都不例外。"""
    for name in ("model.safetensors", "config.json"):
        path = folder / name
        good = path.read_bytes()
        for i in range(40):
            position = i * (len(good) - 1) // 39
            bad = bytearray(good)
            bad[position] ^= 1 << (i % 8)
            path.write_bytes(bytes(bad))
            with pytest.raises(ModelFileError):
                SemanticIDEncoder.from_pretrained(folder)
        path.write_bytes(good)
    SemanticIDEncoder.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_cut_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="is damaged"):
        SemanticIDEncoder.from_pretrained(folder)


def test_folder_that_is_no_model(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; train one with"):
        SemanticIDEncoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is not a finished model: it has no config.json"):
        SemanticIDEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ModelFileError, match="does not describe a semid model"):
        SemanticIDEncoder.from_pretrained(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="has no model.safetensors"):
        SemanticIDEncoder.from_pretrained(folder)


def test_newer_format_is_refused_by_name(folder):
    record = json.loads((folder / "config.json").read_text("utf-8"))
    record["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ModelFileError, match="format_version 99, this semid reads 1; upgrade semid"):
        SemanticIDEncoder.from_pretrained(folder)


def test_full_disk_keeps_the_old_model(encoder, folder, monkeypatch):
    """第二个文件写到一半磁盘满：旧模型原封不动，也没有临时文件留下冒充。"""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real = os.fsync
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(durable.os, "fsync", full)
    other = SemanticIDEncoder(encoder.config)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    monkeypatch.undo()
    assert {n: (folder / n).read_bytes() for n in before} == before
    assert SemanticIDEncoder.from_pretrained(folder).fingerprint() == encoder.fingerprint()


def test_crash_between_two_renames_gives_the_new_model(encoder, folder, monkeypatch):
    """新权重已就位、新配置还叫临时名：加载得到完整的新模型；没有那个临时文件就拒绝，绝不拿旧配置配新权重。"""
    real = os.replace
    calls = []

    def crash(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(checkpoint_room.os, "replace", crash)
    torch.manual_seed(1)
    other = SemanticIDEncoder(encoder.config)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(folder)
    monkeypatch.undo()
    assert SemanticIDEncoder.from_pretrained(folder).fingerprint() == other.fingerprint()
    (staged,) = folder.glob(".config.json.*.tmp")
    staged.unlink()
    with pytest.raises(ModelFileError):
        SemanticIDEncoder.from_pretrained(folder)


def test_loading_never_unpickles(folder, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(sys.modules["torch"], "load", refuse)
    SemanticIDEncoder.from_pretrained(folder)


def test_push_to_hub_uploads_the_same_files(encoder, monkeypatch, tmp_path):
    """不联网：把上传函数换成记录器，看交出去的文件夹能不能加载。"""
    import huggingface_hub.hub_mixin as mixin

    seen = {}

    class FakeApi:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            seen["repo_id"] = repo_id
            seen["fingerprint"] = SemanticIDEncoder.from_pretrained(folder_path).fingerprint()
            return "commit"

    monkeypatch.setattr(mixin, "HfApi", FakeApi)
    assert encoder.push_to_hub("someone/model") == "commit"
    assert seen == {"repo_id": "someone/model", "fingerprint": encoder.fingerprint()}
