"""每个会写东西的命令各是一件活：怎样做、做之前那里有什么、被打断之后怎样接着做、做完应当是什么样。"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

from .processes import call, run
from .world import SMALL, VIEWS, World, contents

__all__ = ["Job", "Workshop", "jobs_of"]

NEIGHBOUR = "not yours.txt"
_SAID = "a line that nobody may lose\n"


@dataclass(frozen=True)
class Job:
    """一件活；参数里的 `OUT` 换成输出，`@x` 换成世界里的 x。

    Attributes:
        name: 名字。
        argv: 参数。
        view: 使用者怎样看输出，`VIEWS` 的键。
        old: 做之前输出上有世界里的什么；空为没有。
        ways: 被打断之后可以加哪些参数再来，每一种都要行；空串是原样再来。
        keeps: 做到一半时使用者也必须看到完整的旧内容或新内容。
        slow: 只在长的运行里做。
        out: 输出的名字。
    """

    name: str
    argv: Tuple[str, ...]
    view: str
    old: str = ""
    ways: Tuple[str, ...] = ("",)
    keeps: bool = False
    slow: bool = False
    out: str = "out"


class Undisturbed(NamedTuple):
    """没有人打扰时做出来的：内容、使用者看到的、动几次磁盘、几秒。"""

    contents: Dict[str, str]
    view: str
    ops: int
    seconds: float


def jobs_of(whole: bool) -> List[Job]:
    """全部的活；`whole` 为假时不要慢的。"""
    train = ("train", "@x.parquet", "--output", "OUT", *SMALL)
    encode = ("encode", "@model", "@x.parquet", "--output", "OUT", "--rows-per-part", "100")
    update = ("update", "OUT", "@new.parquet", "--model", "@model", "--retire", "@retire.parquet")
    evaluate = ("evaluate", "@model", "@x.parquet", "--output", "OUT")
    report = ("report", "@evaluation", "--output", "OUT")
    export = ("export", "@none", "--index-json", "OUT")
    decode = ("decode", "@model", "@none", "--output", "OUT")
    jobs = [
        Job("train", train, "model", ways=("--resume", "--overwrite")),
        Job("train-over", (*train, "--overwrite"), "model", "other", ("", "--resume"), keeps=True),
        Job("encode", encode, "catalog", ways=("--resume", "--overwrite", "")),
        Job("encode-suffix", (*encode, "--unique=suffix"), "catalog", ways=("--resume", "--overwrite")),
        Job("encode-free", (*encode, "--unique=nearest-free"), "catalog", ways=("--resume", "--overwrite")),
        Job("encode-over", (*encode, "--overwrite"), "catalog", "suffix", ("", "--resume")),
        Job("update-suffix", update, "catalog", "suffix", keeps=True),
        Job("update-free", update, "catalog", "nearest-free", keeps=True),
        Job("migrate", ("migrate", "@updated", "@other", "@x.parquet", "--output", "OUT"), "catalog"),
        Job("evaluate", evaluate, "evaluation", ways=("", "--overwrite")),
        Job("evaluate-over", (*evaluate, "--overwrite"), "evaluation", "evaluation"),
        Job("report", report, "files", ways=("", "--overwrite"), out="out.html"),
        Job("export", export, "files", ways=("", "--overwrite"), out="out.json"),
        Job("export-over", (*export, "--overwrite"), "files", "codes.index.json", keeps=True, out="out.json"),
        Job("decode", decode, "files", ways=("", "--overwrite"), out="out.npy"),
        Job("import", ("import", "@codes.index.json", "--output", "OUT"), "catalog"),
    ]
    slow = [
        Job("train-pairs", (*train, "--pairs", "@pairs.parquet"), "model", ways=("--resume", "--overwrite"), slow=True),
        Job("report-over", (*report, "--overwrite"), "files", "report.html", keeps=True, slow=True, out="out.html"),
        Job("decode-over", (*decode, "--overwrite"), "files", "back.npy", keeps=True, slow=True, out="out.npy"),
        Job("import-faiss", ("import", "@residual.faiss", "--output", "OUT"), "model", slow=True),
        Job(
            "tokens",
            ("tokens", "@model", "--tokenizer", "@tokenizer", "--output", "OUT", "--embedding-dim", "8"),
            "files",
            slow=True,
        ),
        Job("demo", ("demo", "--output", "OUT"), "files", slow=True),
    ]
    if find_spec("faiss") is None:
        slow = [job for job in slow if job.name != "import-faiss"]
    return jobs + slow if whole else jobs


class Workshop:
    """做活的地方：布置、做、检查。

    Args:
        world: 输入。
        folder: 活在它的 `bench/` 里做；里面另有一个别人的文件。
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.bench = world, folder / "bench"
        self._known: Dict[str, Undisturbed] = {}

    def argv(self, job: Job, extra: str = "") -> List[str]:
        """完整的参数；已有的开关不重复。"""
        words = [str(self.world / w[1:]) if w.startswith("@") else w for w in job.argv]
        words = [str(self.bench / job.out) if w == "OUT" else w for w in words]
        if extra == "--resume" and job.argv[0] == "train" and "--overwrite" in words:
            words.remove("--overwrite")  # 训练的这两个开关互相矛盾；编码的可以同时给
        if extra and extra not in words:
            words.append(extra)
        return [*words, "--quiet"]

    def set_up(self, job: Job) -> None:
        """空的工作台，别人的文件，以及做之前就在的输出。"""
        shutil.rmtree(self.bench, ignore_errors=True)
        self.bench.mkdir(parents=True)
        (self.bench / NEIGHBOUR).write_text(_SAID, encoding="utf-8")
        if job.old:
            old, out = self.world / job.old, self.bench / job.out
            shutil.copytree(old, out) if old.is_dir() else shutil.copyfile(old, out)

    def undisturbed(self, job: Job) -> Undisturbed:
        """没有人打扰时做出来的；算一次，记住。"""
        if job.name not in self._known:
            self.set_up(job)
            started = time.perf_counter()
            ended = run(self.argv(job), self.bench)
            seconds = time.perf_counter() - started
            if ended.code or self.names() != [job.out]:
                raise RuntimeError(f"{job.name} fails undisturbed: {ended.err or self.names()}")
            self._known[job.name] = Undisturbed(contents(self.bench / job.out), self.view(job), ended.ops, seconds)
        return self._known[job.name]

    def names(self) -> List[str]:
        """工作台上除了别人的文件还有什么。"""
        return sorted({path.name for path in self.bench.iterdir()} - {NEIGHBOUR})

    def view(self, job: Job) -> str:
        """使用者此刻看到的；看不到就是 `error: …`。"""
        return self.view_of(job.view, self.bench / job.out)

    @staticmethod
    def view_of(kind: str, path: Path) -> str:
        """同上，任何一份输出。"""

        def look(emit: Callable[[str], None]) -> None:
            try:
                emit(VIEWS[kind](path))
            except (OSError, ValueError, TypeError) as error:
                emit(f"error: {type(error).__name__}: {error}")

        values, death = call(look)
        return f"crash: {death}" if death else values[0]

    def aftermath(self, job: Job, rng: random.Random) -> str:
        """被打断之后：不该丢的都在，而且可以接着做、重做；返回哪里不对。"""
        known = self._known[job.name]
        expected, new, seen = known.contents, known.view, self.view(job)
        if self.neighbour_lost():
            return "somebody else's file is gone or changed"
        old = self.view_of(job.view, self.world / job.old) if job.old else ""
        whole = seen in (old, new)
        if seen.startswith("crash") or (not whole and not seen.startswith("error")):
            return f"a reader sees neither the old nor the new content: {seen}"
        if job.keeps and not whole:
            return f"the old content is gone and the new is not there: {seen}"
        return self._go_on(job, rng.choice(job.ways), expected, (seen == new, seen == old))

    def _go_on(self, job: Job, way: str, expected: Dict[str, str], state: Tuple[bool, bool]) -> str:
        finished, untouched = state
        if finished and job.name.startswith("update"):
            return ""  # 新的一代已经在了；再来一次是另一次更新
        before = contents(self.bench / job.out)
        ended = run(self.argv(job, way), self.bench)
        wrong = ended.complaint()
        if wrong:
            return f"going on with {way!r}: {wrong}"
        if ended.code == 2:
            # 已经做完的、还没有开始动旧内容的，都没有什么可接着做：可以拒绝，但不许动它
            may_refuse = (finished and (way == "" or (way == "--resume" and job.argv[0] != "train"))) or (
                untouched and way == "--resume"
            )
            fine = may_refuse and contents(self.bench / job.out) == before
            return "" if fine else f"going on with {way!r} is refused: {ended.err.strip()}"
        if self.neighbour_lost():
            return f"going on with {way!r} took somebody else's file"
        found = contents(self.bench / job.out)
        if found != expected:
            names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            return f"going on with {way!r} gives other bytes in {names[:4]}"
        return "" if self.names() == [job.out] else f"left behind after {way!r}: {self.names()}"

    def neighbour_lost(self) -> bool:
        """别人的文件不在了，或变了。"""
        path = self.bench / NEIGHBOUR
        return not path.is_file() or path.read_text(encoding="utf-8") != _SAID
