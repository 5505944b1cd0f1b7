"""两个进程同写一个输出：一个停在半路，另一个跑完，再让前一个走完。恰好一个成，或两个结果前后相接。"""

from __future__ import annotations

import signal
from typing import Dict, List, Tuple

from .jobs import Job, Workshop, jobs_of
from .processes import Ended, Trial, Verdict, launch, run
from .world import World, contents

__all__ = ["Pairs"]

_PATIENCE_S = 15.0


class Pairs:
    """一次试验一对。

    Args:
        world: 输入。
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.pairs = _pairs(world.whole)
        self.shop: Workshop | None = None
        self.serial: Dict[Tuple[str, str], Tuple[Tuple[int, int], Dict[str, str]]] = {}

    def __call__(self, trial: Trial) -> Verdict:
        """第一个停在第 n 次动磁盘之前。"""
        self.shop = shop = self.shop or Workshop(self.world, trial.folder)
        a, b = self.pairs[trial.index % len(self.pairs)] if not self.world.whole else trial.rng.choice(self.pairs)
        ops = shop.undisturbed(a).ops
        shop.undisturbed(b)
        orders = {"ab": self._in_turn(a, b), "ba": self._in_turn(b, a)}
        stop_at = trial.rng.randint(1, ops)
        shop.set_up(a)
        first, second = self._meet(shop, a, b, stop_at)
        what = f"{a.name} stopped before write {stop_at} of {ops}, {b.name} meanwhile"
        for name, ended in ((a.name, first), (b.name, second)):
            if ended.complaint():
                return Verdict(what, f"{name}: {ended.complaint()}")
        if shop.neighbour_lost():
            return Verdict(what, "somebody else's file is gone")
        return Verdict(what, self._judge(a, b, (first, second), orders, stop_at))

    def _meet(self, shop: Workshop, a: Job, b: Job, stop_at: int) -> Tuple[Ended, Ended]:
        one = launch(shop.argv(a), shop.bench, stop_at=stop_at)
        first = one.wait_or_stop()
        two = launch(shop.argv(b), shop.bench)
        if first is not None:
            return first, two.wait()
        second = two.wait_for(_PATIENCE_S)  # 它若在等前一个，就让前一个先走完
        one.send(signal.SIGCONT)
        return one.wait(), second or two.wait()

    def _judge(
        self,
        a: Job,
        b: Job,
        ended: Tuple[Ended, Ended],
        orders: Dict[str, Tuple[Tuple[int, int], Dict[str, str]]],
        stop_at: int,
    ) -> str:
        assert self.shop is not None
        found, names = contents(self.shop.bench / a.out), self.shop.names()
        codes = (ended[0].code, ended[1].code)
        alone = [self.shop.undisturbed(job).contents for job in (a, b)]
        if codes == (2, 2):
            return f"both are refused: {ended[0].err.strip()} | {ended[1].err.strip()}"
        if 2 in codes:
            winner = codes.index(0)
            if found != alone[winner]:
                return f"only {(a, b)[winner].name} succeeded, but its result is not what is there"
        else:
            allowed = [orders["ab"]]
            if stop_at == 1 or "--overwrite" not in a.argv:
                allowed.append(orders["ba"])
            if all(found != result for codes_there, result in allowed if codes_there == (0, 0)):
                return "both say they succeeded, and one result is lost"
        return "" if names == [a.out] else f"left behind: {names}"

    def _in_turn(self, a: Job, b: Job) -> Tuple[Tuple[int, int], Dict[str, str]]:
        """一前一后做：退出码与结果。"""
        if (a.name, b.name) not in self.serial:
            assert self.shop is not None
            self.shop.set_up(a)
            codes = tuple(run(self.shop.argv(job), self.shop.bench).code for job in (a, b))
            self.serial[a.name, b.name] = codes, contents(self.shop.bench / a.out)  # type: ignore[assignment]
        return self.serial[a.name, b.name]


def _pairs(whole: bool) -> List[Tuple[Job, Job]]:
    known = {job.name: job for job in jobs_of(whole)}
    train, encode, update = known["train"], known["encode"], known["update-suffix"]
    nine = Job("train-nine", (*train.argv, "--seed", "9"), "model")
    late = Job("update-late", ("update", "OUT", "@late.parquet", "--model", "@model"), "catalog", "suffix")
    over = Job("encode-over-free", (*encode.argv, "--overwrite", "--unique=nearest-free"), "catalog", "suffix")
    wide = Job("encode-wide", (*encode.argv, "--unique=nearest-free"), "catalog")
    moved = Job("migrate-free", ("migrate", "@nearest-free", "@other", "@x.parquet", "--output", "OUT"), "catalog")
    judged = Job("evaluate-other", ("evaluate", "@other", "@x.parquet", "--output", "OUT"), "evaluation")
    shown = Job("export-suffix", ("export", "@suffix", "--index-json", "OUT"), "files", out="out.json")
    paged = Job("report-en", ("report", "@evaluation", "--output", "OUT", "--lang", "en"), "files", out="out.html")
    undone = Job("decode-free", ("decode", "@model", "@nearest-free", "--output", "OUT"), "files", out="out.npy")
    taken = Job("import-sizes", (*known["import"].argv, "--codebook-sizes", "64,64,64"), "catalog")
    pairs = [
        (train, nine), (encode, wide), (update, late), (update, over), (over, update), (known["migrate"], moved),
        (known["evaluate"], judged), (known["export"], shown), (known["report"], paged), (known["decode"], undone),
        (known["import"], taken), (late, update),
    ]  # fmt: skip
    if whole:
        again = Job("train-over-nine", (*train.argv, "--seed", "8", "--overwrite"), "model", "other")
        two = known["tokens"]
        small = Job("tokens-suffix", (*two.argv, "--suffix-size", "4"), "files")
        pairs += [(known["train-over"], again), (known["encode-over"], over), (two, small)]
    return pairs
