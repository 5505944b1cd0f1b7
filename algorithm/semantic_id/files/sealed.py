"""带自身校验和的 JSON：改动任何一个字节，要么读出同样的内容，要么认出来。

校验和盖住规范写法（键排序、没有空白）的全部内容，写在键 `self_sha256` 里。解析本身也是门：一万层的括号、坏的 UTF-8、
重复的键、NaN、落单的代理字符，都变成调用者给的那一种错误，而不是 RecursionError。
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, List, Mapping, Tuple, Type

from ..errors import InputError

__all__ = ["SEAL", "canonical", "parse_json", "seal", "unseal"]

SEAL = "self_sha256"


def canonical(value: Any) -> bytes:
    """JSON 的唯一写法，用来算校验和。"""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def seal(record: Mapping[str, Any], indent: int | None = 2) -> bytes:
    """内容 → 带校验和的 JSON 字节，末尾有换行。

    Raises:
        ValueError: 含 NaN 或 Inf。
    """
    whole = {**record, SEAL: hashlib.sha256(canonical(record)).hexdigest()}
    return (json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=indent) + "\n").encode("utf-8")


def unseal(data: bytes, where: str, error: Type[ValueError] = InputError) -> Tuple[Dict[str, Any], bool]:
    """带校验和的 JSON 字节 → 内容。

    Args:
        data: 文件的全部字节。
        where: 错误信息里的文件名。
        error: 用哪一种错误。

    Returns:
        (不含校验和的内容, 有没有校验和)；没有的是旧版本写的。新版本必须有：键名坏了一位，
            看起来也像没有。

    Raises:
        ValueError: `error`，不是 JSON 对象，或与校验和不符。
    """
    record = parse_json(data, where, error)
    if not isinstance(record, dict):
        raise error(f"{where} must hold a JSON object, got {type(record).__name__}; restore it from a backup")
    expected = record.pop(SEAL, None)
    if expected is not None and expected != hashlib.sha256(canonical(record)).hexdigest():
        raise error(f"{where} was changed after it was written ({SEAL} differs); restore it from a backup")
    return record, expected is not None


def parse_json(data: bytes, where: str, error: Type[ValueError] = InputError) -> Any:
    """严格的 JSON：UTF-8、没有重复的键、没有 NaN、嵌套有限。

    Raises:
        ValueError: `error`，一行说清哪个文件、为什么。
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constants)
        canonical(value)  # 1e999 与落单的代理字符读得进来却写不回去：校验和算不了
        return value
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as found:
        reason = " ".join(str(found).split())[:200]
    raise error(f"{where} is not valid JSON ({reason}); restore it from a backup")


def _no_repeats(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """重复的键后者会悄悄盖掉前者。"""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise InputError("an object has the same key twice")
    return out


def _no_constants(name: str) -> Any:
    raise InputError(f"{name} is no JSON number")
