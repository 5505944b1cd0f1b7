"""命令行说的话：一种语言一个文件，只是数据。"""

from __future__ import annotations

from typing import Dict

from . import en, zh

__all__ = ["TEXTS"]

# 语言 → 键 → 文字；第一种是默认的
TEXTS: Dict[str, Dict[str, str]] = {"zh": zh.TEXT, "en": en.TEXT}
