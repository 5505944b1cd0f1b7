"""别人的文字上屏：会动作的字符写成转义，看得见的一个不动。"""

from __future__ import annotations

import doctest
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithm.semantic_id.files import printable as room
from algorithm.semantic_id.files.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07title", "\\x1b]0;owned\\x07title"),  # OSC：改窗口标题
        ("\x1b[2J\x1b[31mred", "\\x1b[2J\\x1b[31mred"),  # CSI：清屏
        ("\x9b31m", "\\x9b31m"),  # C1 的 CSI，没有 ESC
        ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),  # 双向翻转
        ("zero\u200bwidth\u2028line", "zero\\u200bwidth\\u2028line"),
        ("\ud800", "\\ud800"),
        ("连衣裙　红 é 😀 <b>", "连衣裙　红 é 😀 <b>"),  # 全角空格也留着
        ("", ""),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_nothing_hidden_is_left_and_nothing_seen_is_touched(text):
    shown = printable(text)
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert printable(shown) == shown
    seen = [char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    rest = iter(shown)
    assert all(char in rest for char in seen)  # 原来的次序


def test_the_examples_in_the_docstring():
    assert doctest.testmod(room) == (0, 2)
