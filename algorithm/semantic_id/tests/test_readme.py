"""README 说的必须是真的：命令能解析、代码能跑、目录里的路径都在、中英两份的代码与数字相同。"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from algorithm.semantic_id.cli import app as cli

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "README.en.md")

pytestmark = pytest.mark.skipif(
    not (ROOT / PAGES[0]).is_file(), reason="the READMEs are not part of an installed wheel"
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(page: str, language: str) -> List[str]:
    return [body for found, body in _BLOCK.findall(_text(page)) if found == language]


def _without_comments(code: str) -> str:
    """注释一份中文一份英文，比较之前去掉。"""
    return "\n".join(re.sub(r"\s*# .*$", "", line) for line in code.splitlines())


def _sections(page: str) -> List[str]:
    """按二级标题切开；代码块里的注释也带着数字，所以不去掉。"""
    return re.split(r"^## ", _text(page), flags=re.MULTILINE)


def _tree(page: str) -> List[Tuple[str, ...]]:
    """目录图里的每个路径；一行可以并列几个名字，用一个空格隔开，说明在两个空格之后。"""
    (block,) = _blocks(page, "text")
    paths: List[Tuple[str, ...]] = []
    parents: Dict[int, str] = {}
    for line in block.splitlines()[1:]:
        branch = re.match(r"^[│ ]*[├└]── ", line)
        assert branch, f"{page}: {line!r} is no line of the tree"
        depth = len(branch[0]) // 4
        names = re.split(r" {2,}", line[branch.end() :])[0].split(" ")
        for name in names:
            paths.append((*(parents[d] for d in range(1, depth)), name))
        parents[depth] = names[0]
    return paths


def _commands(page: str) -> List[List[str]]:
    """正文与代码块里的全部 semid 命令。"""
    lines = [line for block in _blocks(page, "bash") for line in block.splitlines() if line.startswith("semid ")]
    inline = re.findall(r"`(semid [^`]*)`", _BLOCK.sub("", _text(page)))
    return [shlex.split(line, comments=True)[1:] for line in lines + inline]


def test_both_pages_have_the_same_code() -> None:
    for language in ("bash", "python"):
        chinese, english = (list(map(_without_comments, _blocks(page, language))) for page in PAGES)
        assert chinese
        assert chinese == english
    assert _tree(PAGES[0]) == _tree(PAGES[1])
    kinds = [[language for language, _ in _BLOCK.findall(_text(page))] for page in PAGES]
    assert kinds[0] == kinds[1], "a block has a language in one page only"


def test_both_pages_have_the_same_figures_in_every_section() -> None:
    chinese, english = (_sections(page) for page in PAGES)
    assert len(chinese) == len(english)
    for left, right in zip(chinese, english, strict=True):
        assert Counter(_NUMBER.findall(left)) == Counter(_NUMBER.findall(right)), left.splitlines()[0]


@pytest.mark.parametrize("page", PAGES)
def test_figures_have_one_marked_place(page: str) -> None:
    text = _text(page)
    assert text.count("<!-- figures:start -->") == text.count("<!-- figures:end -->") == 1
    figures = text.split("<!-- figures:start -->")[1].split("<!-- figures:end -->")[0]
    assert "benchmarks/results/" in figures, "every figure names the file it was taken from"
    for path in re.findall(r"benchmarks/results/[\w.+-]+", figures):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", PAGES)
def test_tree_shows_what_exists(page: str) -> None:
    shown = {"/".join(part.rstrip("/") for part in path) for path in _tree(page)}
    missing = sorted(path for path in shown if not (ROOT / path).exists())
    assert missing == []
    package = ROOT / "algorithm" / "semantic_id"
    found = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    rooms = {path.relative_to(ROOT).as_posix() for path in found}
    hidden = {f"algorithm/semantic_id/{name}.py" for name in ("__init__", "__main__")}
    assert sorted(rooms - hidden - shown) == [], "draw the new rooms into the tree"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_in_the_text_exist(page: str) -> None:
    text = _BLOCK.sub("", _text(page))
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    paths = re.findall(r"`((?:algorithm|examples|benchmarks|docs)/[\w./-]*|LICENSE)`", text)
    assert links
    assert paths
    for path in links + paths:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    group: Any = cli.new_group("zh")
    commands = _commands(page)
    assert {"train", "encode", "decode", "evaluate", "info"} <= {command[0] for command in commands}
    for name, *arguments in commands:
        if "--help" not in arguments:
            # 只解析参数，不执行；写错的选项与缺少的参数在这里报错
            group.commands[name].make_context(name, list(arguments))
        else:
            assert name in group.commands
    options = {option for command in (group, *group.commands.values()) for p in command.params for option in p.opts}
    mentioned = set(re.findall(r"`(--[a-z-]+)", _BLOCK.sub("", _text(page))))
    assert mentioned <= options


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    makefile = _text("Makefile")
    for target in re.findall(r"^make ([\w-]+)", "\n".join(_blocks(page, "bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(_blocks(PAGES[0], "python")).replace("torch.randn(10_000, 256)", "torch.randn(640, 256)")
    assert "randn(640" in code
    names: Dict[str, object] = {}
    exec(compile(code, PAGES[0], "exec"), names)
    assert [names[level].shape for level in ("l1", "l2", "l3")] == [(32,)] * 3  # type: ignore[attr-defined]
    assert names["vectors"].shape == (32, 256)  # type: ignore[attr-defined]
    assert names["codebook"].shape == (64, 256)  # type: ignore[attr-defined]
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert len(re.findall(r"Epoch \d: Loss=\d\.\d{4}, Utilization=\d+\.\d{2}%", capsys.readouterr().out)) == 10
