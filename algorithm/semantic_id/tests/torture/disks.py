"""磁盘满：在一个几十 KB 的 tmpfs 上做活；没有权限挂载时改用文件大小的上限。"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .jobs import Workshop, jobs_of
from .processes import Trial, Verdict, run
from .world import World, contents

__all__ = ["Disks"]

_ROOMY = 256 << 20


class Disks:
    """一次试验给一种大小的磁盘。

    Args:
        world: 输入。
    """

    def __init__(self, world: World) -> None:
        self.jobs = [job for job in jobs_of(world.whole) if job.name != "demo"]
        self.world = world
        self.shop: Workshop | None = None
        self.disk: Path | None = None
        self.means = ""

    def __call__(self, trial: Trial) -> Verdict:
        """选一件活，在快满的磁盘上做，看后果。"""
        if self.shop is None:
            self._find_a_disk(trial.folder)
        assert self.shop is not None
        job = self.jobs[trial.index % len(self.jobs)] if not self.world.whole else trial.rng.choice(self.jobs)
        self._resize(_ROOMY)
        self.shop.undisturbed(job)
        self.shop.set_up(job)
        out = self.shop.bench / job.out
        if self.disk is None:
            sizes = [path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file()]
            limit = trial.rng.randrange(0, 2 * max([4096, *sizes]))
            what = f"{job.name} with files of at most {limit} bytes"
            ended = run(self.shop.argv(job), self.shop.bench, file_limit=limit)
        else:
            found = os.statvfs(self.disk)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            free = int(4096 * 2 ** trial.rng.uniform(0, 7.5)) // 4096 * 4096
            what = f"{job.name} with {free} bytes free"
            self._resize(used + free)
            ended = run(self.shop.argv(job), self.shop.bench)
            self._resize(_ROOMY)
        wrong = ended.complaint()
        if not wrong and ended.code == 2 and not any(w in ended.err for w in ("pace", "oo large")):
            wrong = f"the error does not say that the disk is full: {ended.err.strip()}"
        if not wrong and ended.code == 0 and contents(self.shop.bench / job.out) != self.shop.undisturbed(job).contents:
            wrong = "it says it succeeded, but other bytes are there"
        return Verdict(what, wrong or self.shop.aftermath(job, trial.rng))

    def _find_a_disk(self, folder: Path) -> None:
        disk = folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "torture", disk], capture_output=True)
        self.disk = disk if mounted.returncode == 0 else None
        self.means = "a small tmpfs" if self.disk else "a file-size limit (no right to mount a tmpfs)"
        self.shop = Workshop(self.world, disk)

    def _resize(self, size: int) -> None:
        if self.disk is not None:
            subprocess.run(["mount", "-o", f"remount,size={size}", self.disk], check=True, capture_output=True)

    def close(self) -> None:
        """卸下磁盘。"""
        if self.disk is not None:
            subprocess.run(["umount", self.disk], check=False, capture_output=True)
