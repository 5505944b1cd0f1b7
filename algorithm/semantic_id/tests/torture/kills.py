"""kill −9：在随机的一次动磁盘之前，或随机的一个时刻，杀掉正在做的活。"""

from __future__ import annotations

import signal

from .jobs import Workshop, jobs_of
from .processes import Trial, Verdict, launch, run
from .world import World

__all__ = ["Kills"]


class Kills:
    """一次试验杀一次。

    Args:
        world: 输入。
    """

    def __init__(self, world: World) -> None:
        self.jobs = jobs_of(world.whole)
        self.world, self.by_clock = world, world.whole
        self.shop: Workshop | None = None

    def __call__(self, trial: Trial) -> Verdict:
        """选一件活，做到一半杀掉，看后果。"""
        self.shop = self.shop or Workshop(self.world, trial.folder)
        weights = [0.1 if job.name == "demo" else 1.0 for job in self.jobs]
        job = self.jobs[trial.index % len(self.jobs)] if not self.by_clock else trial.rng.choices(self.jobs, weights)[0]
        _, _, ops, seconds = self.shop.undisturbed(job)
        self.shop.set_up(job)
        if self.by_clock and trial.rng.random() < 0.4:
            what = f"{job.name} killed by the clock"
            child = launch(self.shop.argv(job), self.shop.bench)
            ended = child.wait_for(trial.rng.uniform(0, seconds))
            if ended is None:
                child.send(signal.SIGKILL)
                ended = child.wait()
        else:
            moment = trial.rng.randint(1, max(1, ops))
            what = f"{job.name} killed before write {moment} of {ops}"
            ended = run(self.shop.argv(job), self.shop.bench, kill_at=moment)
        if ended.code not in (0, -signal.SIGKILL):
            return Verdict(what, f"it ended by itself: {ended.code} {ended.err.strip()[-300:]}")
        return Verdict(what, self.shop.aftermath(job, trial.rng))
