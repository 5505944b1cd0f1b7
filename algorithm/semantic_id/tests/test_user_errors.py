"""用户的错误自成一类：本包抛出的都是它；没有人预料到的 TypeError、ValueError 是我们的缺陷，带回溯、退出码 1。"""

from __future__ import annotations

import ast

import pytest

from algorithm.semantic_id.catalog import CatalogError
from algorithm.semantic_id.cli import app as cli
from algorithm.semantic_id.cli.models import info
from algorithm.semantic_id.cli.options import Model, Session
from algorithm.semantic_id.decoding.trie_file import TrieFileError
from algorithm.semantic_id.errors import InputError, InputTypeError, UserError
from algorithm.semantic_id.files.checkpoint import ModelFileError
from algorithm.semantic_id.limits import check_int
from algorithm.semantic_id.tests.test_architecture import SOURCES


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_every_door_raises_an_error_of_the_user(module):
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            assert name not in ("ValueError", "TypeError", "Exception"), (
                f"{module} line {node.lineno}: raise InputError or InputTypeError of errors.py"
            )


def test_the_classes_stay_what_they_were():
    for kind in (InputError, CatalogError, ModelFileError, TrieFileError):
        assert issubclass(kind, UserError)
        assert issubclass(kind, ValueError)
    assert issubclass(InputTypeError, UserError)
    assert issubclass(InputTypeError, TypeError)
    with pytest.raises(UserError, match="beams=0 is out of range"):
        check_int("beams", 0, 1)


def run(capsys, monkeypatch, action):
    def command(session: Session, model: Model):
        action()

    monkeypatch.setattr(info, "run", command)
    code = cli.main(["info", "m"])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def raising(error):
    def action():
        raise error

    return action


BUGS = [
    lambda: None + 1,
    lambda: int("four"),
    lambda: [][0],
    lambda: {}["missing"],
    lambda: None.shape,
    lambda: 1 / 0,
    raising(RuntimeError("ours")),
]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_of_ours_shows_where_it_is(bug, capsys, monkeypatch):
    code, err = run(capsys, monkeypatch, bug)
    assert code == 1
    assert err.startswith("Traceback")
    assert "test_user_errors.py" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("k=0 is\nout of range; use 1"), "error: k=0 is out of range; use 1\n"),
        (InputTypeError("k must be an int"), "error: k must be an int\n"),
        (CatalogError("damaged"), "error: damaged\n"),
        (FileExistsError("output 'x' exists; choose another"), "error: output 'x' exists; choose another\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: Permission denied: '/x'\n"),
        (ImportError("needs the extra `hf`: pip install 'semid[hf]'"),
         "error: needs the extra `hf`: pip install 'semid[hf]'\n"),
        (MemoryError(), "error: out of memory (no detail); use fewer rows at a time or a larger machine\n"),
    ],
)  # fmt: skip
def test_an_error_of_the_user_is_one_line(error, line, capsys, monkeypatch):
    assert run(capsys, monkeypatch, raising(error)) == (2, line)


def test_an_import_that_fails_without_an_extra_is_ours(capsys, monkeypatch):
    assert run(capsys, monkeypatch, raising(ImportError("cannot import name 'x'")))[0] == 1
