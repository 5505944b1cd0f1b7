"""帮助与语言：不加载重东西、两种语言齐全、`--lang` 在哪里都行。"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.language import take_lang


def run(capsys, *arguments):
    """(退出码, stdout, stderr)。"""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


COLD = """
import sys
from algorithm.semantic_id.cli import main
code = main(["train", "--help"])
heavy = {"torch", "numpy", "pyarrow", "huggingface_hub", "safetensors"} & set(sys.modules)
sys.exit(code or (f"loaded {heavy}" if heavy else 0))
"""


def test_help_loads_nothing_heavy():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}  # 写不出中文的终端也不许崩
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--codebook-sizes" in done.stdout


@pytest.mark.parametrize(
    "order",
    [("--lang", "en", "train", "--help"), ("train", "--lang", "en", "--help"), ("train", "--help", "--lang=en")],
)
def test_help_in_english_wherever_the_flag_stands(order, capsys):
    code, out, err = run(capsys, *order)
    assert (code, err) == (0, "")
    assert "Train a model." in out
    assert not any("一" <= c <= "鿿" for c in out)


def test_no_arguments_show_the_help_and_version(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "demo" in out
    assert "选项" in run(capsys, "--help")[1]
    from algorithm.semantic_id import __version__

    assert run(capsys, "--version") == (0, f"semid {__version__}\n", "")


def test_every_help_text_exists_in_both_languages():
    chinese, english = cli.new_group("zh"), cli.new_group("en")
    for name in (None, *chinese.commands):
        pair = (chinese, english) if name is None else (chinese.commands[name], english.commands[name])
        texts = [(pair[0].help, pair[1].help)]
        texts += [(a.help, b.help) for a, b in zip(pair[0].params, pair[1].params, strict=True)]
        for zh, en in texts:
            assert any("一" <= c <= "鿿" for c in zh), zh
            assert en
            assert not any("一" <= c <= "鿿" for c in en), en


def test_language_is_taken_from_anywhere():
    assert take_lang(["a", "--lang", "en", "b"]) == ("en", ["a", "b"])
    assert take_lang(["--lang=en", "--lang", "zh"]) == ("zh", [])


def test_help_names_the_extras(capsys):
    # 方括号是 rich 的标记；说明里的 semid[report] 不许被它吃掉
    assert "semid[report]" in run(capsys, "report", "--help")[1]
