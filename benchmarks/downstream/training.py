"""训练与排名：同样的数据、批的次序与步数，与谁做的编号无关。"""

from __future__ import annotations

import math
import time
from typing import Any, Callable, Iterator, List, Sequence

import numpy as np
import torch

from algorithm.semantic_id.decoding import PrefixTrie, beam_search
from downstream import generator

ELEMENTS = 1 << 15  # 解码时一批 B · M 行


def pieces_of(histories: Sequence[np.ndarray], max_items: int, rng: np.random.Generator) -> List[np.ndarray]:
    """一个 epoch 的训练序列：长于 max_items 的切成几段，第一刀的位置每个 epoch 不同，所以每个物品都当过目标。"""
    pieces: List[np.ndarray] = []
    for history in histories:
        if len(history) <= max_items:
            pieces.append(history)
        else:
            pieces.extend(np.split(history, range(int(rng.integers(1, max_items + 1)), len(history), max_items)))
    return pieces


def padded(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """右侧用 0 号物品补齐 → (B, T) 与长度 (B,)；T 至少 1。"""
    lengths = np.array([len(sequence) for sequence in sequences])
    rows = np.zeros((len(sequences), max(1, int(lengths.max()))), dtype=np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows, lengths


def batches(pieces: Sequence[np.ndarray], batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """长度相近的放在一批，补齐就少；批的次序打乱。给出 pieces 的下标。"""
    lengths = np.array([len(piece) for piece in pieces])
    order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for part in rng.permutation(len(parts)):
        yield parts[part]


def train(
    histories: Sequence[np.ndarray],
    codes: np.ndarray,
    level_sizes: Sequence[int],
    size: generator.Size,
    seed: int,
    device: str = "cpu",
    report: Callable[[str], None] = lambda text: None,
) -> Any:
    """训练一个生成模型；最后一步的权重，学习率降到 0。

    Args:
        histories: 训练部分。
        codes: (N, L) 各物品的编号，已唯一。
        level_sizes: 各层大小。
        size: 规模。
        seed: 模型与批次的种子。
        device: cpu 或 cuda。
        report: 每个 epoch 一行。
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = generator.build(size, level_sizes).to(device).train()
    table = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64)).to(device)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
    options = {"lr": size.learning_rate, "weight_decay": size.weight_decay, "betas": (0.9, 0.98)}
    optimizer = torch.optim.AdamW(groups, fused=True, **options)
    per_epoch = math.ceil(len(pieces_of(histories, size.max_items, np.random.default_rng(seed))) / size.batch_size)
    total = per_epoch * size.epochs
    warmup = max(1, int(size.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, min((step + 1) / warmup, (total - step) / max(1, total - warmup)))
    )
    for epoch in range(size.epochs):
        started, losses = time.process_time(), []
        pieces = pieces_of(histories, size.max_items, rng)
        for part in batches(pieces, size.batch_size, rng):
            items, lengths = padded([pieces[i] for i in part])
            rows = table[torch.from_numpy(items).to(device)]
            loss = model.loss(rows, torch.from_numpy(lengths).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        report(f"epoch {epoch}: loss {mean:.3f}, {time.process_time() - started:.0f} CPU s")
    return model.eval()


@torch.no_grad()
def recommend(
    model: Any, histories: Sequence[np.ndarray], codes: np.ndarray, level_sizes: Sequence[int], device: str = "cpu"
) -> np.ndarray:
    """(U, M) 各用户按分数从高到低的物品号，束不满处为 −1；只会给出存在的物品。"""
    size = model.size
    table = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64))
    trie = PrefixTrie.build(table, level_sizes, device=device)
    table = table.to(device)
    recent = [history[-size.max_items :] for history in histories]
    order = np.argsort([len(history) for history in recent], kind="stable")
    out = np.empty((len(histories), size.num_beams), dtype=np.int64)
    batch = max(1, ELEMENTS // 8 // size.num_beams)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        items, lengths = padded([recent[i] for i in part])
        memory = model.remember(table[torch.from_numpy(items).to(device)], torch.from_numpy(lengths).to(device))
        found = beam_search(model.step_function(memory), trie, batch_size=len(part), num_beams=size.num_beams)
        out[part] = found.items.cpu().numpy()
    return out
