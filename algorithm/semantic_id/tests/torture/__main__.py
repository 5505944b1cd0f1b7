"""折磨：`make torture ARGS="--minutes 30 --seed 1"`。

按种子一次一次地试，直到时间用完；每一次只由（种子、哪一种、第几次）决定，所以每个失败都可以单独重来：
`make torture ARGS="--seed 1 --only kills --case 17"`。有失败退出码 1。
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pkgutil
import platform
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # 分叉之前不许有线程
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

import algorithm.semantic_id as package  # noqa: E402

from .damage import Damage  # noqa: E402
from .disks import Disks  # noqa: E402
from .fuzz import Fuzz  # noqa: E402
from .kills import Kills  # noqa: E402
from .pairs import Pairs  # noqa: E402
from .processes import Trial, Verdict, call  # noqa: E402
from .ties import Ties  # noqa: E402
from .world import World, contents  # noqa: E402

_MEMORY = 3 << 30


class Attack(NamedTuple):
    """一种折磨。

    Attributes:
        new: 世界 → 做一次试验的东西。
        share: 长的运行里占几成时间。
        batch: 一批几次；`forked` 时一批在一个分叉出去的进程里。
        forked: 试验本身不分叉，为了快与安全整批放进一个有内存上限的进程。
        short: 短的一段做几次。
    """

    new: Callable[[World], Callable[[Trial], Verdict]]
    share: float
    batch: int
    forked: bool
    short: int


ATTACKS: Dict[str, Attack] = {
    "kills": Attack(Kills, 0.3, 5, False, 8),
    "disks": Attack(Disks, 0.1, 5, False, 4),
    "pairs": Attack(Pairs, 0.15, 3, False, 4),
    "flips": Attack(lambda world: Damage(world, cut=False), 0.13, 60, True, 100),
    "cuts": Attack(lambda world: Damage(world, cut=True), 0.1, 60, True, 80),
    "fuzz": Attack(Fuzz, 0.15, 250, True, 400),
    "ties": Attack(Ties, 0.07, 20, True, 30),
}


class Tally:
    """一种折磨试了几次、错了哪些、花了几秒。"""

    def __init__(self) -> None:
        self.trials, self.seconds = 0, 0.0
        self.failures: List[str] = []


class Session:
    """一次运行。

    Args:
        seed: 种子。
        folder: 工作目录。
        whole: 长的运行，连慢的也做。
    """

    def __init__(self, seed: int, folder: Path, whole: bool) -> None:
        self.seed, self.folder = seed, folder
        (folder / "world").mkdir()
        self.world = World(folder / "world", whole)
        self.tallies = {name: Tally() for name in ATTACKS}
        self._made: Dict[str, Any] = {}

    def batch(self, name: str, first: int, count: int) -> None:
        """做 [first, first + count) 这几次。"""
        tally, started = self.tallies[name], time.perf_counter()
        for index, verdict in self._verdicts(name, first, count):
            tally.trials += 1
            if verdict.wrong:
                short = "" if self.world.whole else " --short"
                again = f'make torture ARGS="--seed {self.seed} --only {name} --case {index}{short}"'
                tally.failures.append(f"{name}: {verdict.what}: {verdict.wrong}")
                print(f"FAIL {tally.failures[-1]}\n  again: {again}", file=sys.stderr, flush=True)
        tally.seconds += time.perf_counter() - started

    def _verdicts(self, name: str, first: int, count: int) -> List[Tuple[int, Verdict]]:
        attack = ATTACKS[name]
        if name not in self._made:
            self._made[name] = attack.new(self.world)
        trials = [
            Trial(index, random.Random(f"{self.seed}/{name}/{index}"), self.folder / name)
            for index in range(first, first + count)
        ]
        (self.folder / name).mkdir(exist_ok=True)
        if not attack.forked:
            return [(trial.index, self._attempt(self._made[name], trial)) for trial in trials]

        def work(emit: Callable[[Any], None]) -> None:
            torch.set_num_threads(1)
            attempt = attack.new(self.world)
            for trial in trials:
                emit(attempt(trial))

        found, death = call(work, _MEMORY)
        verdicts = [(first + place, Verdict(*value)) for place, value in enumerate(found)]
        if death:
            verdicts.append((first + len(found), Verdict("the process", death)))
        return verdicts

    @staticmethod
    def _attempt(made: Callable[[Trial], Verdict], trial: Trial) -> Verdict:
        try:
            return made(trial)
        except RuntimeError as error:  # 没有人打扰也做不成的活：记下来，别的照做
            return Verdict("before the attack", str(error))

    def close(self) -> None:
        """收拾，并看看有没有人动过输入。"""
        for made in self._made.values():
            if isinstance(made, Disks):
                made.close()
        if contents(self.folder / "world") != self.world.before:
            self.tallies["kills"].failures.append("an input file was changed by a command that only reads it")

    def summary(self) -> Dict[str, Any]:
        """可写成 JSON 的总结。"""
        disks = self._made.get("disks")
        return {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "seed": self.seed,
            "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {
                "semid": package.__version__, "python": platform.python_version(), "torch": torch.__version__,
                "numpy": np.__version__, "pyarrow": pa.__version__,
            },
            "full_disk_by": getattr(disks, "means", ""),
            "attacks": {
                name: {"trials": t.trials, "seconds": round(t.seconds, 1), "failures": t.failures}
                for name, t in self.tallies.items()
                if t.trials
            },
        }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def preload(whole: bool) -> None:
    """在父进程里先导入一切：分叉出去的每一个命令就不必再导入。导入不算什么，所以还是没有线程。"""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".tests" not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in ("jinja2", "tensorboard.compat.proto.event_pb2", "torch.utils.tensorboard"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if whole:
        with contextlib.suppress(ImportError):
            importlib.import_module("transformers").AutoTokenizer  # noqa: B018  # 真的导入，不只是占位


def run_for(session: Session, names: List[str], seconds: float) -> None:
    """轮流，谁用掉的时间离它该占的最远就轮到谁。"""
    started, said = time.perf_counter(), 0.0
    while time.perf_counter() - started < seconds:
        name = min(names, key=lambda n: session.tallies[n].seconds / ATTACKS[n].share)
        session.batch(name, session.tallies[name].trials, ATTACKS[name].batch)
        gone = time.perf_counter() - started
        if sys.stderr.isatty() or gone - said > 30:
            said = gone
            counts = "  ".join(f"{n} {session.tallies[n].trials}" for n in names)
            wrong = sum(len(t.failures) for t in session.tallies.values())
            end = "\r" if sys.stderr.isatty() else "\n"
            print(f"{gone:5.0f}/{seconds:.0f} s  {counts}  failures {wrong}", end=end, file=sys.stderr, flush=True)


def main() -> int:
    """解析参数，跑，总结。"""
    parser = argparse.ArgumentParser(prog="make torture ARGS=…", description="折磨全部的承诺，见 docs/promises.md")
    parser.add_argument("--minutes", type=float, default=5.0, help="跑几分钟")
    parser.add_argument("--seed", type=int, default=1, help="种子")
    parser.add_argument("--only", default=",".join(ATTACKS), help=f"只做这几种：{','.join(ATTACKS)}")
    parser.add_argument("--case", type=int, help="只做第几次；与 --only 一种一起用")
    parser.add_argument("--short", action="store_true", help="make test 里的一段：次数固定")
    parser.add_argument("--json", type=Path, help="总结写到这里")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(ATTACKS):
        parser.error(f"--only {', '.join(sorted(unknown))}: use {', '.join(ATTACKS)}")
    torch.set_num_threads(1)
    preload(whole=not options.short)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # 内存里的盘：不磨损真的
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir=place))
    try:
        session = Session(options.seed, folder, whole=not options.short)
        try:
            if options.case is not None:
                session.batch(names[0], options.case, 1)
            elif options.short:
                for name in names:
                    session.batch(name, 0, ATTACKS[name].short)
            else:
                run_for(session, names, options.minutes * 60)
        finally:
            session.close()
        summary = session.summary()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(summary, ensure_ascii=False, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(attack["failures"] for attack in summary["attacks"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
