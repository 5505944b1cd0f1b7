"""磁盘上的模型：一个文件夹 = config.json + model.safetensors + README.md（模型卡）。

只认状态字典，不认模型类。约定：
- 每个文件先写到临时名、fsync、再改名；config.json 最后写，没有它的文件夹不是模型。
- config.json 记着权重文件的 SHA-256、模型指纹、自身的校验和；加载时全部核对。safetensors 能认出被截断的文件，
  但认不出载荷里翻转的一个比特，所以必须有 SHA-256。
- 只用 JSON 与 safetensors，任何加载路径上都没有 pickle。
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from .durable import sync_folder, write_synced

__all__ = ["ModelFileError", "fingerprint_of", "load_folder", "read_state", "save_folder", "write_state"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
_FORMAT = "semid-model"
_FORMAT_VERSION = 1


class ModelFileError(ValueError):
    """模型文件夹不完整、被改动或损坏。"""


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """决定 ID 的一切的 SHA-256：规范化的配置，以及按名字排序的每个张量的名字、dtype、形状与字节。

    Args:
        config: 可写成 JSON 的配置。
        tensors: 状态字典。

    Returns:
        64 位十六进制。
    """
    digest = hashlib.sha256(_canonical(config))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def save_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], figures: Mapping[str, Any], card: str
) -> None:
    """原子地写出一个模型文件夹；已有的同名文件被替换，其余文件不动。

    Args:
        folder: 目标文件夹，不存在则创建。
        config: 结构参数。
        tensors: 状态字典。
        figures: 训练时测得的数字。
        card: 模型卡正文（Markdown）。

    Raises:
        OSError: 写不进去（例如磁盘满）；此时不会留下看似完整的新模型。
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = tensors_to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    record: Dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "config": dict(config),
        "fingerprint": fingerprint_of(config, tensors),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(figures),
    }
    record["config_sha256"] = hashlib.sha256(_canonical(record)).hexdigest()
    # 先全部写成临时文件：磁盘满在这里暴露，旧模型还原封不动。三个都落盘之后才开始改名，所以改名途中被杀，
    # 新配置也完整地躺在临时文件里，加载时认得出它配得上新权重（见 load_folder）
    contents = {
        WEIGHTS_NAME: weights,
        CARD_NAME: card.encode("utf-8"),
        CONFIG_NAME: json.dumps(record, ensure_ascii=False, indent=2).encode("utf-8"),
    }
    for name, data in contents.items():
        write_synced(_temporary(folder / name), data)
    for name in contents:
        os.replace(_temporary(folder / name), folder / name)
    sync_folder(folder)


def load_folder(folder: Path) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor], Dict[str, Any]]:
    """读出并核对一个模型文件夹。

    Args:
        folder: `save_folder` 写出的文件夹。

    Returns:
        (config 字典, 状态字典, 训练时测得的数字)。

    Raises:
        FileNotFoundError: 文件夹不存在，或里面没有模型。
        ModelFileError: 文件缺失、截断、被改动，或版本太新。
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"model folder {str(folder)!r} does not exist; train one with `semid train`")
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config_path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is not a finished model: it has no {CONFIG_NAME}; "
            "if training was interrupted, finish it with --resume"
        )
    record = _read_record(config_path)
    if not weights_path.is_file():
        raise ModelFileError(f"{str(folder)!r} has no {WEIGHTS_NAME}; restore it from a backup")
    data = weights_path.read_bytes()
    actual = hashlib.sha256(data).hexdigest()
    if actual != record["weights_sha256"]:
        # 覆盖保存时恰在改名之间被杀：新权重已就位，配得上它的新配置还叫临时名
        staged = _temporary(config_path)
        staged_record = _read_record(staged) if staged.is_file() else record
        if staged_record["weights_sha256"] == actual:
            record = staged_record
    if actual != record["weights_sha256"]:
        raise ModelFileError(
            f"{str(weights_path)!r} is damaged ({len(data)} bytes): its SHA-256 is not the one in {CONFIG_NAME}; "
            "copy the model again"
        )
    tensors = _parse(data, weights_path)
    if fingerprint_of(record["config"], tensors) != record["fingerprint"]:
        raise ModelFileError(f"fingerprint of {str(folder)!r} does not match its config and weights; copy it again")
    return record["config"], tensors, record["training"]


def _read_record(path: Path) -> Dict[str, Any]:
    """读出并核对 config.json 自身；返回去掉自身校验和的内容。"""
    try:
        record = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{str(path)!r} is not valid JSON ({error}); restore it from a backup") from None
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ModelFileError(f"{str(path)!r} does not describe a semid model: format must be {_FORMAT!r}")
    if record.get("format_version") != _FORMAT_VERSION:
        raise ModelFileError(
            f"{str(path)!r} has format_version {record.get('format_version')!r}, this semid reads "
            f"{_FORMAT_VERSION}; upgrade semid"
        )
    expected = record.pop("config_sha256", None)
    if hashlib.sha256(_canonical(record)).hexdigest() != expected:
        raise ModelFileError(f"{str(path)!r} was changed after it was written (config_sha256 differs)")
    return record


def write_state(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    """原子地写出一个训练断点文件夹：在旁边的临时文件夹里写齐，再整体改名。

    Args:
        folder: 断点文件夹；已存在则先删除（它是同一位置的旧断点）。
        tensors: 文件名（不带后缀）→ 张量字典。
        state: 可写成 JSON 的其余状态。
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    hashes = {}
    for name, group in tensors.items():
        data = tensors_to_bytes({k: v.detach().cpu().contiguous() for k, v in group.items()})
        hashes[name] = hashlib.sha256(data).hexdigest()
        write_synced(temporary / f"{name}.safetensors", data)
    write_synced(temporary / "state.json", json.dumps({**state, "sha256": hashes}).encode("utf-8"))
    sync_folder(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    sync_folder(folder.parent)


def read_state(folder: Path) -> Tuple[Dict[str, Dict[str, torch.Tensor]], Dict[str, Any]]:
    """读出并核对一个训练断点。

    Raises:
        ModelFileError: 断点损坏。
    """
    try:
        state = json.loads((folder / "state.json").read_bytes().decode("utf-8"))
        groups = {name: (folder / f"{name}.safetensors").read_bytes() for name in state["sha256"]}
    except (OSError, ValueError, KeyError) as error:
        raise ModelFileError(f"checkpoint {str(folder)!r} is unreadable ({error}); delete it and resume") from None
    for name, data in groups.items():
        if hashlib.sha256(data).hexdigest() != state["sha256"][name]:
            raise ModelFileError(f"checkpoint {str(folder)!r} is damaged ({name}.safetensors); delete it and resume")
    return {name: _parse(data, folder / name) for name, data in groups.items()}, state


def _parse(data: bytes, path: Path) -> Dict[str, torch.Tensor]:
    """字节 → 张量字典；先整体读入再解析，核对过的与使用的就是同一份字节。"""
    try:
        return tensors_from_bytes(data)
    except SafetensorError as error:
        raise ModelFileError(f"{str(path)!r} is not a safetensors file ({error})") from None


def _canonical(value: Mapping[str, Any]) -> bytes:
    """JSON 的唯一写法，用来算校验和。"""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _temporary(final: Path) -> Path:
    """最终文件旁边的临时名。"""
    return final.with_name(f".{final.name}.tmp")
