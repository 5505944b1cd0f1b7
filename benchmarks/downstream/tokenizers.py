"""各家的编号：同样的物品特征进，(N, L) 编号出；冲突的一律加后缀（TIGER 的做法）。

同类与我们的做法取自 `quality.tools`，不另抄一份。这里另加：行为引导、随机、原子，与几种故意做坏的（看代理指标认不认得
出来）。
特征用全部物品（内容不是行为，不算泄漏）；行为引导只看训练部分的物品对。
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy as np
from quality import tools

from downstream.data import Interactions

Fit = Callable[[Interactions, Tuple[int, ...], int], np.ndarray]
LEVEL_SIZES = (256, 256, 256)


@dataclass(frozen=True)
class Tokenizer:
    """一种编号。

    Attributes:
        fit: (数据, 各层大小, 种子) → (N, L) 编号，还没有后缀。
        version: 装着的版本；没装为 None。
        recipe: 决定编号的其余一切：设置、做法的摘要；进缓存的键。
        bad: 故意做坏的：只跑一个种子。
    """

    name: str
    fit: Fit
    version: Callable[[], str | None]
    recipe: Dict[str, Any] = field(default_factory=dict)
    bad: bool = False

    def key(self, data: Interactions, sizes: Tuple[int, ...], seed: int) -> Dict[str, Any]:
        """决定这份编号的一切。"""
        key = {"tokenizer": self.name, "sizes": list(sizes), "seed": seed, "version": self.version()}
        return key | {"features": _digest(data.features.tobytes()), "data": data.digest} | self.recipe


def from_tool(tool: tools.Tool) -> Tokenizer:
    """`quality.tools` 里的一种做法；用它的默认读法。"""

    def fit(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
        return next(iter(tool.fit(data.features, sizes, seed, tool.settings).values()))(data.features)[0]

    return Tokenizer(tool.name, fit, tool.version, {"recipe": tool.recipe(), "settings": tool.settings})


def semid_pairs(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """默认一档加行为引导；物品对只取训练部分里前后相邻的。"""
    import torch

    from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, train_codebook

    torch.manual_seed(seed)
    encoder = SemanticIDEncoder(SemanticIDConfig(embedding_dim=data.features.shape[1], codebook_sizes=sizes))
    pairs = data.train_pairs()
    train_codebook(encoder, data.features, config=TrainerConfig(seed=seed), pairs=pairs, progress=False)
    return encoder.encode_codes(torch.from_numpy(data.features)).numpy()


def random_codes(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """各层均匀随机。"""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, data.num_items) for size in sizes], axis=1)


def atomic(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """一层，一个物品一个词。"""
    return np.arange(data.num_items)[:, None]


def reversed_levels(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """残差 k-means 的三层倒过来写：误差与冲突一样，前缀没有意义。"""
    return np.ascontiguousarray(_residual_kmeans(data, sizes, seed)[:, ::-1])


def first_level_only(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """残差 k-means 的 L1，后面两层随机。"""
    return np.concatenate([_residual_kmeans(data, sizes, seed)[:, :1], random_codes(data, sizes, seed)[:, 1:]], axis=1)


def hyperplanes(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    """随机超平面的符号：不看数据的语义编号。"""
    rng = np.random.default_rng(seed)
    bits = [size.bit_length() - 1 for size in sizes]
    signs = (data.features - data.features.mean(axis=0)) @ rng.standard_normal((data.features.shape[1], sum(bits))) > 0
    parts = np.split(signs, np.cumsum(bits)[:-1], axis=1)
    return np.stack([part @ (1 << np.arange(part.shape[1])) for part in parts], axis=1)


def _residual_kmeans(data: Interactions, sizes: Tuple[int, ...], seed: int) -> np.ndarray:
    return tools.faiss_rkm(data.features, sizes, seed, tools.RKM)["greedy"](data.features)[0]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _faiss_version() -> str | None:
    return tools.TOOLS["faiss-rkm"].version()


def _own(name: str, fit: Fit, version: Callable[[], str | None] = lambda: "1", bad: bool = False) -> Tokenizer:
    return Tokenizer(name, fit, version, {"recipe": _digest(inspect.getsource(fit).encode())}, bad)


TOKENIZERS = {
    item.name: item
    for item in (
        from_tool(tools.TOOLS["semid-default"]),
        from_tool(tools.TOOLS["semid-max"]),
        _own("semid-pairs", semid_pairs, tools.TOOLS["semid-default"].version),
        from_tool(tools.TOOLS["faiss-rkm"]),
        from_tool(tools.TOOLS["semantic-id-rqkmeans"]),
        from_tool(tools.TOOLS["semantic-id-rqvae-last"]),
        _own("atomic", atomic),
        _own("random", random_codes, bad=True),
        _own("bad-hyperplanes", hyperplanes, bad=True),
        _own("bad-reversed", reversed_levels, _faiss_version, bad=True),
        _own("bad-first-level", first_level_only, _faiss_version, bad=True),
    )
}


def sizes_of(codes: np.ndarray) -> Tuple[int, ...]:
    """加后缀之前各层的大小：语义编号用约定的，原子编号是物品数。"""
    return (len(codes),) if codes.shape[1] == 1 else LEVEL_SIZES


def suffixed(codes: np.ndarray, sizes: Tuple[int, ...]) -> Tuple[np.ndarray, Tuple[int, ...]]:
    """末尾加一层：同一个编号的物品按行号从 0 数起。对谁都加；只有一层的原子编号本来就唯一，不加。

    Args:
        codes: (N, L) 编号。
        sizes: 各层大小。

    Returns:
        (N, L + 1) 唯一的编号与各层大小。
    """
    if codes.shape[1] == 1:
        return codes, (len(codes),)
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    suffix = np.empty(len(codes), dtype=np.int64)
    suffix[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.concatenate([codes, suffix[:, None]], axis=1), (*sizes, int(counts.max()))


def codes_of(
    tokenizer: Tokenizer, data: Interactions, seed: int, cache: Path, *, sizes: Tuple[int, ...] = LEVEL_SIZES, fit: bool
) -> Tuple[np.ndarray | None, float]:
    """(编号, 训练的 CPU 秒)；缓存里没有而 fit=False 时编号为 None。"""
    text = json.dumps(tokenizer.key(data, sizes, seed), sort_keys=True)
    path = cache / "codes" / f"{tokenizer.name}_seed{seed}_{_digest(text.encode())[:10]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return stored["codes"], float(stored["cpu_s"])
    if not fit:
        return None, 0.0
    started = time.process_time()
    codes = np.ascontiguousarray(tokenizer.fit(data, sizes, seed), dtype=np.int64)
    seconds = time.process_time() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, codes=codes, cpu_s=seconds)
    part.rename(path)
    return codes, seconds
