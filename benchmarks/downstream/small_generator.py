"""看得见形状的代理：一个小得多的生成模型，十几 CPU 秒；`training.py` 的那个要几分钟。

重建近邻的命中率只看向量，看不见层数与码本大小：码本越大它越高，而生成模型要为每个词学一个向量，太大就学不动。这里就
照着学：状态是最近 K 个物品的词向量之和，按新旧各乘一个可学的权重；每层一个小残差网络，输出与词向量共用；束搜索走前缀
树。没有注意力。

形状字母：B 目标数，K 看几个物品，L 层数，d 宽度，V 词数。
"""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from algorithm.semantic_id.decoding import PrefixTrie, beam_search
from downstream.training import padded

WIDTH = 64
RECENT = 5
EPOCHS = 3
BATCH = 512
LEARNING_RATE = 5e-3
DECAY = 0.6
NUM_BEAMS = 20


class SmallGenerator(nn.Module):
    """最近几个物品 → 下一个物品的编号。"""

    def __init__(self, level_sizes: Sequence[int], width: int = WIDTH, recent: int = RECENT):
        super().__init__()
        self.sizes, self.offsets = tuple(level_sizes), np.cumsum([0, *level_sizes])[:-1].tolist()
        self.words = nn.Parameter(torch.randn(sum(level_sizes), width) * 0.05)  # (V, d)，输入与输出共用
        self.bias = nn.Parameter(torch.zeros(sum(level_sizes)))
        self.ages = nn.Parameter(torch.tensor([DECAY**age for age in range(recent)])[:, None].repeat(1, width))
        self.mix = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.mix.weight)
        self.place = nn.Parameter(torch.zeros(len(level_sizes), width))
        self.given = nn.Parameter(0.5 * torch.eye(width)[None].repeat(len(level_sizes), 1, 1))
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        self.out, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)

    def embed(self, codes: torch.Tensor) -> List[torch.Tensor]:
        """(…, l) 编号 → l 个 (…, d)。"""
        return [self.words[codes[..., level] + self.offsets[level]] for level in range(codes.shape[-1])]

    def state(self, codes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, K, L) 最新的在前、(B, K) 哪些是真的 → (B, d)。"""
        items = torch.stack(self.embed(codes)).sum(0) * mask[..., None]
        return self.dropout((items * self.ages).sum(1))

    def logits(self, state: torch.Tensor, given: List[torch.Tensor]) -> torch.Tensor:
        """(B, d) 状态与前几层的词向量 → (B, K_l)。"""
        level = len(given)
        x = self.mix(state) + self.place[level]
        if given:
            x = x + torch.stack(given).sum(0) @ self.given[level]
        x = self.out(x + self.down(torch.relu(self.up(self.norm(x)))))
        part = slice(self.offsets[level], self.offsets[level] + self.sizes[level])
        return F.linear(x, self.words[part], self.bias[part])

    def loss(self, codes: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """各层交叉熵之和的平均。"""
        state, given = self.state(codes, mask), self.embed(targets)
        parts = [F.cross_entropy(self.logits(state, given[:level]), targets[:, level]) for level in range(len(given))]
        return torch.stack(parts).sum()


def examples(histories: Sequence[np.ndarray], recent: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """每个有过去的位置一例：(B, K) 最近的物品、最新的在前，(B, K) 哪些是真的，(B,) 目标。"""
    items = np.concatenate(histories)
    lengths = np.array([len(history) for history in histories])
    place = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    back = np.arange(recent)[None]
    mask = place[:, None] > back
    past = np.where(mask, items[np.maximum(np.arange(len(items))[:, None] - 1 - back, 0)], 0)
    keep = place > 0
    return past[keep], mask[keep], items[keep]


def train(
    histories: Sequence[np.ndarray], table: torch.Tensor, level_sizes: Sequence[int], seed: int
) -> SmallGenerator:
    """训练；学习率先升后降到 0。

    Args:
        histories: 训练部分。
        table: (N, L) 各物品的编号，已唯一。
        level_sizes: 各层大小。
        seed: 模型与批次的种子。
    """
    torch.manual_seed(seed)
    model = SmallGenerator(level_sizes).train()
    past, mask, targets = (torch.from_numpy(part) for part in examples(histories, RECENT))
    real = mask.float()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98), fused=True
    )
    total, step = EPOCHS * math.ceil(len(targets) / BATCH), 0
    for _ in range(EPOCHS):
        for part in torch.randperm(len(targets)).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min((step + 1) / (0.05 * total), (total - step) / total / 0.95, 1.0)
            loss = model.loss(table[past[part]], real[part], table[targets[part]])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
    return model.eval()


@torch.no_grad()
def recommend(
    model: SmallGenerator, histories: Sequence[np.ndarray], table: torch.Tensor, num_beams: int = NUM_BEAMS
) -> np.ndarray:
    """(U, M) 各用户按分数从高到低的物品号；只会给出存在的物品。"""
    trie = PrefixTrie.build(table, model.sizes)
    out = np.empty((len(histories), num_beams), dtype=np.int64)
    for start in range(0, len(histories), 512):
        items, lengths = padded([history[: -RECENT - 1 : -1] for history in histories[start : start + 512]])
        mask = (np.arange(items.shape[1])[None] < lengths[:, None]).astype(np.float32)
        items, mask = (np.pad(part, ((0, 0), (0, RECENT - items.shape[1]))) for part in (items, mask))
        state = model.state(table[torch.from_numpy(items)], torch.from_numpy(mask))

        def step(prefix: torch.Tensor, parents: torch.Tensor, state: torch.Tensor = state) -> torch.Tensor:
            wide = state.repeat_interleave(len(prefix) // len(state), 0)
            return model.logits(wide, model.embed(prefix))

        found = beam_search(step, trie, batch_size=len(items), num_beams=num_beams)
        out[start : start + 512] = found.items.numpy()
    return out
