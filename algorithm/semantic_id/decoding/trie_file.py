"""前缀树在磁盘上的样子：一个 safetensors 文件，自己说明自己。

张量 `pointers.0…`、`edges.0…`、`order`、`repeats`，意思见 `trie_build.py`；文件头里是格式、
版本、各层大小与内容的 SHA-256。safetensors 认得出被截断的文件，认不出翻转的一个比特，所以必须另有校验和；
校验和挡不住有意的伪造，所以读进来还要核对结构：下标越界的树在解码时才崩，而且崩得莫名其妙。
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

from ..errors import InputError
from ..files.durable import write_atomically
from ..files.sealed import parse_json
from .trie_build import TrieArrays, check_sizes

__all__ = ["TrieFileError", "read_trie", "write_trie"]

_FORMAT, _FORMAT_VERSION = "semid-trie", 1
_KEY = "semid"


class TrieFileError(InputError):
    """不是前缀树的文件，或被截断、改动。"""


def write_trie(path: Path, arrays: TrieArrays, sizes: Tuple[int, ...]) -> None:
    """原子地写出；同样的树写出同样的字节。

    Raises:
        OSError: 写不进去；原有的文件不动。
    """
    tensors = _named(arrays)
    record: Dict[str, Any] = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "sizes": list(sizes)}
    record["sha256"] = _digest(tensors, list(sizes))
    # 只放一个键：safetensors 写出多个键的次序每次不同
    write_atomically(path, arrays_to_bytes(tensors, metadata={_KEY: json.dumps(record)}))


def read_trie(path: Path) -> Tuple[TrieArrays, Tuple[int, ...]]:
    """读出并核对。

    Returns:
        (数组, 各层大小)。

    Raises:
        FileNotFoundError: 文件不存在。
        TrieFileError: 不是前缀树、版本不认识、被截断或改动。
    """
    data = path.read_bytes()  # 只读一次：核对过的与使用的就是同一份字节
    try:
        tensors = arrays_from_bytes(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        # 后四种：safetensors 的 NumPy 一侧不认识的 dtype（如 F8）
        raise TrieFileError(f"{str(path)!r} is not a whole safetensors file ({error}); save the trie again") from None
    # safetensors 已经认得头，这里只取出元数据
    header = parse_json(data[8 : 8 + struct.unpack("<Q", data[:8])[0]], repr(str(path)), TrieFileError)
    text = (header.get("__metadata__") or {}).get(_KEY, "{}")
    record = parse_json(text.encode(), f"the header of {str(path)!r}", TrieFileError)
    if not isinstance(record, dict):
        raise TrieFileError(f"{str(path)!r} holds no trie: its header is a {type(record).__name__}, not an object")
    if record.get("format") != _FORMAT:
        raise TrieFileError(f"{str(path)!r} holds no trie: format must be {_FORMAT!r}, got {record.get('format')!r}")
    if record.get("format_version") != _FORMAT_VERSION:
        raise TrieFileError(
            f"{str(path)!r} has format_version {record.get('format_version')!r}, this semid reads "
            f"{_FORMAT_VERSION}; upgrade semid or build the trie again"
        )
    if record.get("sha256") != _digest(tensors, record.get("sizes")):
        raise TrieFileError(f"{str(path)!r} was changed after it was written (sha256 differs); save the trie again")
    try:
        sizes = check_sizes(record["sizes"])
        arrays = _unnamed(tensors, len(sizes))
        _check_structure(arrays, sizes)
    except (KeyError, TypeError, ValueError) as error:
        raise TrieFileError(f"{str(path)!r} is no valid trie: {error}; build and save it again") from None
    return arrays, sizes


def _named(arrays: TrieArrays) -> Dict[str, np.ndarray]:
    """数组 → 名字，次序固定。"""
    named = {"order": arrays.order, "repeats": arrays.repeats}
    for level, (pointer, edge) in enumerate(zip(arrays.pointers, arrays.edges, strict=True)):
        named[f"pointers.{level}"], named[f"edges.{level}"] = pointer, edge
    return {name: np.ascontiguousarray(named[name]) for name in sorted(named)}


def _unnamed(tensors: Dict[str, np.ndarray], num_levels: int) -> TrieArrays:
    """名字 → 数组；少一个多一个都是错误。"""
    pointers = tuple(tensors[f"pointers.{level}"] for level in range(num_levels))
    edges = tuple(tensors[f"edges.{level}"] for level in range(num_levels))
    arrays = TrieArrays(pointers, edges, tensors["order"], tensors["repeats"])
    strangers = set(tensors) - set(_named(arrays))
    if strangers:
        raise InputError(f"it holds an unknown tensor {min(strangers)!r}")
    return arrays


def _digest(tensors: Dict[str, np.ndarray], sizes: Any) -> str:
    """各层大小与每个张量的名字、dtype、形状、字节的 SHA-256。"""
    digest = hashlib.sha256(json.dumps(sizes).encode())
    for name in sorted(tensors):
        digest.update(f"|{name}|{tensors[name].dtype.str}|{tensors[name].shape}|".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data if tensors[name].size else b"")
    return digest.hexdigest()


def _check_structure(arrays: TrieArrays, sizes: Tuple[int, ...]) -> None:
    """指针首尾相接、编号在界内且在同一结点内严格递增、行号是一个排列。"""
    num_nodes = 1
    everything = [*arrays.pointers, *arrays.edges, arrays.order, arrays.repeats]
    if any(array.ndim != 1 or array.dtype.kind != "i" for array in everything):
        raise InputError("every tensor must be one-dimensional and of a signed integer dtype")
    for level, size in enumerate(sizes):
        edges = arrays.edges[level]
        _check_pointer(f"pointers.{level}", arrays.pointers[level], num_nodes, len(edges))
        if int(edges.min()) < 0 or int(edges.max()) >= size:
            raise InputError(f"edges.{level} leaves [0, {size})")
        rises = np.empty(len(edges), dtype=bool)
        rises[0], rises[1:] = True, edges[1:] > edges[:-1]
        rises[arrays.pointers[level][:-1]] = True  # 每个结点的第一个孩子不必比前一个结点的孩子大
        if not bool(rises.all()):
            raise InputError(f"edges.{level} is not sorted within a node")
        num_nodes = len(edges)
    num_items, repeats = len(arrays.order), arrays.repeats
    if num_items != num_nodes + len(repeats):
        raise InputError(f"order has {num_items} rows for {num_nodes} IDs and {len(repeats)} repeats")
    if len(repeats) and (repeats[0] < 0 or repeats[-1] >= num_nodes or bool((repeats[1:] < repeats[:-1]).any())):
        raise InputError(f"repeats must rise within [0, {num_nodes})")
    seen = np.zeros(num_items, dtype=bool)
    if int(arrays.order.min()) < 0 or int(arrays.order.max()) >= num_items:
        raise InputError(f"order leaves [0, {num_items})")
    seen[arrays.order] = True
    if not bool(seen.all()):
        raise InputError("order lists a row twice")


def _check_pointer(name: str, pointer: np.ndarray, num_nodes: int, num_edges: int) -> None:
    """CSR 的行指针：长度对、从 0 到 E、每个结点至少一个孩子。"""
    if pointer.ndim != 1 or pointer.dtype.kind != "i" or len(pointer) != num_nodes + 1:
        raise InputError(f"{name} must be ints of shape ({num_nodes + 1},), got {pointer.dtype} {pointer.shape}")
    if num_edges == 0 or int(pointer[0]) != 0 or int(pointer[-1]) != num_edges:
        raise InputError(f"{name} must run from 0 to {num_edges}")
    if not bool((pointer[1:] > pointer[:-1]).all()):
        raise InputError(f"{name} has a node without children")
