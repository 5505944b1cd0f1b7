"""命令行的语言：中文为默认，`--lang en` 或环境变量 SEMID_LANG 切换。

帮助文字两种语言写在用到的地方（`both`），生成命令之后再挑一种，因此不会一种改了、另一种忘了改。
`--lang` 可以出现在任何位置（`semid --lang en train`、`semid train --lang en`），所以在交给 typer 之前就从参数里取走。
"""

from __future__ import annotations

import os
from typing import Any, List, Tuple

import typer

__all__ = ["both", "localized", "pick", "take_lang"]

_SEPARATOR = "\x1f"


def both(zh: str, en: str) -> str:
    """把两种语言放进一个字符串，写在用到的地方，不会一种改了另一种忘了改。"""
    return zh + _SEPARATOR + en


def pick(text: str, lang: str) -> str:
    """取其中一种语言；只有一种时原样返回。"""
    zh, _, en = text.partition(_SEPARATOR)
    return en if en and lang == "en" else zh


def take_lang(arguments: List[str]) -> Tuple[str, List[str]]:
    """取走 `--lang X`、`--lang=X`（任何位置，最后一个算数）；没有则看环境变量 SEMID_LANG，再没有就是 zh。

    Raises:
        ValueError: 不是 zh 或 en。
    """
    name, lang, rest = "SEMID_LANG", os.environ.get("SEMID_LANG") or "zh", []
    waiting = False
    for argument in arguments:
        if waiting:
            name, lang, waiting = "--lang", argument, False
        elif argument == "--lang":
            waiting = True
        elif argument.startswith("--lang="):
            name, lang = "--lang", argument.partition("=")[2]
        else:
            rest.append(argument)
    if waiting:
        raise ValueError("--lang needs a value: zh or en")
    if lang not in ("zh", "en"):
        raise ValueError(f"{name}={lang!r} is not supported; use zh or en")
    return lang, rest


def localized(app: typer.Typer, lang: str) -> Any:
    """由 typer 生成命令，再把每段帮助换成所选语言。"""
    group = typer.main.get_command(app)
    for command in (group, *group.commands.values()):  # type: ignore[attr-defined]
        command.help = pick(command.help or "", lang)
        for parameter in command.params:
            parameter.help = pick(getattr(parameter, "help", None) or "", lang)  # type: ignore[attr-defined]
        option = command.get_help_option(group.context_class(command))
        if option is not None:
            option.help = pick(both("显示帮助并退出", "Show this message and exit."), lang)  # type: ignore[attr-defined]
    _name_panels(lang)
    return group


def _name_panels(lang: str) -> None:
    """换掉 typer 的小标题；它们是模块常量，所以两种语言都要写回去。没有这些常量的版本保持英文，不影响使用。"""
    try:
        from typer import rich_utils
    except ImportError:
        return
    words = {
        "ARGUMENTS_PANEL_TITLE": both("参数", "Arguments"),
        "OPTIONS_PANEL_TITLE": both("选项", "Options"),
        "COMMANDS_PANEL_TITLE": both("命令", "Commands"),
        "DEFAULT_STRING": both("（默认 {}）", "[default: {}]"),
        "REQUIRED_LONG_STRING": both("（必填）", "[required]"),
    }
    for name, word in words.items():
        if hasattr(rich_utils, name):
            setattr(rich_utils, name, pick(word, lang))
