"""把特征来源编码成物品表：一块向量 → 一块编码 → 分片 → 清单。

形状字母：N 为物品数，B 为一块的行数，D 为特征维度，L 为层数。
只认 `SemanticIDModel` 协议。内存只随块长与分片走，不随 N 走（查重时另需与编号本身相当的内存）。

什么时候算写完：全部写进旁边的 `OUTPUT.partial`，清单最后写，再一次改名到位。中途出错，OUTPUT 上什么也没有；
已有的旧表在新表完整之前一个字节不动。
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import numpy as np

from algorithm.interfaces import SemanticIDModel

from ..durable import sync_folder
from ..vectors import Block, VectorSource, check_unique_ids
from .table import DEFAULT_ROWS_PER_PART, MANIFEST_NAME, CatalogError, CatalogWriter, find_stranger

__all__ = ["encode_block", "encode_catalog"]

# (已完成行数, 总行数)
Progress = Callable[[int, int], None]


def encode_catalog(
    model: SemanticIDModel,
    source: VectorSource,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    block_rows: int = 16384,
    rows_per_part: int = DEFAULT_ROWS_PER_PART,
    progress: Progress | None = None,
) -> Dict[str, Any]:
    """编码整个来源并写成物品表。

    Args:
        model: 满足协议的模型。
        source: `open_vectors` 的结果。
        output: 物品表目录；须不存在或为空。
        overwrite: 允许替换已有的物品表（只替换物品表，别的目录一律拒绝）。
        block_rows: 一次编码多少行；只影响内存与速度，不影响结果。
        rows_per_part: 一个分片多少行。
        progress: 每完成一块调用一次 `progress(done_rows, total_rows)`。

    Returns:
        可直接写成 JSON 的摘要：output, num_items, num_parts, bytes, codebook_sizes, fingerprint, features。

    Raises:
        FileExistsError: 输出已存在而没有 overwrite，或它不是物品表。
        ValueError: 维度不符、编号重复、数据有坏行。
        OSError: 磁盘满等；此时 output 上什么也没有（旧表还在）。
    """
    target = Path(os.path.realpath(output))  # 若是符号链接，换的是它指向的目录，而不是链接本身
    if source.dim != model.embedding_dim:
        raise ValueError(
            f"features {source.description} has width {source.dim}, but the model was built with "
            f"embedding_dim={model.embedding_dim}; use features of that width or train a new model"
        )
    _check_target(target, overwrite)
    check_unique_ids(source)
    with _partial_folder(target) as folder:
        writer = CatalogWriter(
            folder,
            codebook_sizes=model.codebook_sizes,
            fingerprint=model.fingerprint(),
            features=source.description,
            rows_per_part=rows_per_part,
        )
        for block in source.blocks(block_rows):
            writer.append(block.ids, encode_block(model, block))
            if progress is not None:
                progress(writer.num_items, source.num_rows)
        if writer.num_items != source.num_rows:
            raise CatalogError(f"read {writer.num_items} rows, but {source.description} promised {source.num_rows}")
        manifest = writer.seal()
        _publish(folder, target)
    return {
        "output": os.fspath(output),
        "num_items": manifest["num_items"],
        "num_parts": len(manifest["parts"]),
        "bytes": sum(part["bytes"] for part in manifest["parts"]),
        "codebook_sizes": manifest["codebook_sizes"],
        "fingerprint": manifest["model_fingerprint"],
        "features": manifest["features"],
    }


def encode_block(model: SemanticIDModel, block: Block) -> np.ndarray:
    """一块向量 → (B, L) int32 编码；纯函数，将来分布到集群上的就是它。"""
    import torch

    features = torch.from_numpy(block.vectors).to(model.feature_mean.device)  # (B, D)
    return model.encode_codes(features).cpu().numpy().astype(np.int32)  # (B, L)


def _check_target(target: Path, overwrite: bool) -> None:
    """输出须不存在、为空，或是允许替换的物品表；绝不删别人的文件。"""
    old = _old_of(target)
    if not target.exists() and (old / MANIFEST_NAME).is_file() and find_stranger(old) is None:
        os.rename(old, target)  # 上次恰在两次改名之间被杀：旧表完整，先放回原处
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"output {str(target)!r} exists and is a file; choose another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"output folder {str(target)!r} exists; pass --overwrite to replace it or choose another")
    for folder in (target, old):
        stranger = find_stranger(folder) if folder.is_dir() else None
        if stranger is not None:
            raise FileExistsError(
                f"folder {str(folder)!r} holds {stranger!r}, which no catalog has, so --overwrite will not remove it; "
                "choose another output"
            )


def _old_of(target: Path) -> Path:
    """旧表在替换途中的去处。"""
    return target.with_name(target.name + ".old")


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """在旁边建 `OUTPUT.partial` 并上锁；正常时它已改名到位，出错时删掉。

    上一次被 kill -9 留下的残骸（锁随进程消失）直接清掉；锁还在，说明另一个进程正在写，拒绝。

    Raises:
        OSError: 磁盘满、无权限；错误一行说清。
    """
    folder = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    lock = _lock(folder)
    try:
        stranger = find_stranger(folder)
        if stranger is not None:
            raise FileExistsError(f"{str(folder)!r} holds {stranger!r}, not ours; move that folder away")
        for leftover in folder.iterdir():
            leftover.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = f"no space left while writing {str(target)!r}; free some space and run again"
            raise OSError(errno.ENOSPC, reason) from None
        raise
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """对目录本身加锁（进程一死锁就没了）；没有 fcntl 的系统上不加锁。"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError:
        os.close(descriptor)
        raise FileExistsError(
            f"another process is writing {str(folder)!r}; wait for it or choose another output"
        ) from None
    return descriptor


def _publish(folder: Path, target: Path) -> None:
    """改名到位。旧表先挪到 `OUTPUT.old`，新表就位之后才删；两次改名之间被杀，下次运行会把旧表放回来。"""
    old = _old_of(target)
    replaced = target.is_dir() and any(target.iterdir())
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except BaseException:
        if replaced:
            os.rename(old, target)
        raise
    sync_folder(target.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)
