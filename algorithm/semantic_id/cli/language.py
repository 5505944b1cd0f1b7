"""命令行的语言：中文为默认，`--lang en` 或环境变量 SEMID_LANG 切换。

`--lang` 可以出现在任何位置（`semid --lang en train`、`semid train --lang en`），所以在交给 typer 之前就从参数里取走。
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Tuple

from rich.markup import escape

from ..errors import InputError
from .text import TEXTS

__all__ = ["help_key", "name_panels", "take_lang", "translate"]

# rich 帮助页里的小标题：typer 的模块常量 → 键
_PANELS = {
    "ARGUMENTS_PANEL_TITLE": "semid.arguments",
    "OPTIONS_PANEL_TITLE": "semid.options",
    "COMMANDS_PANEL_TITLE": "semid.commands",
    "DEFAULT_STRING": "semid.default",
    "REQUIRED_LONG_STRING": "semid.required",
}


def take_lang(arguments: List[str]) -> Tuple[str, List[str]]:
    """取走 `--lang X`、`--lang=X`（任何位置，最后一个算数）；没有则看环境变量 SEMID_LANG，再没有就是 zh。

    Raises:
        InputError: 不是 zh 或 en。
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
        raise InputError("--lang needs a value: zh or en")
    if lang not in TEXTS:
        raise InputError(f"{name}={lang!r} is not supported; use zh or en")
    return lang, rest


def help_key(command: str, parameter: str, texts: Dict[str, str]) -> str:
    """参数的说明在哪里：先看命令自己的 `train.epochs`，再看共用的 `any.epochs`。"""
    name = parameter.rstrip("_")
    own = f"{command}.{name}"
    return own if own in texts else f"any.{name}"


def translate(group: Any, lang: str) -> None:
    """把每个命令、每个参数的说明换成所选语言。

    Raises:
        KeyError: 没有写这段说明，那是我们的缺陷。
    """
    texts = TEXTS[lang]
    for name, command in (("semid", group), *group.commands.items()):
        command.help = escape(texts[name])  # 说明里的 semid[report] 不是 rich 的标记
        for parameter in command.params:
            parameter.help = escape(texts[help_key(name, parameter.name, texts)])
        option = command.get_help_option(group.context_class(command))
        if option is not None:
            option.help = texts["any.help"]


def name_panels(lang: str) -> None:
    """换掉 typer 的小标题；它们是模块常量，所以两种语言都要写回去。没有这些常量的版本保持英文，不影响使用。"""
    try:
        from typer import rich_utils
    except ImportError:
        return
    for name, key in _PANELS.items():
        if hasattr(rich_utils, name):
            setattr(rich_utils, name, TEXTS[lang][key])
