"""语义 ID 的词面 `<a_3>`：一个编号只有一种写法，读的与写的都用这一处。

字母是层（L1 是 a），数字是编号：ASCII 十进制，没有前导零，没有正负号。`<a_01>` 不是 `<a_1>` 的另一种写法，
分词器里它们是不同的词；当成一个就悄悄换了物品。
"""

from __future__ import annotations

import re

__all__ = ["MAX_LEVELS", "TOKEN", "token"]

# 字母只有 26 个；比这更深的语义 ID 没有见过
MAX_LEVELS = 26
# 编号至多十位：小于 2³¹ 的都写得下；再长的不必去转换
TOKEN = re.compile(r"<([a-z])_(0|[1-9][0-9]{0,9})>")


def token(level: int, code: int) -> str:
    """第 level 层（0 起）编号 code 的词面。

    >>> token(2, 9)
    '<c_9>'
    """
    return f"<{chr(ord('a') + level)}_{code}>"
