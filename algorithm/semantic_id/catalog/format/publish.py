"""物品表怎样就位：全部写进旁边的 `OUTPUT.partial`（上锁），写齐了一次改名；绝不删别人的文件。

任何时刻被杀，OUTPUT 上要么是旧表、要么是新表；恰在两次改名之间，旧表完整地在 `OUTPUT.old`，下次运行会把它放回来。
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

from ...files.durable import lock_folder, sync_folder, write_atomically
from .manifest import MANIFEST_NAME, STAGING_NAME, find_stranger

__all__ = ["check_target", "partial_folder", "publish"]

_PLAN_NAME = "PLAN.json"


def check_target(target: Path, overwrite: bool) -> None:
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
def partial_folder(target: Path, plan: Dict[str, Any], resume: bool) -> Iterator[Path]:
    """在旁边建 `OUTPUT.partial` 并上锁；正常时它已改名到位，出错时删掉（resume 时留着已编码的分片）。

    上一次被 kill -9 留下的残骸（锁随进程消失）：resume 就接着用，否则直接清掉；锁还在，说明另一个进程正在写，拒绝。

    Raises:
        OSError: 磁盘满、无权限；错误一行说清。
        ValueError: 要接着的那次编码参数不同。
    """
    folder = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    lock = lock_folder(folder)
    try:
        stranger = find_stranger(folder)
        if stranger is not None:
            raise FileExistsError(f"{str(folder)!r} holds {stranger!r}, not ours; move that folder away")
        try:
            _prepare_staging(folder, plan, resume)
            yield folder
        except Exception:
            if not resume:  # 被 Ctrl-C 打断的留着：加 --resume 可以接着来
                shutil.rmtree(folder, ignore_errors=True)
            raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = f"no space left while writing {str(target)!r}; free some space and run again"
            raise OSError(errno.ENOSPC, reason) from None
        raise
    finally:
        os.close(lock)


def _prepare_staging(folder: Path, plan: Dict[str, Any], resume: bool) -> None:
    """清掉上一次的残骸，只在 resume 时留下编码好的分片；参数不同就拒绝，混着两次编码的物品表谁也说不清。"""
    staging = folder / STAGING_NAME
    where = staging / _PLAN_NAME
    if resume and where.is_file():
        before = json.loads(where.read_text(encoding="utf-8"))
        for key, value in plan.items():
            if before.get(key) != value:
                raise ValueError(
                    f"--resume: the interrupted run had {key}={before.get(key)!r}, this one has {value!r}; use "
                    "the same model, features and options, or start over without --resume"
                )
        for leftover in staging.iterdir():
            if leftover.suffix == ".tmp" or leftover.name.startswith("scratch-"):
                leftover.unlink()
    else:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_atomically(where, (json.dumps(plan, indent=2, ensure_ascii=False) + "\n").encode())
    for leftover in folder.iterdir():
        if leftover.name != STAGING_NAME:
            leftover.unlink()


def publish(folder: Path, target: Path) -> None:
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
