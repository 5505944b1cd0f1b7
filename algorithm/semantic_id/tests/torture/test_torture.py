"""`make torture` 的一小段：种子固定、次数固定，每次 `make test` 都做一遍。"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

# 两个进程各做一半：(种类, 至少几次)
HALVES = [{"kills": 8, "flips": 100, "ties": 30}, {"disks": 4, "pairs": 4, "cuts": 80, "fuzz": 400}]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork, SIGSTOP and /proc")
PROMISES = [name for half in HALVES for name in half]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """种类 → 试了几次、错了哪些。"""
    folder, root = tmp_path_factory.mktemp("torture"), Path(__file__).parents[4]
    started = []
    for number, half in enumerate(HALVES):
        argv = [sys.executable, "-m", "algorithm.semantic_id.tests.torture", "--short", "--seed", "1"]
        argv += ["--only", ",".join(half), "--json", str(folder / f"{number}.json")]
        started.append(subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [process.communicate()[0] for process in started]
    found: Dict[str, Any] = {}
    for number, text in enumerate(said):
        where = folder / f"{number}.json"
        assert where.is_file(), text
        found |= json.loads(where.read_text(encoding="utf-8"))["attacks"]
    return found


@pytest.mark.parametrize("promise", PROMISES)
def test_the_promise_holds(summary: Dict[str, Any], promise: str) -> None:
    assert summary[promise]["failures"] == []
    assert summary[promise]["trials"] >= next(half[promise] for half in HALVES if promise in half)


def test_every_promise_names_a_test_that_exists() -> None:
    root = Path(__file__).parents[4]
    text = (root / "docs" / "promises.md").read_text(encoding="utf-8")
    named = re.findall(r"([\w/]+\.py)::(test_\w+)", text)
    assert len(named) > 20
    for file, test in named:
        source = (root / "algorithm" / "semantic_id" / "tests" / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"docs/promises.md names {file}::{test}, which is gone"
