"""坏掉的文件：翻一个比特，或从某处截断。读的人要么得到点名那个文件的错误，要么得到同样的答案，绝没有第三种。"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

import torch

from .processes import Trial, Verdict
from .world import NAMES, SMALL, VIEWS, World, contents

__all__ = ["Damage", "quietly"]


class Artefact(NamedTuple):
    """一种落盘的东西。

    Attributes:
        name: 世界里的名字。
        read: 读它、用它，返回全部答案的摘要。
        weight: 多常试它；读得慢的少试。
        skip: 这些文件只给人看，不影响答案。
    """

    name: str
    read: Callable[[Path], str]
    weight: float = 1.0
    skip: Tuple[str, ...] = ("README.md",)


class Damage:
    """一次试验坏一个文件。

    Args:
        world: 输入。
        cut: 截断；否则翻转比特。
    """

    def __init__(self, world: World, cut: bool) -> None:
        self.world, self.cut = world, cut
        self.artefacts = _artefacts(world)
        self.answers: Dict[int, str] = {}

    def __call__(self, trial: Trial) -> Verdict:
        """选一份，弄坏一个文件，读。"""
        weights = [artefact.weight for artefact in self.artefacts]
        number = trial.rng.choices(range(len(weights)), weights)[0]
        artefact = self.artefacts[number]
        if number not in self.answers:
            self.answers[number] = artefact.read(self._fresh(artefact, trial.folder))
        copy = self._fresh(artefact, trial.folder)
        files = [copy] if copy.is_file() else sorted(p for p in copy.rglob("*") if p.is_file())
        files = [file for file in files if file.name not in artefact.skip and "tensorboard" not in file.parts]
        file = trial.rng.choice(files)
        how = _cut(file, trial.rng) if self.cut else _flip(file, trial.rng)
        what = f"{artefact.name}: {file.name} {how}, read by {artefact.read.__name__.strip('_')}"
        try:
            answer = artefact.read(copy)
        except (OSError, ValueError, TypeError) as error:
            named = file.name in str(error) or copy.name in str(error)
            return Verdict(what, "" if named else f"the error names no file: {type(error).__name__}: {error}")
        except Exception as error:
            return Verdict(what, f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}")
        return Verdict(what, "" if answer == self.answers[number] else "another answer, without an error")

    def _fresh(self, artefact: Artefact, folder: Path) -> Path:
        copy, source = folder / "copy", self.world / artefact.name
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        copy = copy / artefact.name
        shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
        return copy


def _flip(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    if not data:
        return "is empty: nothing to flip"
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    file.write_bytes(data)
    return f"bit {bit} of byte {place} flipped"


def _cut(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    kind = rng.choice(["cut", "cut", "cut", "zeros", "longer", "gone"])
    size = rng.randrange(len(data) + 1) if rng.random() < 0.8 else 0
    if kind == "cut":
        file.write_bytes(data[:size])
    elif kind == "zeros":  # 断电之后的文件系统会这样
        file.write_bytes(data[:size] + bytes(len(data) - size))
    elif kind == "longer":
        file.write_bytes(data + b"\0" * rng.randrange(1, 5000))
    else:
        file.unlink()
    return f"of {len(data)} bytes: {kind} at {size}"


def _artefacts(world: World) -> List[Artefact]:
    x = torch.from_numpy(world.x)

    def model(path: Path) -> str:
        from algorithm.semantic_id import SemanticIDEncoder

        encoder = SemanticIDEncoder.from_pretrained(path)
        codes = encoder.encode_codes(x[:50])
        figures = json.dumps(encoder.training_figures, sort_keys=True)
        return _digest(encoder.fingerprint(), codes.tolist(), encoder.decode_codes(codes).tolist(), figures)

    def catalog(path: Path) -> str:
        from algorithm.semantic_id import Catalog

        opened = Catalog.open(path)
        names = [*NAMES, "new-1", "nobody"]
        found = opened.find(names)
        known = found[(found >= 0).all(1)]
        under = opened.with_prefix([int(known[0, 0])]).to_pydict()
        counts = [opened.count([code]) for code in range(opened.codebook_sizes[0])]
        items = opened.items_of(known).to_pylist()
        facts = [opened.num_items, opened.codebook_sizes, opened.unique, opened.generation, opened.fingerprint]
        return _digest(facts, found.tolist(), items, under, counts, opened.read().to_pydict())

    def lookups(path: Path) -> str:
        """只查，不读分片：索引要自己认得出坏。"""
        from algorithm.semantic_id import Catalog

        opened = Catalog.open(path)
        found = opened.find(NAMES[::5])
        return _digest(found.tolist(), [opened.items_of(row[None]).to_pylist() for row in found if row[0] >= 0])

    def update(path: Path) -> str:
        from algorithm.semantic_id import SemanticIDEncoder, open_vectors
        from algorithm.semantic_id.catalog.changes.update import update_catalog

        update_catalog(SemanticIDEncoder.from_pretrained(world / "model"), path, open_vectors(world / "late.parquet"))
        return _digest(VIEWS["catalog"](path))

    def resume(path: Path) -> str:
        argv = ["train", str(world / "x.parquet"), "--output", str(path), *SMALL, "--resume", "--quiet"]
        code, line = quietly(argv)
        if code == 2:
            raise ValueError(line)
        if code:
            raise RuntimeError(line)
        return _digest(contents(path))

    def report(path: Path) -> str:
        from algorithm.semantic_id.report.page import write_report

        page = path.parent / "page.html"
        write_report([path], page)
        return hashlib.sha256(page.read_bytes()).hexdigest()

    def evaluation(path: Path) -> str:
        return VIEWS["evaluation"](path)

    def trie(path: Path) -> str:
        from algorithm.semantic_id.decoding import PrefixTrie

        loaded = PrefixTrie.load(path)
        codes = torch.cartesian_prod(*(torch.arange(size) for size in loaded.sizes))
        return _digest(loaded.sizes, loaded.num_items, loaded.find(codes).tolist())

    def tokens(path: Path) -> str:
        from algorithm.semantic_id.decoding import TokenLayout

        where = path / "semid_tokens.json"
        layout = TokenLayout.from_json(where.read_text(encoding="utf-8", errors="surrogateescape"), where.name)
        return _digest(layout.sizes, layout.offsets)

    found = [
        Artefact("model", model, 2.0),
        Artefact("suffix", catalog, 1.5),
        Artefact("updated", catalog, 1.5),
        Artefact("none", lookups),
        Artefact("updated", lookups, 1.5),
        Artefact("suffix", update, 0.7),
        Artefact("updated", update, 0.7),
        Artefact("nearest-free", update, 0.4),
        Artefact("unfinished", resume, 0.4, ("README.md", "metrics.jsonl")),
        Artefact("evaluation", evaluation),
        Artefact("evaluation", report, 0.4),
        Artefact("trie.safetensors", trie),
    ]
    embeddings = ("semid_embeddings.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    return [*found, Artefact("tokens", tokens, 0.3, embeddings)] if world.whole else found


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def quietly(argv: List[str]) -> Tuple[int, str]:
    """在本进程里跑一个命令：(退出码, 标准错误的最后一行)。"""
    from algorithm.semantic_id.cli.app import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(argv)
    return code, (said.getvalue().strip().splitlines() or [""])[-1]
