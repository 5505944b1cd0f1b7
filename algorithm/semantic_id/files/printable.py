"""别人的文字怎样上屏：编号、标题、标签来自别人的数据，里面可以有操纵终端的转义序列。"""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# 控制字符（Cc：ESC、BEL、换行、C1）、格式字符（Cf：双向文字的翻转、零宽）、不成对的代理（Cs）、行与段的分隔
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""把看不见而会动作的字符写成 `\x1b` 这样的转义，其余原样。

    终端把 ESC 与 C1 开头的序列当命令（改标题、写剪贴板、盖住上文），双向控制符让看到的与存着的不同。写成转义之后一眼
    看得出、也抄得走。表情里的零宽连接符也会被写开：宁可难看，不可骗人。

    Args:
        text: 任何文字。

    Returns:
        只含看得见的字符与空格，一行。

    Examples:
        >>> printable("ok \x1b]0;owned\x07\n")
        'ok \\x1b]0;owned\\x07\\n'
        >>> printable("三件套")
        '三件套'
    """
    if text.isprintable():  # 绝大多数：Cc、Cf、Cs、Zl、Zp 都不算可印
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
