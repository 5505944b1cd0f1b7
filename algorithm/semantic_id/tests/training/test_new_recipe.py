"""改配方只动一处：CONTRIBUTING.md 的例子照抄进 `training/plan.py`，训练就照着它走。"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, train_codebook
from algorithm.semantic_id.training import plan

GUIDE = Path(__file__).parents[4] / "CONTRIBUTING.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="CONTRIBUTING.md is not part of an installed wheel")


def test_the_guide_changes_the_recipe(tmp_path, monkeypatch):
    section = GUIDE.read_text(encoding="utf-8").split("## 一处改动：配方\n")[1].split("\n## ")[0]
    assert len(section.strip().splitlines()) <= 12
    for node in ast.parse(section.split("```python\n")[1].split("```")[0]).body:
        assert isinstance(node, ast.Assign)
        monkeypatch.setattr(plan, node.targets[0].id, ast.literal_eval(node.value))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 4), hidden_dim=4))
    train_codebook(encoder, x, 6, output_dir=tmp_path, progress=False)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["phase"] for record in log] == ["init", *["refine"] * 4, *["network"] * 2]
    assert [record["learning_rate"] for record in log[5:]] == pytest.approx([1e-3, 5e-4])
