"""输出目录的门：训练与演示只动自己写的东西，绝不删别人的文件，也不替换没有验收过的。

训练目录里，`checkpoints/` 在就是没训练完（从初始化之前起，到模型写好为止），不在而有 config.json 就是训练完了；
所以任何时刻被 kill -9，都认得出该续训还是已完成。同时只有一个写者（`files/durable.py` 的锁）。
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Collection, Dict, Iterator, List, Set, Tuple

from ..errors import InputError
from .checkpoint import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, is_our_card, is_our_config
from .durable import is_temporary, one_writer, replacing, stamp_of, sync_folder

__all__ = ["RunFolder", "check_demo_folder", "new_folder", "open_run_folder"]

CHECKPOINTS = "checkpoints"
LOG_NAME = "metrics.jsonl"
CURVES = "tensorboard"
ROWS_NAME = "rows.f32"
_FILES = (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, LOG_NAME)
# 训练目录里我们写的名字；`semid evaluate --output my-model/evaluation` 也在里面
_RUN_NAMES = {*_FILES, CHECKPOINTS, CURVES, "evaluation"}
_EPOCH = re.compile(r"epoch-\d{6}")
_EVENTS = re.compile(r"events\.out\.tfevents\..+")
# 从前的版本写到一半的文件与断点叫这些名字
_OLD_TEMPORARIES = {f".{name}.tmp" for name in _FILES} | {f"{LOG_NAME}.tmp"}
_OLD_EPOCH = re.compile(r"epoch-\d{6}\.tmp")
_DEMO_NAMES = {"model", "catalog", "demo.json", "report.html"}


@contextmanager
def open_run_folder(path: Path, *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """独占一个训练目录；中途出错时，还没有断点就收拾干净，好像没跑过，有断点就留着续训。

    Args:
        path: 训练目录，不必存在。
        resume: 接着被打断的训练；没有断点就从头开始。
        overwrite: 允许替换已有的训练。

    Raises:
        FileExistsError: 另一个进程正在写它，或里面有不该动的东西。
        ValueError: resume 与 overwrite 都给了。
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; choose one")
    existed = path.exists()
    with one_writer(path):
        folder = RunFolder(path, resume=resume, overwrite=overwrite)
        try:
            yield folder
        except BaseException:
            folder.abandon()
            if not existed and path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            raise


class RunFolder:
    """一个验收过的训练目录；由 `open_run_folder` 在锁里构造。

    Attributes:
        path: 目录。
        checkpoints: 断点所在的子目录。
        finished: 里面是一个训练完的模型，又要续训。
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool) -> None:
        self.path, self.checkpoints = path, path / CHECKPOINTS
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"output {str(path)!r} exists and is a file; choose another folder")
        names = _names_in(path)
        _check_ours(path, names)
        self.finished = resume and CONFIG_NAME in names and CHECKPOINTS not in names
        if names and not resume and not overwrite:
            go_on = "pass --resume (resume=True) to go on or --overwrite (overwrite=True) to start over"
            hint = go_on if CHECKPOINTS in names else "pass --overwrite (overwrite=True)"
            raise FileExistsError(f"output folder {str(path)!r} exists; {hint}, or choose another")
        self._starts_over = not resume
        self._had_curves = CURVES in names
        self._seen: Dict[str, Tuple[int, ...]] = {name: stamp_of(path / name) for name in _FILES}

    def begin(self) -> None:
        """开工：从此这里是没训练完的训练。从头开始时，先把旧断点作废。"""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        sync_folder(self.path)
        if self._starts_over:
            self.drop_epochs()

    def epochs(self) -> List[Path]:
        """写完整的断点，从旧到新。"""
        return sorted(p for p in self.checkpoints.glob("epoch-*") if _EPOCH.fullmatch(p.name))

    def drop_epochs(self, keep: Path | None = None) -> None:
        """删掉断点，`keep` 除外；先改名再删，所以叫 epoch-N 的总是完整的。"""
        for epoch in self.epochs():
            if epoch != keep:
                _remove(epoch)

    def write_log(self, data: bytes) -> None:
        """换上 metrics.jsonl。

        Raises:
            FileExistsError: 途中别人动过它。
        """
        with replacing(self.path / LOG_NAME, self._seen[LOG_NAME]) as file:
            file.write(data)
        self._seen[LOG_NAME] = stamp_of(self.path / LOG_NAME)

    def check_unchanged(self) -> None:
        """写模型之前：要替换的还是开工时验收过的那些。

        Raises:
            FileExistsError: 途中出现了别的文件；断点还在，移走它之后可以续训。
        """
        for name, before in self._seen.items():
            if name == CARD_NAME and (self.path / name).exists() and not is_our_card(self.path / name):
                continue  # 用户自己的说明：模型卡让给它
            if stamp_of(self.path / name) != before:
                raise FileExistsError(
                    f"{str(self.path / name)!r} appeared or changed while training ran; it is left as it is: "
                    "move it away and finish with --resume (resume=True)"
                )

    def finish(self) -> None:
        """模型写好之后：断点、转存的行与被打断的运行留下的临时文件都不要了。"""
        for path in self.path.iterdir():
            if (is_temporary(path.name) and _is_our_temporary(path.name)) or path.name in _OLD_TEMPORARIES:
                _remove(path)
        if not _strangers_in(self.checkpoints):
            _remove(self.checkpoints)
        else:  # 别人途中放了东西进来：只拿走自己的
            self.drop_epochs()
            (self.checkpoints / ROWS_NAME).unlink(missing_ok=True)

    def abandon(self) -> None:
        """出错了：转存的行用不着了；还没有断点就像没跑过一样。"""
        (self.checkpoints / ROWS_NAME).unlink(missing_ok=True)
        if self.epochs():
            return
        if not self._had_curves:
            for events in (self.path / CURVES).glob("events.out.tfevents.*"):
                events.unlink()
            with contextlib.suppress(OSError):
                (self.path / CURVES).rmdir()
        if self.checkpoints.is_dir() and not _strangers_in(self.checkpoints):
            _remove(self.checkpoints)


def _names_in(path: Path) -> Set[str]:
    """目录里的名字，不算写到一半的临时文件；不存在为空。"""
    names = {child.name for child in path.iterdir()} if path.is_dir() else set()
    return {name for name in names if not is_temporary(name) and name not in _OLD_TEMPORARIES}


def _check_ours(path: Path, names: Set[str]) -> None:
    """目录为空，或只有一次训练会写的东西。"""
    strangers = sorted(names - _RUN_NAMES)
    if CONFIG_NAME in names and not is_our_config(path / CONFIG_NAME):
        strangers.append(CONFIG_NAME)
    if CHECKPOINTS in names:
        strangers += [f"{CHECKPOINTS}/{name}" for name in _strangers_in(path / CHECKPOINTS)]
    marks = names & {CONFIG_NAME, LOG_NAME, CHECKPOINTS}
    # 从前的版本在初始化时被杀，只留下曲线
    if names == {CURVES} and all(_EVENTS.fullmatch(child.name) for child in (path / CURVES).glob("*")):
        marks = {CURVES}
    if strangers or (names and not marks):
        raise FileExistsError(
            f"output folder {str(path)!r} holds {(strangers or sorted(names))[0]!r}, which is no training run; "
            "choose another folder"
        )


def _strangers_in(checkpoints: Path) -> List[str]:
    """断点目录里不是我们写的名字。"""
    if not checkpoints.is_dir():
        return [""] if checkpoints.exists() else []
    ours = (_EPOCH, _OLD_EPOCH, re.compile(re.escape(ROWS_NAME)))
    names = sorted(child.name for child in checkpoints.iterdir())
    return [name for name in names if not is_temporary(name) and not any(p.fullmatch(name) for p in ours)]


def _is_our_temporary(name: str) -> bool:
    """`.NAME.XXXXXXXX.tmp` 里的 NAME 是不是训练写的。"""
    return any(name.startswith(f".{ours}.") for ours in (*_FILES, CHECKPOINTS))


def _remove(path: Path) -> None:
    """删一个文件或目录；目录先改成临时名，删到一半被杀也不会被当成完整的。"""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    doomed = path if is_temporary(path.name) else path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    if doomed != path:
        os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_demo_folder(output: Path) -> None:
    """只替换演示自己写的目录。"""
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"output {str(output)!r} exists and is a file; choose another folder")
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    # 被杀的演示留下的：写到一半的文件、训练与编码的锁
    names = {name for name in names if not name.endswith((".tmp", ".partial", ".old")) and not is_temporary(name)}
    if names and (names - _DEMO_NAMES or "demo.json" not in names):
        raise FileExistsError(
            f"output folder {str(output)!r} was not made by `semid demo`; choose another with --output"
        )


@contextmanager
def new_folder(output: Path, ours: Collection[str]) -> Iterator[Path]:
    """给出旁边的 `OUTPUT.partial` 供写入；正常结束时改名到位，出错时删掉（半成品没有用、不能续跑的命令用它）。

    Args:
        output: 输出目录，须不存在或为空。
        ours: 写的时候最上层会出现的名字；上次被打断留下的只含这些，就清掉。

    Raises:
        FileExistsError: 输出已存在、运行途中出现了，或另一个进程在写。
    """
    exists = f"output {str(output)!r} exists; choose another folder"
    folder = output.with_name(output.name + ".partial")
    with one_writer(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(exists)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        strangers = [name for name in names if name not in ours and not is_temporary(name)]
        if strangers or (folder.exists() and not folder.is_dir()):
            raise FileExistsError(f"{str(folder)!r} holds {(strangers or ['a file'])[0]!r}, not ours; move it away")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
            os.rename(folder, output)  # 目标若不空，改名会失败，而不会覆盖
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(f"{exists} (it appeared while this command ran, and is left as it is)") from None
            raise
        sync_folder(output.resolve().parent)
