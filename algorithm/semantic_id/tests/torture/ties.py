"""近乎并列：搜索的每条路径与 float64 穷举逐个核对；编码与批大小、线程数、行序、同伴都无关。"""

from __future__ import annotations

import os
from typing import List

import torch

from algorithm.semantic_id.tests.search import test_beam, test_search

from .processes import Trial, Verdict
from .world import World

__all__ = ["Ties"]


class Ties:
    """一次试验一个随机的码本与一批难分的行。

    Args:
        world: 输入；用它的模型。
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.paths = test_search.PATHS

    def __call__(self, trial: Trial) -> Verdict:
        """三种里选一种。"""
        path = trial.rng.choice(self.paths)
        os.environ["SEMID_SEARCH"] = path
        kind = trial.rng.choice([self._nearest, self._beam, self._company])
        return Verdict(f"{kind.__name__.strip('_')} on path {path!r}", kind(trial))

    def _nearest(self, trial: Trial) -> str:
        size, width = trial.rng.choice([1, 2, 31, 33, 64, 257, 700]), trial.rng.choice([1, 3, 16, 17, 48, 100])
        weight = _codebook(trial, size, width)
        x = torch.cat([test_search.near_ties(weight, 40, trial.index), _noise(trial, 20, width), weight[:20]])
        found = test_search.nearest(x, test_search.prepare(weight)).tolist()
        return _compare(found, test_search.brute_force(x, weight), f"{size} codewords of width {width}")

    def _beam(self, trial: Trial) -> str:
        sizes = tuple(trial.rng.choice([1, 3, 8, 33, 70]) for _ in range(trial.rng.randint(1, 4)))
        width, dim = trial.rng.choice([1, 2, 4, 9, 16]), trial.rng.choice([1, 3, 16, 31])
        books = [_codebook(trial, size, dim) * 0.6**level for level, size in enumerate(sizes)]
        z = torch.cat([test_beam.near_ties(books, 8, trial.index), _noise(trial, 6, dim)])
        found = test_beam.listed(*test_beam.run(z, books, width, trial.rng.random() < 0.5, trial.rng.choice([1, 2])))
        return _compare(found, test_beam.reference(z, books, width), f"sizes {sizes}, beam {width}, width {dim}")

    def _company(self, trial: Trial) -> str:
        from algorithm.semantic_id import SemanticIDEncoder

        encoder = SemanticIDEncoder.from_pretrained(self.world / "model")
        x = torch.from_numpy(self.world.x)
        ends = torch.randint(len(x), (2, 200), generator=torch.Generator().manual_seed(trial.index))
        x = torch.cat([x, (x[ends[0]] + x[ends[1]]) / 2])
        truth = encoder.encode_codes(x)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(trial.index))
        torch.set_num_threads(trial.rng.choice([1, 2, 3]))
        os.environ["SEMID_SEARCH"] = trial.rng.choice(self.paths)
        batch = trial.rng.choice([1, 7, 64, 1000])
        found = torch.cat([encoder.encode_codes(part) for part in x[order].split(batch)])
        torch.set_num_threads(1)
        same = bool((found == truth[order]).all())
        return "" if same else f"codes change with batch {batch}, path {os.environ['SEMID_SEARCH']!r} and order"


def _codebook(trial: Trial, size: int, width: int) -> torch.Tensor:
    """普通的、大半重复的、只差最后几位的、离原点很远的。"""
    weight = _noise(trial, size, width)
    kind = trial.rng.choice(["plain", "repeated", "collapsed", "far", "grid"])
    if kind == "repeated" and size > 3:
        weight[size - size // 2 :] = weight[: size // 2].clone()
    elif kind == "collapsed":
        weight = 1 + 1e-6 * weight
    elif kind == "far":
        weight = 30 + 2e-3 * weight
    elif kind == "grid":
        weight = weight.round()
    return weight


def _noise(trial: Trial, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(trial.rng.randrange(1 << 30)))


def _compare(found: List[object], truth: List[object], where: str) -> str:
    wrong = [i for i, (a, b) in enumerate(zip(found, truth, strict=True)) if a != b]
    return f"{where}: row {wrong[0]} gives {found[wrong[0]]}, brute force {truth[wrong[0]]}" if wrong else ""
