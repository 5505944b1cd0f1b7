"""磁盘上的模型：一个文件夹 = config.json + model.safetensors + README.md（模型卡）；以及训练的断点文件夹。

只认状态字典，不认模型类。约定：
- 三个文件都先写到临时名、fsync，再依次改名；config.json 最后，没有它的文件夹不是模型。
- config.json 记着权重文件的 SHA-256、模型指纹、自身的校验和；断点的 state.json 也是。加载时全部核对：safetensors 能
  认出被截断的文件，但认不出载荷里翻转的一个比特，所以必须有 SHA-256。
- 只用 JSON 与 safetensors，任何加载路径上都没有 pickle。
- 校验和只防损坏，不防人：陌生人的文件可以处处自洽。所以类型、形状、数值另外验收，坏的一律是 `ModelFileError`。
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from ..errors import InputError
from ..limits import MAX_ABS_WEIGHT
from .durable import sync_folder, write_synced
from .sealed import canonical, parse_json, seal, unseal

__all__ = [
    "ModelFileError",
    "check_kinds",
    "fingerprint_of",
    "is_our_card",
    "is_our_config",
    "kind_of",
    "load_folder",
    "read_state",
    "save_folder",
    "write_state",
]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
CARD_START = "---\nlibrary_name: semid\n"
_FORMAT = "semid-model"
_FORMAT_VERSION = 1
_MAX_DEPTH = 4  # 训练数字的嵌套：表里的表里的列表


class ModelFileError(InputError):
    """模型文件夹不完整、被改动或损坏。"""


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """决定 ID 的一切的 SHA-256：规范化的配置，以及按名字排序的每个张量的名字、dtype、形状与字节。

    Args:
        config: 可写成 JSON 的配置。
        tensors: 状态字典。

    Returns:
        64 位十六进制。
    """
    digest = hashlib.sha256(canonical(config))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def is_our_config(path: Path) -> bool:
    """是不是本包写的 config.json（不核对内容）；目录里的同名文件若是别的工具的，就不能替换。"""
    try:
        record = parse_json(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == _FORMAT


def is_our_card(path: Path) -> bool:
    """README.md 是不是本包写的模型卡；用户自己的说明绝不替换。"""
    with open(path, "rb") as file:
        return file.read(len(CARD_START)) == CARD_START.encode()


def save_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], figures: Mapping[str, Any], card: str
) -> None:
    """原子地写出一个模型文件夹；已有的模型被替换，其余文件不动。调用者保证同时只有一个写者。

    Args:
        folder: 目标文件夹，不存在则创建。
        config: 结构参数。
        tensors: 状态字典。
        figures: 训练时测得的数字。
        card: 模型卡正文（Markdown）；已有一份不是本包写的 README.md 时不写。

    Raises:
        FileExistsError: 已有别的工具的 config.json。
        ValueError: 权重里有 NaN、Inf 或大得不可能的值：这样的模型读不回来。
        OSError: 写不进去（例如磁盘满）；此时不会留下看似完整的新模型。
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_path, card_path = folder / CONFIG_NAME, folder / CARD_NAME
    if config_path.exists() and not is_our_config(config_path):
        raise FileExistsError(f"{str(config_path)!r} does not describe a semid model; choose another folder")
    _check_values(tensors, f"the model for {str(folder)!r}", InputError)
    weights = tensors_to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    record: Dict[str, Any] = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "config": dict(config),
        "fingerprint": fingerprint_of(config, tensors),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "training": dict(figures),
    }
    record["config_sha256"] = hashlib.sha256(canonical(record)).hexdigest()
    contents = {WEIGHTS_NAME: weights}
    if not card_path.exists() or is_our_card(card_path):
        contents[CARD_NAME] = card.encode("utf-8")
    contents[CONFIG_NAME] = json.dumps(record, ensure_ascii=False, indent=2).encode("utf-8")
    # 先全部写成临时文件：磁盘满在这里暴露，旧模型还原封不动。都落盘之后才开始改名，改名途中被打断，
    # 新配置也完整地躺在临时文件里，加载时认得出它配得上新权重（见 load_folder），所以这时不能删它
    token = secrets.token_hex(4)
    staged = {name: folder / f".{name}.{token}.tmp" for name in contents}
    try:
        for name, data in contents.items():
            write_synced(staged[name], data)
    except BaseException:
        for path in staged.values():
            path.unlink(missing_ok=True)
        raise
    for name in contents:
        os.replace(staged[name], folder / name)
    sync_folder(folder)
    for name in contents:  # 从前被打断的保存留下的
        for leftover in folder.glob(f".{name}.*tmp"):
            leftover.unlink()


def load_folder(folder: Path) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor], Dict[str, Any]]:
    """读出并核对一个模型文件夹。

    Args:
        folder: `save_folder` 写出的文件夹。

    Returns:
        (config 字典, 状态字典, 训练时测得的数字)。张量都是有限的；形状要由知道模型类的调用者核对。

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
        record = _staged_record(folder, actual)
    if actual != record["weights_sha256"]:
        raise ModelFileError(
            f"{str(weights_path)!r} is damaged ({len(data)} bytes): its SHA-256 is not the one in {CONFIG_NAME}; "
            "copy the model again"
        )
    tensors = _parse(data, weights_path)
    if fingerprint_of(record["config"], tensors) != record["fingerprint"]:
        raise ModelFileError(f"fingerprint of {str(folder)!r} does not match its config and weights; copy it again")
    _check_values(tensors, repr(str(weights_path)), ModelFileError)
    return record["config"], tensors, record["training"]


def _staged_record(folder: Path, weights_sha256: str) -> Dict[str, Any]:
    """覆盖保存时恰在改名之间被杀：新权重已就位，配得上它的新配置还叫临时名；没有就返回一个不相配的。"""
    for staged in sorted(folder.glob(f".{CONFIG_NAME}.*tmp")):
        try:
            record = _read_record(staged)
        except ModelFileError:  # 写到一半的
            continue
        if record["weights_sha256"] == weights_sha256:
            return record
    return {"weights_sha256": None}


def _read_record(path: Path) -> Dict[str, Any]:
    """读出并核对 config.json 自身；返回去掉自身校验和的内容。"""
    where = repr(str(path))
    record = parse_json(path.read_bytes(), where, ModelFileError)
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ModelFileError(f"{where} does not describe a semid model: format must be {_FORMAT!r}")
    if record.get("format_version") != _FORMAT_VERSION:
        raise ModelFileError(
            f"{where} has format_version {record.get('format_version')!r}, this semid reads "
            f"{_FORMAT_VERSION}; upgrade semid"
        )
    kinds = {"config": dict, "training": dict, "fingerprint": str, "weights_sha256": str, "config_sha256": str}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            found = type(record[name]).__name__ if name in record else "nothing"
            raise ModelFileError(f"{where} must have {name} of kind {kind.__name__}, found {found}; copy it again")
    _check_figures(record, where)
    expected = record.pop("config_sha256")
    if hashlib.sha256(canonical(record)).hexdigest() != expected:
        raise ModelFileError(f"{where} was changed after it was written (config_sha256 differs)")
    return record


# 训练数字里别处要拿来算的几个，其余只供人看
_FIGURE_KINDS: Dict[str, Tuple[type, ...]] = {
    "relative_mse": (int, float, type(None)),
    "collision_rate": (int, float),
    "utilization": (list,),
    "num_train_rows": (int,),
    "num_refit_rows": (int,),
    "data_sha256": (str,),
    "run_sha256": (str,),
    "trainer_config": (dict,),
    "notes": (list,),
}


def _check_figures(record: Mapping[str, Any], where: str) -> None:
    """配置与训练数字的嵌套有限、种类对。"""
    for name in ("config", "training"):
        if _depth_exceeds(record[name], _MAX_DEPTH):
            raise ModelFileError(f"{where} has {name} nested deeper than {_MAX_DEPTH} levels; copy it again")
    for name, kinds in _FIGURE_KINDS.items():
        value = record["training"].get(name)
        if name in record["training"] and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ModelFileError(f"{where} has training.{name} of kind {type(value).__name__}; copy it again")


def _depth_exceeds(value: Any, limit: int) -> bool:
    """嵌套是否超过 limit 层；递归本身因此也有界。"""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (limit < 0) or any(_depth_exceeds(child, limit - 1) for child in children)


def kind_of(tensor: torch.Tensor) -> str:
    """Dtype 与形状，例如 `float32 (4, 8)`。"""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_kinds(
    where: str, tensors: Mapping[str, torch.Tensor], kinds: Mapping[str, str], *, exactly: bool = False
) -> None:
    """张量的 dtype 与形状是配置要的那些；`exactly` 时也不许多。

    Raises:
        ModelFileError: 缺、多，或不是那一种。
    """
    for name in [*kinds, *(name for name in tensors if exactly and name not in kinds)]:
        want = kinds.get(name, "nothing")
        found = kind_of(tensors[name]) if name in tensors else "nothing"
        if want != found:
            raise ModelFileError(f"weights in {where} do not fit its config: {name} must be {want}, found {found}")


def _check_values(tensors: Mapping[str, torch.Tensor], where: str, error: type[InputError]) -> None:
    """浮点张量全部有限，码本与网络还不能大得不可能；NaN 会让 `argmin` 悄悄返回 0，每个物品都成了 (0, 0, 0)。"""
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bool((tensor.detach().view(torch.uint8) > 1).any()):
            raise error(f"{where} has a byte in {name} that is neither 0 nor 1")  # 读进来就成了 1，指纹对不上写下的
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = (float(v) for v in torch.aminmax(tensor.detach()))
        if name.endswith(".unit") and not low > 0:  # 网络除以它
            raise error(f"{where} has {name}={low:g}; it must be positive")
        bound = float("inf") if ".ema_" in name else MAX_ABS_WEIGHT  # EMA 的和随命中数增长
        if not (low > -float("inf") and high < float("inf") and -bound <= low and high <= bound):
            raise error(f"{where} has {low:g}…{high:g} in {name}; values must be finite and within ±{bound:g}")


def write_state(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    """原子地写出一个训练断点文件夹：在旁边的临时文件夹里写齐，再整体改名。调用者保证同时只有一个写者。

    Args:
        folder: 断点文件夹，还不存在。
        tensors: 文件名（不带后缀）→ 张量字典。
        state: 可写成 JSON 的其余状态。
    """
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # 上次写到一半被杀
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        hashes = {}
        for name, group in tensors.items():
            data = tensors_to_bytes({k: v.detach().cpu().contiguous() for k, v in group.items()})
            hashes[name] = hashlib.sha256(data).hexdigest()
            write_synced(temporary / f"{name}.safetensors", data)
        write_synced(temporary / "state.json", seal({**state, "sha256": hashes}, indent=None))
        sync_folder(temporary)
        os.replace(temporary, folder)
    except BaseException:  # 磁盘满：半个断点没有用，留着只占地方
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def read_state(folder: Path) -> Tuple[Dict[str, Dict[str, torch.Tensor]], Dict[str, Any]]:
    """读出并核对一个训练断点。

    Raises:
        ModelFileError: 断点损坏，或是没有校验和的旧版本写的。
    """
    where = f"checkpoint {str(folder)!r}"
    try:
        state, is_sealed = unseal((folder / "state.json").read_bytes(), f"{where} (state.json)", ModelFileError)
        if not is_sealed:
            raise ModelFileError(f"{where} (state.json) has no checksum: damaged, or of an older semid; start over")
        hashes = state.get("sha256")
        if not isinstance(hashes, dict) or not all(re.fullmatch(r"[a-z]+", name) for name in hashes):
            raise ModelFileError(f"{where} (state.json) lists no files; delete it and resume")
        groups = {name: (folder / f"{name}.safetensors").read_bytes() for name in hashes}
    except OSError as error:
        raise ModelFileError(f"{where} is unreadable ({error}); delete it and resume") from None
    for name, data in groups.items():
        if hashlib.sha256(data).hexdigest() != hashes[name]:
            raise ModelFileError(f"{where} is damaged ({name}.safetensors); delete it and resume")
    return {name: _parse(data, folder / f"{name}.safetensors") for name, data in groups.items()}, state


def _parse(data: bytes, path: Path) -> Dict[str, torch.Tensor]:
    """字节 → 张量字典；先整体读入再解析，核对过的与使用的就是同一份字节。"""
    try:
        return tensors_from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError：torch 没有的 dtype
        raise ModelFileError(f"{str(path)!r} is not a safetensors file ({error})") from None
