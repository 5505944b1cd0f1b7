"""最近码字搜索：整理过的码本何时过期，门口，与 torch 的别的部分相处。"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder
from algorithm.semantic_id.search import isa
from algorithm.semantic_id.search.nearest import nearest, prepare
from algorithm.semantic_id.tests.search.search_cases import brute_force, gaussian, near_ties

# ---- 刷新与过期 ----


def test_refresh_equals_fresh_prepare(path):
    generator = torch.Generator().manual_seed(5)
    weight = gaussian(300, 20)
    book = prepare(weight)
    x = torch.cat([gaussian(80, 20, seed=2), near_ties(weight, 40)])
    for step in range(9):
        rows = torch.randint(300, (40,), generator=generator)
        if step % 3 == 0:
            weight[rows] = weight[int(rows[0])].clone()  # 造出一批重复的码字，下一步再拆散
        else:
            weight[rows] = torch.randn(40, 20, generator=generator) * 10.0 ** (step - 5)
        assert not book.is_current(weight)
        book.refresh_(weight, rows)
        assert book.is_current(weight)
        assert nearest(x, book).tolist() == nearest(x, prepare(weight)).tolist() == brute_force(x, weight)


def test_refresh_trusts_no_pair_whose_rows_changed(path, monkeypatch):
    monkeypatch.setattr(
        "algorithm.semantic_id.search.prepared._multipliers", lambda width, device: torch.zeros(1).long()
    )
    weight = gaussian(60, 8)
    weight[20:30] = weight[3]
    book = prepare(weight)
    x = torch.cat([gaussian(30, 8, seed=2), weight])
    for rows in ([25], [24, 26], [3], [20, 21, 22]):  # 散列全都相同，只有逐元素核对分得清
        weight[rows] = gaussian(len(rows), 8, seed=90 + rows[0])
        book.refresh_(weight, torch.tensor(rows))
        assert nearest(torch.cat([x, weight]), book).tolist() == brute_force(torch.cat([x, weight]), weight)


def test_refreshing_the_lowest_twin_wakes_the_next(path):
    weight = torch.ones(64, 5)
    book = prepare(weight)
    weight[0] = 7.0
    book.refresh_(weight, torch.tensor([0]))
    assert nearest(torch.tensor([[1.0] * 5, [6.0] * 5]), book).tolist() == [1, 0]


EDITS = {
    "data": lambda weight: weight.data.mul_(2),
    "data row": lambda weight: weight.data[17].add_(1),
    "copy_": lambda weight: weight.copy_(gaussian(40, 6, seed=9)),
    "data copy_": lambda weight: weight.data.copy_(gaussian(40, 6, seed=9)),
    "set data": lambda weight: setattr(weight, "data", weight.detach().clone()),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_is_current_notices(path, edit):
    weight = gaussian(40, 6)
    book = prepare(weight)
    assert book.is_current(weight)
    edit(weight)
    assert not book.is_current(weight)


def test_is_current_notices_load_state_dict_and_shape(path):
    module = torch.nn.Embedding(40, 6)
    book = prepare(module.weight)
    assert book.is_current(module.weight)
    module.load_state_dict({"weight": gaussian(40, 6)})
    assert not book.is_current(module.weight)
    assert not book.is_current(gaussian(41, 6))


def test_prepared_codebook_owns_its_copy(path):
    weight = gaussian(90, 12)
    x = gaussian(50, 12, seed=2)
    book = prepare(weight)
    want = nearest(x, book)
    twin = copy.deepcopy(book)
    weight.zero_()
    assert torch.equal(nearest(x, book), want)
    assert torch.equal(nearest(x, twin), want)


# ---- 门口与框架 ----


def test_empty_batch_and_gradients(path):
    weight = gaussian(20, 4).requires_grad_()
    book = prepare(weight)
    assert nearest(torch.zeros(0, 4), book).shape == (0,)
    got = nearest(gaussian(5, 4).requires_grad_(), book)
    assert got.dtype == torch.int64
    assert not got.requires_grad


def test_reduced_precision_settings_do_not_reach_the_search(path, crowd):
    x, weight, truth = crowd
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = nearest(x[:600], prepare(weight))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, truth)


def test_inside_torch_compile(path, crowd):
    x, weight, truth = crowd
    book = prepare(weight)
    compiled = torch.compile(lambda rows: nearest(rows * 1.0, book) + 1, backend="eager")
    assert torch.equal(compiled(x[:600]), truth + 1)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_compiled_encoder_gives_the_same_ids(beam_size):
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=16, codebook_sizes=(8, 20), beam_size=beam_size)).eval()
    encoder.rq_vae.encoder.weight_out.data.normal_(0, 0.1)
    x = gaussian(60, 16)
    want = encoder.encode(x * 1.0)
    compiled = torch.compile(lambda rows: encoder.encode(rows * 1.0))
    try:
        got = compiled(x)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"inductor is unavailable: {error}")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_importing_search_does_not_import_the_compiler():
    """torch._dynamo 要一秒多；`torch.compiler.disable` 一装饰就会导入它。"""
    code = "import sys, algorithm.semantic_id.rq_vae; print('torch._dynamo' in sys.modules)"
    root = Path(isa.__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert result.stdout.strip() == "False", result.stderr


def test_inference_mode(path, crowd):
    x, weight, truth = crowd
    with torch.inference_mode():
        inside = weight.clone()
        book = prepare(inside)
        assert book.is_current(inside)
        assert torch.equal(nearest(x[:600].clone(), book), truth)


def test_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv("SEMID_SEARCH", "sse9")
    with pytest.raises(ValueError, match=r"SEMID_SEARCH='sse9' is not supported; use one of auto, amx, avx512-int16"):
        prepare(gaussian(4, 4))


def test_without_the_compiled_kernel(monkeypatch):
    monkeypatch.setattr(isa, "library", lambda: None)
    monkeypatch.delenv("SEMID_SEARCH", raising=False)
    assert prepare(gaussian(4, 4)).path == "numpy"
    monkeypatch.setenv("SEMID_SEARCH", "generic")
    with pytest.raises(RuntimeError, match=r"needs the compiled kernel.*available here: numpy, torch;.*build_ext"):
        prepare(gaussian(4, 4))


def test_wrong_shapes_are_refused(path):
    book = prepare(gaussian(8, 4))
    with pytest.raises(ValueError, match=r"x is \(3, 5\) on cpu, but the codebook needs \(B, 4\)"):
        nearest(torch.zeros(3, 5), book)
    with pytest.raises(ValueError, match="num_threads=0 is out of range"):
        nearest(torch.zeros(3, 4), book, num_threads=0)
    with pytest.raises(ValueError, match=r"weight is \(8, 5\) on cpu.*call prepare again"):
        book.refresh_(gaussian(8, 5), torch.tensor([0]))
    with pytest.raises(ValueError, match="weight must be float32"):
        prepare(gaussian(8, 4).double())
