"""物品表怎样就位：一次只有一个写者；全部写进旁边的 `OUTPUT.partial`，写齐了一次改名；没有查看过的东西绝不删。

任何时刻被杀，OUTPUT 上要么是旧表、要么是新表；恰在两次改名之间，旧表完整地在 `OUTPUT.old`，下次运行会把它放回来。
运行途中 OUTPUT 上出现或变动了什么（用户的文件、另一份物品表、更新过的一代），就不就位：两份都留着，由用户定。
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

from ...errors import InputError
from ...files.durable import one_writer, stamp_of, sync_folder, write_atomically
from ...files.sealed import parse_json
from .manifest import MANIFEST_NAME, STAGING_NAME, find_stranger, names_of

__all__ = ["TargetChangedError", "new_catalog", "sweep"]

_PLAN_NAME = "PLAN.json"
# 相对路径 → 认出「还是那个文件」的戳
_Contents = Dict[str, Tuple[int, ...]]


class TargetChangedError(FileExistsError):
    """运行途中别人动过输出目录；写好的那一份还在 `OUTPUT.partial`。"""


@contextmanager
def new_catalog(target: Path, plan: Dict[str, Any], *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """给出旁边的 `OUTPUT.partial` 供写入（其中 `staging` 放途中的文件）；正常结束时它就位，出错时删掉。

    上一次被 kill -9 留下的残骸：`resume` 就接着用，否则直接清掉。`resume` 时出错也留着已编码的分片。

    Args:
        target: 物品表目录，已解开符号链接；须不存在、为空，或是允许替换的物品表。
        plan: 这次编码由什么决定；接着上次的须全同。
        overwrite: 允许替换已有的物品表。
        resume: 接着上次的。

    Raises:
        FileExistsError: 另一个进程在写；输出已存在而没有 overwrite，或有别人的文件。
        TargetChangedError: 运行途中别人动过输出目录。
        OSError: 磁盘满、无权限；错误一行说清。
        ValueError: 要接着的那次编码参数不同。
    """
    folder = target.with_name(target.name + ".partial")
    with one_writer(target):
        seen = _check_target(target, overwrite)
        stranger = find_stranger(folder) if folder.is_dir() else None
        if stranger is not None:
            raise FileExistsError(f"{str(folder)!r} holds {stranger!r}, not ours; move that folder away")
        try:
            folder.mkdir(exist_ok=True)
            _prepare_staging(folder, plan, resume)
            yield folder
            _publish(folder, target, seen)
        except TargetChangedError:
            raise
        except Exception as error:
            if not resume:  # 被 Ctrl-C 打断的留着：加 --resume 可以接着来
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                reason = f"no space left while writing {str(target)!r}; free some space and run again"
                raise OSError(errno.ENOSPC, reason) from None
            raise


def sweep(folder: Path, manifest: Dict[str, Any]) -> None:
    """删掉这一代与上一代都不用的文件：更早的一代，以及中途被杀留下的；绝不碰别人的文件。

    Raises:
        FileExistsError: 目录里有别人的文件。
    """
    stranger = find_stranger(folder)
    if stranger is not None:
        raise FileExistsError(f"catalog folder {str(folder)!r} holds {stranger!r}, not ours; move it away")
    for name in _contents(folder):
        if name not in names_of(manifest):
            (folder / name).unlink()
    with contextlib.suppress(FileNotFoundError):
        (folder / STAGING_NAME).rmdir()
    _remove_old(folder)


def _check_target(target: Path, overwrite: bool) -> _Contents:
    """输出须不存在、为空，或是允许替换的物品表。返回看到的内容，就位时只替换它。"""
    old = _old_of(target)
    if not target.exists() and (old / MANIFEST_NAME).is_file() and find_stranger(old) is None:
        os.rename(old, target)  # 上次恰在两次改名之间被杀：旧表完整，先放回原处
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"output {str(target)!r} exists and is a file; choose another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return {}
    if not overwrite:
        raise FileExistsError(f"output folder {str(target)!r} exists; pass --overwrite to replace it or choose another")
    seen = _contents(target)
    for folder in (target, old):
        stranger = find_stranger(folder) if folder.is_dir() else None
        if stranger is not None:
            raise FileExistsError(
                f"folder {str(folder)!r} holds {stranger!r}, which no catalog has, so --overwrite will not remove it; "
                "choose another output"
            )
    return seen


def _old_of(target: Path) -> Path:
    """旧表在替换途中的去处。"""
    return target.with_name(target.name + ".old")


def _contents(folder: Path) -> _Contents:
    """目录里的每个文件与它的戳；不存在则为空，是个文件则只有它自己。"""
    if folder.exists() and not folder.is_dir():
        return {"": stamp_of(folder)}
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            found[path.relative_to(folder).as_posix()] = stamp_of(path)
    return found


def _prepare_staging(folder: Path, plan: Dict[str, Any], resume: bool) -> None:
    """清掉上一次的残骸，只在 resume 时留下编码好的分片；参数不同就拒绝，混着两次编码的物品表谁也说不清。"""
    staging = folder / STAGING_NAME
    where = staging / _PLAN_NAME
    if resume and where.is_file():
        before = parse_json(where.read_bytes(), str(where), InputError)
        if not isinstance(before, dict):
            raise InputError(f"--resume: {str(where)!r} is no plan of an encoding; start over without --resume")
        for key, value in plan.items():
            if before.get(key) != value:
                raise InputError(
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


def _publish(folder: Path, target: Path, seen: _Contents) -> None:
    """改名到位。旧表先挪到 `OUTPUT.old`，新表就位之后才删；挪开的若不是看过的那一份，就放回去。"""
    old = _old_of(target)
    if _contents(target) != seen:
        raise _changed(target, folder)
    _remove_old(target)
    if seen:
        os.rename(target, old)
        if _contents(old) != seen:
            os.rename(old, target)
            raise _changed(target, folder)
    try:
        os.rename(folder, target)  # 目标若不空，改名会失败，而不会覆盖
    except BaseException as error:
        if seen and not target.exists():
            os.rename(old, target)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _changed(target, folder) from None
        raise
    sync_folder(target.parent)
    _remove(old, seen)
    shutil.rmtree(target / STAGING_NAME)  # 就位之后才删：此前任何时刻被杀，都不必重新编码


def _changed(target: Path, folder: Path) -> TargetChangedError:
    return TargetChangedError(
        f"output folder {str(target)!r} changed while this command ran, so it is left as it is; the new catalog is "
        f"whole in {str(folder)!r}: move one of the two away (`semid encode --resume` skips what is encoded)"
    )


def _remove_old(target: Path) -> None:
    """上一次替换没来得及删的旧表；有别人的文件就整个留着。"""
    old = _old_of(target)
    if old.is_dir() and find_stranger(old) is None:
        _remove(old, _contents(old))


def _remove(folder: Path, names: _Contents) -> None:
    """删掉点过名的文件；目录若还不空，就是别人刚放了东西，留着。"""
    if not names:
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()
    for place in (folder / STAGING_NAME, folder):
        with contextlib.suppress(OSError):
            place.rmdir()
