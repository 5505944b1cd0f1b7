"""模型读者：每个写过的版本都读得出原来的指纹与 ID；陌生人的文件先核对再占内存，坏的只有说得出文件的错误。"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook
from algorithm.semantic_id.encoder import save_model
from algorithm.semantic_id.files.checkpoint import ModelFileError, fingerprint_of
from algorithm.semantic_id.files.sealed import canonical

MODELS = Path(__file__).parent / "models"
X = torch.from_numpy(np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32))
# 文件夹 → 当年写下的指纹、前 8 行当年的编码
WRITTEN = {
    "first": (  # 还没有 beam_size
        "dc0fe87a524a5dc4d0ea47f39840dce6e520edaffb451b7bc3323b4fbb8963c0",
        [[0, 0], [0, 2], [3, 1], [3, 2], [0, 1], [1, 2], [1, 0], [1, 2]],
    ),
    "beam_size": (  # 有 beam_size，还没有 latent_dim
        "f725d7e69277c3c2dff2e6db96afc82a74081a4d35873516485736a3f9a9586f",
        [[3, 2], [3, 1], [2, 2], [1, 1], [2, 0], [0, 1], [1, 0], [2, 1]],
    ),
    "latent_dim": (
        "70f138d37b89cd005f9a8df7f6a489926984eefca5ba0b7e011adc05799fcbdb",
        [[1, 0], [1, 2], [3, 2], [3, 0], [0, 1], [0, 1], [2, 0], [3, 1]],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_model_of_any_version_keeps_its_fingerprint_and_ids(name, tmp_path):
    fingerprint, codes = WRITTEN[name]
    model = SemanticIDEncoder.from_pretrained(MODELS / name)
    assert model.fingerprint() == fingerprint
    assert model.encode_codes(X[:8]).tolist() == codes
    # 存了再读、接着训练 0 个 epoch（换一份数据），决定 ID 的都不变
    model.save_pretrained(tmp_path)
    again = SemanticIDEncoder.from_pretrained(tmp_path)
    assert again.fingerprint() == fingerprint
    train_codebook(again, X + 1, 0, progress=False)
    assert again.encode_codes(X[:8]).tolist() == codes
    assert again.config == model.config


# ---- 束宽由谁定 ----


@pytest.mark.parametrize(
    ("of_model", "of_trainer", "expected"),
    [(None, None, 4), (1, None, 1), (3, None, 3), (None, 1, 1), (None, 2, 2), (3, 1, 1), (1, 6, 6)],
)
def test_an_explicit_beam_size_wins_over_the_recipe(of_model, of_trainer, expected):
    config = SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 3), hidden_dim=4, beam_size=of_model)
    encoder = SemanticIDEncoder(config)
    assert encoder.config.beam == (of_model or 1)
    figures = train_codebook(encoder, X, 1, config=TrainerConfig(beam_size=of_trainer), progress=False)
    assert (encoder.config.beam_size, encoder.rq_vae.config.beam, figures["beam_size"]) == (expected,) * 3


def test_training_on_keeps_the_beam_size_of_the_first_training():
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 3), hidden_dim=4))
    train_codebook(encoder, X, 1, config=TrainerConfig(effort="fast"), progress=False)
    assert encoder.config.beam_size == 1
    codes = encoder.encode_codes(X)
    train_codebook(encoder, X, 0, progress=False)  # 默认的力气是束宽 4
    assert encoder.config.beam_size == 1
    assert torch.equal(encoder.encode_codes(X), codes)


# ---- 参数 ----


@pytest.mark.parametrize("name", ["strcit", "device", "config"])
def test_unknown_arguments_are_named(name, tmp_path):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        SemanticIDEncoder.from_pretrained(MODELS / "first", **{name: True})
    model = SemanticIDEncoder.from_pretrained(MODELS / "first", revision="main", token=None, local_files_only=True)
    with pytest.raises(TypeError, match="'privat', which is only for push_to_hub=True"):
        model.save_pretrained(tmp_path / "m", privat=True)
    assert not (tmp_path / "m").exists()


# ---- 陌生人的模型 ----


def written(folder, record, tensors):
    """写一个处处自洽（校验和、指纹都对）的模型：只有内容本身可能不对。"""
    folder.mkdir(exist_ok=True)
    data = tensors if isinstance(tensors, bytes) else save(tensors)
    record = {**record, "weights_sha256": hashlib.sha256(data).hexdigest()}
    if not isinstance(tensors, bytes):
        record["fingerprint"] = fingerprint_of(record["config"], tensors)
    record.pop("config_sha256", None)
    record["config_sha256"] = hashlib.sha256(canonical(record)).hexdigest()
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "model.safetensors").write_bytes(data)
    return folder


def parts(name="first"):
    record = json.loads((MODELS / name / "config.json").read_text())
    return record, load((MODELS / name / "model.safetensors").read_bytes())


def test_a_consistent_rewrite_loads(tmp_path):
    assert SemanticIDEncoder.from_pretrained(written(tmp_path, *parts())).fingerprint() == WRITTEN["first"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"codebook_sizes": [4_000_000, 3]},
        {"codebook_sizes": [4, 2**31 - 1]},
        {"codebook_sizes": [4] * 10_000, "num_codebooks": 10_000},
        {"hidden_dim": 10**12},
        {"embedding_dim": 2**40},
        {"latent_dim": 3},
    ],
)
def test_shapes_are_compared_before_anything_is_allocated(tmp_path, change):
    record, tensors = parts()
    record["config"] = {**record["config"], **change}
    written(tmp_path, record, tensors)
    tracemalloc.start()
    with pytest.raises(
        ModelFileError,
        match=r"weights in '.*' do not fit its config: .* must be|config of .* is not valid: codebook_sizes",
    ):
        SemanticIDEncoder.from_pretrained(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 3e38, -1e17])
@pytest.mark.parametrize("name", ["rq_vae.quantizers.1.embedding.weight", "rq_vae.decoder.weight_out", "feature_mean"])
def test_impossible_numbers_are_refused_at_both_doors(tmp_path, name, bad):
    record, tensors = parts()
    tensors[name].view(-1)[-1] = bad
    with pytest.raises(ModelFileError, match=rf"model.safetensors' has .* in {name}; values must be finite and within"):
        SemanticIDEncoder.from_pretrained(written(tmp_path, record, tensors))
    model = SemanticIDEncoder.from_pretrained(MODELS / "first")
    model.load_state_dict(tensors)
    with pytest.raises(ValueError, match=rf"in {name}; values must be finite"):
        model.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_features_at_the_very_limit_train_into_a_model_that_loads(tmp_path):
    x = X / X.abs().max() * 1e15
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(8, 8, 8), hidden_dim=4))
    train_codebook(encoder, x, 4, output_dir=tmp_path / "m", progress=False)
    assert SemanticIDEncoder.from_pretrained(tmp_path / "m").fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r, t: r.pop("fingerprint"), "must have fingerprint of kind str, found nothing"),
        (lambda r, t: r.pop("training"), "must have training of kind dict, found nothing"),
        (lambda r, t: r.update(config=[1]), "must have config of kind dict, found list"),
        (
            lambda r, t: r["config"].update(codebook_sizes="44"),
            "is not valid: codebook_sizes must be a seq",
        ),
        (lambda r, t: r["config"].update(codebook_sizes=[4, None]), r"codebook_sizes\[1\] must be an int"),
        (lambda r, t: r["config"].update(epsilon=10**400), "epsilon=inf is out of range"),
        (lambda r, t: r["config"].update(depth=4), "unknown config field 'depth'"),
        (lambda r, t: r["config"].update(commitment_cost=1), "is not written as semid writes it"),
        (lambda r, t: r["training"].update(relative_mse="low"), "training.relative_mse of kind str"),
        (lambda r, t: r["training"].update(notes=[[[[[[1]]]]]]), "has training nested deeper than 4 levels"),
        (lambda r, t: t.pop("feature_mean"), "feature_mean must be float32 .*, found nothing"),
        (lambda r, t: t.update(extra=torch.ones(1)), "extra must be nothing, found float32"),
        (lambda r, t: t.update(feature_mean=torch.zeros(4).double()), "must be float32 .*, found float64"),
        (lambda r, t: t.update({"rq_vae.encoder.unit": torch.zeros(())}), "encoder.unit=0; it must be positive"),
    ],
)
def test_wrong_contents_are_named(tmp_path, change, text):
    record, tensors = parts()
    change(record, tensors)
    if "fingerprint" not in record:
        data = save(tensors)
        record = {**record, "weights_sha256": hashlib.sha256(data).hexdigest()}
        (tmp_path / "config.json").write_text(json.dumps(record))
        (tmp_path / "model.safetensors").write_bytes(data)
    else:
        written(tmp_path, record, tensors)
    with pytest.raises(ModelFileError, match=text):
        SemanticIDEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("opening", ["[", '{"config":'])
@pytest.mark.parametrize("depth", [200, 900, 100_000])
def test_deep_json_is_a_typed_error(tmp_path, opening, depth):
    text = opening * depth + "1" + {"[": "]", '{"config":': "}"}[opening] * depth
    record = {**parts()[0], "training": {"notes": "DEEP"}}
    (tmp_path / "config.json").write_text(json.dumps(record).replace('"DEEP"', text))
    (tmp_path / "model.safetensors").write_bytes((MODELS / "first" / "model.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match="nested"):
        SemanticIDEncoder.from_pretrained(tmp_path)


# ---- 结构化的乱写：只许有类型的错误 ----


def loaded_or_refused(folder):
    """读得出的模型；说得出文件的 `ModelFileError` 是 None；别的异常让测试失败。"""
    try:
        return SemanticIDEncoder.from_pretrained(folder)
    except ModelFileError as refused:
        message = str(refused)
    assert str(folder) in message
    return None


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8), st.sampled_from([[], {}, [4, 3], [[4]], {"a": 1}, "first", 2**63, 4_000_000]),
)  # fmt: skip
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def mutated(draw, record, tensors):
    """改掉一处：某个键不见了、换成别的值、多一个键；或某个张量换了形状、种类、内容。"""
    where = draw(st.sampled_from(["top", "config", "training", "tensor", "header", "bytes"]))
    if where in ("top", "config", "training"):
        group = record if where == "top" else record[where]
        name = draw(st.sampled_from([*group, "another"]))
        if draw(st.booleans()):
            group.pop(name, None)
        else:
            group[name] = draw(VALUES)
        return save(tensors)
    if where == "tensor":
        name = draw(st.sampled_from(sorted(tensors)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16]))
        tensors[name] = torch.full(shape, draw(st.sampled_from([0, 1, -1, float("nan"), 3e38]))).to(dtype)
        return save(tensors)
    data = bytearray(save(tensors))
    size = struct.unpack("<Q", data[:8])[0]
    if where == "bytes":
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)
    header = json.loads(data[8 : 8 + size])
    name = draw(st.sampled_from(sorted(header)))
    if draw(st.booleans()):
        header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(VALUES)
    else:
        header[draw(st.text(max_size=5))] = draw(VALUES)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data[8 + size :])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_models_give_typed_errors_or_the_written_model(tmp_path_factory, data):
    """校验和与指纹都补对，好让乱写走到检查之后：读得出的，指纹就是写着的那个，编码照常。"""
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    record, tensors = parts(data.draw(st.sampled_from(sorted(WRITTEN))))
    weights = mutated(data.draw, record, tensors)
    try:
        record["fingerprint"] = fingerprint_of(record["config"], load(weights))
    except Exception:  # 配置或权重坏得算不出指纹：读者自己会说
        record.setdefault("fingerprint", "0" * 64)
    try:
        written(folder, record, weights)
    except (TypeError, ValueError):
        return
    model = loaded_or_refused(folder)
    if model is None:
        return
    assert model.fingerprint() == record["fingerprint"]
    assert model.encode_codes(X[:4]).shape == (4, len(model.codebook_sizes))
    save_model(model, folder)


def test_any_flipped_bit_or_cut_in_a_model_folder_is_noticed(tmp_path):
    """没有补校验和：config.json 与权重的每一处翻转或截断，不是同样的模型就是错误。"""
    rng = np.random.default_rng(3)
    for name in ("config.json", "model.safetensors"):
        for other in ("config.json", "model.safetensors"):
            (tmp_path / other).write_bytes((MODELS / "latent_dim" / other).read_bytes())
        good = (tmp_path / name).read_bytes()
        for trial in range(150):
            place = int(rng.integers(len(good)))
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(good[:place] if trial % 10 == 0 else bytes(bad))
            model = loaded_or_refused(tmp_path)
            assert model is None or model.fingerprint() == WRITTEN["latent_dim"][0]


def test_loading_a_model_does_not_import_the_compiler(tmp_path):
    """torch._dynamo 要导入一秒多；每个读模型的命令都会等它。"""
    SemanticIDEncoder(SemanticIDConfig(embedding_dim=3, codebook_sizes=(4, 2))).save_pretrained(tmp_path / "m")
    code = (
        "import sys; from algorithm.semantic_id import SemanticIDEncoder; "
        f"SemanticIDEncoder.from_pretrained({str(tmp_path / 'm')!r}); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
