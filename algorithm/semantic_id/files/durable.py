"""落盘的动作：临时文件、原子地换上、让改名也落盘、同一个输出同时只有一个写者。

约定：断电或被杀之后，路径上要么是旧内容，要么是完整的新内容，绝没有半个文件；没有查看过的东西绝不替换。
临时文件总是 `.NAME.XXXXXXXX.tmp`（随机八位），独占地新建，所以不会跟着别人预先放好的符号链接走；死掉的进程留下的，
下一次写同一个文件时清掉（活着的写者锁着自己的临时文件，不会被误删）。
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Tuple

__all__ = [
    "FileTarget",
    "is_temporary",
    "lock_folder",
    "one_writer",
    "replacing",
    "sync_folder",
    "write_atomically",
    "write_synced",
]

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
_LOCK = re.compile(r"\.(?P<name>.+)\.lock", re.DOTALL)


def is_temporary(name: str) -> bool:
    """是不是本包写到一半的临时文件或锁；判断「目录里有没有别人的东西」时不算它们。"""
    return _TEMPORARY.fullmatch(name) is not None or _LOCK.fullmatch(name) is not None


def write_synced(path: Path, data: Any) -> None:
    """写入并 fsync；出错（例如磁盘满）时删掉写了一半的文件。只用在没有别的写者的目录里。

    Raises:
        OSError: 写不进去。
    """
    path.unlink(missing_ok=True)  # 上次留下的；若是符号链接，删的是链接自己
    with _created(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: Any) -> None:
    """原子地换上一个文件的内容。

    Raises:
        OSError: 写不进去；原有的文件不动，临时文件会被删掉。
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, before: Tuple[int, ...] | None = None, *, new: bool = False) -> Iterator[BinaryIO]:
    """在旁边写一个临时文件，正常结束时 fsync、换到 `path`；出错时删掉它，`path` 不动。

    Args:
        path: 最后的位置。
        before: 动手之前看到的那个文件（`stamp_of`）；给出时，换上之前核对仍是它。
        new: `path` 必须还不存在，换上的一刻也不许覆盖。

    Yields:
        二进制文件，可读可写可定位。

    Raises:
        FileExistsError: `path` 上出现了别的东西。
        OSError: 写不进去。
    """
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _created(temporary) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if new:
            _move_new(temporary, path)
        else:
            if before is not None and stamp_of(path) != before:
                raise FileExistsError(f"{str(path)!r} was changed while this command ran; it is left as it is")
            os.replace(temporary, path)
    sync_folder(path.parent)


class FileTarget:
    """一个输出文件的门：构造时验收，写完时只替换验收过的那一个。

    Args:
        path: 输出文件。
        overwrite: 允许替换已有的文件。

    Raises:
        FileExistsError: 已有而没有 overwrite，或它不是普通文件。
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path = path
        if path.is_dir():
            raise FileExistsError(f"output {str(path)!r} is a folder; give a file name")
        if path.exists() and not path.is_file():  # 有写权限的用户会把 /dev/null 换成一个普通文件
            raise FileExistsError(f"output {str(path)!r} is a device or a pipe; give a file name")
        self._before = stamp_of(path)
        if self._before and not overwrite:
            raise FileExistsError(f"output {str(path)!r} exists; pass --overwrite to replace it or choose another")

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """写它；换上时若这里出现了、或变成了别的文件，就拒绝，两份都不丢。

        Raises:
            FileExistsError: 运行途中别人动过它。
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, self._before or None, new=not self._before) as file:
            yield file


def stamp_of(path: Path) -> Tuple[int, ...]:
    """认出「还是那个文件」：设备、inode、大小与修改时刻；不存在为空。"""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


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
    if not _lock(descriptor):
        os.close(descriptor)
        raise _busy(folder)
    return descriptor


@contextmanager
def one_writer(target: Path) -> Iterator[None]:
    """同一个输出（文件或目录，存在与否）同时只让一个进程写；锁是旁边的 `.NAME.lock`，用完即删。

    被 kill -9 的写者留下的锁文件不再有人持有，下一个写者照常拿到它。

    Raises:
        FileExistsError: 另一个进程正在写它。
    """
    real = Path(os.path.realpath(target))
    real.parent.mkdir(parents=True, exist_ok=True)
    where = real.with_name(f".{real.name}.lock")
    while True:
        try:
            descriptor = os.open(where, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not real.is_dir():
                raise
            descriptor = lock_folder(real)  # 只能写目录里面，不能写它旁边：锁目录自己
            break
        if not _lock(descriptor):
            os.close(descriptor)
            raise _busy(target)
        try:
            if os.fstat(descriptor).st_ino == os.stat(where).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)  # 上一个写者恰在我们打开之后删掉了它：锁住的是没有名字的文件，重来
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(where)
        os.close(descriptor)


def _busy(target: Path) -> FileExistsError:
    return FileExistsError(f"another process is writing {str(target)!r}; wait for it or choose another output")


def _lock(descriptor: int) -> bool:
    """试着独占；别人拿着就返回 False。"""
    try:
        import fcntl
    except ImportError:  # 没有 fcntl 的系统
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    """独占地新建并锁住一个文件；离开时若它还在原名下且出了错，就删掉。"""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with open(descriptor, "w+b") as file:
            _lock(file.fileno())
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _move_new(temporary: Path, path: Path) -> None:
    """改名而绝不覆盖：硬链接遇到已有的名字会失败，这一步是原子的。"""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise FileExistsError(
            f"output {str(path)!r} appeared while this command ran; it is left as it is: choose another"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # 没有硬链接的文件系统：独占地占住名字，再换上；期间被杀只留下一个空文件，不会覆盖别人的
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(temporary, path)
        return
    os.unlink(temporary)


def _sweep(path: Path) -> None:
    """清掉写同一个文件时死去的进程留下的临时文件；还锁着的是活人的，不动。"""
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            found = _TEMPORARY.fullmatch(name)
            if found is None or found["name"] != path.name:
                continue
            descriptor = os.open(path.with_name(name), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if _lock(descriptor):
                    os.unlink(path.with_name(name))
            finally:
                os.close(descriptor)
