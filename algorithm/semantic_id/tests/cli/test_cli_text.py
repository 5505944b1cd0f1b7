"""命令行的文字是数据：两种语言的键与占位相同，没有缺的，也没有用不到的。"""

from __future__ import annotations

import ast
import string
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

from algorithm.semantic_id import cli as package
from algorithm.semantic_id.cli import app
from algorithm.semantic_id.cli.language import _PANELS, help_key
from algorithm.semantic_id.cli.page import Page
from algorithm.semantic_id.cli.text import TEXTS
from algorithm.semantic_id.cli.text.en import TEXT as EN
from algorithm.semantic_id.cli.text.zh import TEXT as ZH

FOLDER = Path(package.__file__).parent


def placeholders(text: str) -> List[Tuple[str, str]]:
    """{名字:格式}，依名字排；两种语言的词序可以不同。"""
    return sorted((name, spec or "") for _, name, spec, _ in string.Formatter().parse(text) if name is not None)


def differences(zh: Dict[str, str], en: Dict[str, str]) -> List[str]:
    """两份文字对不上的地方，一句一条。"""
    out = [f"{key} is in one language only" for key in sorted(zh.keys() ^ en.keys())]
    for key in sorted(zh.keys() & en.keys()):
        if placeholders(zh[key]) != placeholders(en[key]):
            out.append(f"{key} has {placeholders(zh[key])} in Chinese, {placeholders(en[key])} in English")
    return out


def constants(source: str) -> Iterator[str]:
    """一个文件里的字符串；f-string 与 `"drift." + x` 只给出开头，后面跟一个 *。"""
    inside: Set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            first = node.values[0]
            if isinstance(first, ast.Constant):
                yield f"{first.value}*"
        elif isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant) and isinstance(node.op, ast.Add):
            inside.add(node.left)
            yield f"{node.left.value}*"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.value


def used_keys() -> Set[str]:
    """用得到的键：每个命令与参数的说明，加上代码里提到的。"""
    used = {"semid", "any.help", *_PANELS.values()}
    group = app.new_group("zh")
    for name, command in (("semid", group), *group.commands.items()):
        used.add(name)
        used.update(help_key(name, parameter.name, ZH) for parameter in command.params)
    used.update(f"semid.{room}" for _, room, _ in app.command_files())
    for path in FOLDER.rglob("*.py"):
        if path.parent.name != "text":
            for word in constants(path.read_text(encoding="utf-8")):
                used.update(key for key in ZH if key == word or (word.endswith(".*") and key.startswith(word[:-1])))
    return used


def test_both_languages_say_the_same_things():
    assert differences(ZH, EN) == []
    assert list(ZH) == list(EN)  # 次序也相同，好并排读
    assert list(TEXTS) == ["zh", "en"]
    # 这个测试自己会变红
    assert differences({"a": "{n}", "b": ""}, {"a": "{m}"}) == [
        "b is in one language only",
        "a has [('n', '')] in Chinese, [('m', '')] in English",
    ]


def test_no_text_is_unused():
    unused = sorted(set(ZH) - used_keys())
    assert unused == []


def test_every_key_in_the_code_exists():
    # `page.say("x")`、`page.text("x")`、facts 的第一列：写错的键在这里报，不必等到有人跑那条路
    wrong = []
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                keys = []
                if node.func.attr in ("say", "text") and isinstance(node.args[0], ast.Constant):
                    keys = [node.args[0].value]
                elif node.func.attr == "facts" and isinstance(node.args[0], ast.List):
                    keys = [row.elts[0].value for row in node.args[0].elts]
                wrong += [f"{path.name} line {node.lineno}: {key}" for key in keys if key not in ZH]
    assert wrong == []


@pytest.mark.parametrize("lang", TEXTS)
def test_each_language_is_itself(lang):
    for key, text in TEXTS[lang].items():
        has_chinese = any("一" <= character <= "鿿" for character in text)
        assert has_chinese or lang == "en" or key == "drift.psi", key
        assert not (has_chinese and lang == "en"), key


def test_a_missing_key_is_an_error():
    with pytest.raises(KeyError, match="no.such.key"):
        Page("zh").text("no.such.key")
