"""加一个命令只要一个文件：CONTRIBUTING.md 的例子照抄过来真的能用。"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from algorithm.semantic_id.cli import app, models
from algorithm.semantic_id.cli.text import TEXTS

GUIDE = Path(__file__).parents[4] / "CONTRIBUTING.md"

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="CONTRIBUTING.md is not part of an installed wheel")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """把 CONTRIBUTING.md 里的例子放进 models/（不碰源码目录）。"""
    section = GUIDE.read_text(encoding="utf-8").split("## 一处改动：命令\n")[1].split("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    name = re.search(r"`models/(\w+)\.py`", section)[1]
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    for key in (name, *(f"{name}.{word}" for word in re.findall(rf"`{name}\.(\w+)`", section) if word != "py")):
        monkeypatch.setitem(TEXTS["zh"], key, f"中文 {key} {{n}}" if key.endswith("said") else "中文")
        monkeypatch.setitem(TEXTS["en"], key, f"English {key} {{n}}" if key.endswith("said") else "English")
    yield name
    sys.modules.pop(f"{models.__name__}.{name}", None)


def test_the_example_of_the_guide_is_a_command(toy, tmp_path, capsys):
    assert app.main([toy, "--help"]) == 0
    assert "中文" in capsys.readouterr().out
    (tmp_path / "x.npy").write_bytes(b"123")
    assert app.main([toy, str(tmp_path / "x.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"bytes": 3}
    assert app.main([toy, str(tmp_path / "x.npy"), "--lang", "en"]) == 0
    assert capsys.readouterr().out == f"English {toy}.said 3\n"
    assert app.main([toy, str(tmp_path / "x.npy"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert app.main([toy]) == 2
    assert "FEATURES" in capsys.readouterr().err


def test_a_command_without_text_is_noticed(toy, monkeypatch):
    monkeypatch.delitem(TEXTS["en"], toy)
    with pytest.raises(KeyError, match=toy):
        app.new_group("en")
