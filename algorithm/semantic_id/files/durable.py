"""落盘的动作：写完即落盘、原子地换上新内容、让改名也落盘、给目录上锁。

约定：断电或被杀之后，路径上要么是旧内容，要么是完整的新内容，绝没有半个文件。
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["lock_folder", "sync_folder", "write_atomically", "write_synced"]


def write_synced(path: Path, data: Any) -> None:
    """写入并 fsync；出错（例如磁盘满）时删掉写了一半的文件。

    Raises:
        OSError: 写不进去。
    """
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: Any) -> None:
    """临时文件 → fsync → 改名 → 目录 fsync。

    Raises:
        OSError: 写不进去；原有的文件不动，临时文件会被删掉。
    """
    temporary = path.with_name(path.name + ".tmp")
    write_synced(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """让改名本身也落盘。"""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """对目录本身加锁，返回的描述符由调用者关闭；进程一死锁就没了。没有 fcntl 的系统上不加锁。

    Raises:
        FileExistsError: 另一个进程锁着它。
    """
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
