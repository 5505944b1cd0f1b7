"""py.typed 名副其实：`mypy --strict` 在用户的脚本里看得见拼错的字段与用错的类型。"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

import algorithm.semantic_id as package

pytest.importorskip("mypy", reason="install semid[test] to check types")

ROOT = Path(package.__file__).parents[2]

RIGHT = """
from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook

config = SemanticIDConfig(embedding_dim=4, codebook_sizes=(4, 4))
model = SemanticIDEncoder(config)
width: int = model.embedding_dim
train_codebook(model, open_vectors("x.npy"), 1, config=TrainerConfig(batch_size=8))
"""
WRONG = [
    ("codebook_sizes=", "codebok_sizes=", 'Unexpected keyword argument "codebok_sizes" for "SemanticIDConfig"'),
    ("batch_size=8", 'batch_size="8"', 'Argument "batch_size" to "TrainerConfig" has incompatible type "str"'),
    ("width: int = model", "width: str = model", 'expression has type "int", variable has type "str"'),
    ("SemanticIDEncoder, Tr", "SemanticIdEncoder, Tr", 'has no attribute "SemanticIdEncoder"'),
]


def errors_of(script: Path, cache: Path) -> List[str]:
    """用户那样跑 mypy；装好的包里的错误不归用户管，所以只报脚本自己的。torch 的类型要读十几秒，这里用不到。"""
    (script.parent / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    options = ["--strict", "--follow-imports=silent", "--namespace-packages", "--explicit-package-bases"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", str(cache), script.name],
        capture_output=True,
        text=True,
        cwd=script.parent,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    return [line for line in done.stdout.splitlines() if ": error: " in line] if done.returncode else []


def test_a_users_script_is_checked(tmp_path: Path) -> None:
    script = tmp_path / "right.py"
    script.write_text(RIGHT)
    assert errors_of(script, tmp_path / "cache") == []
    for number, (right, wrong, complaint) in enumerate(WRONG):
        assert right in RIGHT
        script = tmp_path / f"wrong_{number}.py"  # 每次换名字：同一秒里改写、大小又相同的文件，mypy 的缓存认不出来
        script.write_text(RIGHT.replace(right, wrong))
        found = errors_of(script, tmp_path / "cache")
        assert any(complaint in line for line in found), (wrong, found)
