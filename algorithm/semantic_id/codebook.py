"""一层码本：`lookup` 只读，`update_` 才写（EMA 与死码字复活）。

形状字母：B 批大小，K 码本大小（`num_embeddings`），H 向量宽度（`embedding_dim`）。

谁可以写：只有训练模式下的 `forward`（经由 `update_`）与训练器。编码永远不写，因此训练到一半时编码，
得到的 ID 与评估模式相同，也不会改变训练的走向。

码本由 EMA 更新而不由优化器更新（van den Oord et al., 2017, arXiv:1711.00937 附录 A），所以
`embedding.weight` 不要求梯度；把它交给 Adam 也无害，没有梯度的参数会被跳过。
"""

from __future__ import annotations

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .checks import check_codebook, check_features, check_one_process
from .search.nearest import PreparedCodebook, nearest, prepare, untraced

__all__ = ["DEAD_AFTER_EXPECTED_HITS", "REVIVE_STEP", "VectorQuantizer", "draw_by_weight"]

# 一个码字在「均匀使用时本应被命中 10 次」的行数里一次也没被命中，就算死码字。阈值按期望命中数给出，
# 与批大小和码本大小无关：L3 在 B = 256 时每步期望命中仅 0.016 次，固定「20 步没用就重置」会误杀 73% 的健康码字；
# 而期望 10 次时，均匀使用的码字被误判的概率是 e⁻¹⁰ ≈ 0.005%。
DEAD_AFTER_EXPECTED_HITS = 10

# 每步最多让这么大比例的批内行去复活码字：留下大多数行按真实分布更新，避免一步之内把码本推倒重来
_REVIVE_ROWS_RATE = 0.25

# 复活的码字放在「原码字 → 抽中残差」连线的这个位置。直接放在残差上（1.0）时，高维里它离别的行都太远，只抢得到
# 那一行，大簇照旧：20,000 行、128/512/2048 的实测，困惑度 39/80/281；放在 0.1–0.3 处则把大簇一分为二，121/475/1700
REVIVE_STEP = 0.2


def draw_by_weight(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """按权重不放回地抽行：指数竞赛，Exp(1) / 权重 最小的先到（Efraimidis & Spirakis, 2006）。

    权重为 0 的行永远抽不到，所以可能抽不满。只由权重与发生器决定；不论抽几行，发生器都前进同样多。

    Args:
        weights: (S,) float64，CPU，≥ 0。
        count: 至多几行。
        generator: CPU 的随机数发生器。

    Returns:
        (min(count, 权重为正的行数),) int64 行号，抽中的先后为序。
    """
    keys = torch.empty_like(weights).exponential_(generator=generator) / weights
    return keys.argsort(stable=True)[: min(count, int((weights > 0).sum()))]


class VectorQuantizer(nn.Module):
    """单层向量量化器，用 EMA 更新码本，并让死码字在真实残差上复活。

    Attributes:
        embedding: (K, H) 码本。
        ema_cluster_size: (K,) 每个码字的 EMA 命中数。从 1 开始，与 `ema_w` 一致：需求草稿从 0 开始，
            第一批之后未命中的码字会被除以约 1e-5，范数从 0.009 变成 886。
        ema_w: (K, H) 命中向量的 EMA 和；恒有 `ema_w ≈ ema_cluster_size[:, None] * embedding.weight`。
        rows_seen: 标量 int64，训练中见过的总行数，是下面两个时钟的单位。
        last_hit_row: (K,) int64，最后一次命中发生在第几行（从 1 计），0 表示从未命中。
        revived_row: (K,) int64，最后一次复活时的 `rows_seen`。
    """

    ema_cluster_size: torch.Tensor
    ema_w: torch.Tensor
    rows_seen: torch.Tensor
    last_hit_row: torch.Tensor
    revived_row: torch.Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, ema_decay: float = 0.99, epsilon: float = 1e-5):
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.ema_decay = ema_decay
        self.epsilon = epsilon

        self.embedding = nn.Embedding(num_embeddings, embedding_dim)  # (K, H)
        self.embedding.weight.data.uniform_(-1 / num_embeddings, 1 / num_embeddings)
        self.embedding.weight.requires_grad_(False)

        self.register_buffer("ema_cluster_size", torch.ones(num_embeddings))  # (K,)
        self.register_buffer("ema_w", self.embedding.weight.data.clone())  # (K, H)
        self.register_buffer("rows_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_hit_row", torch.zeros(num_embeddings, dtype=torch.int64))  # (K,)
        self.register_buffer("revived_row", torch.zeros(num_embeddings, dtype=torch.int64))  # (K,)
        self._prepared: PreparedCodebook | None = None

    def __getstate__(self) -> dict[str, Any]:
        """复制与序列化时丢掉搜索用的打包副本：它可以随时由权重重建。"""
        return {**self.__dict__, "_prepared": None}

    @torch.no_grad()
    def lookup(self, x: torch.Tensor) -> torch.Tensor:
        """最近码字的编号；只读，并列时取最小编号。

        Args:
            x: (B, H) float32，调用者已保证有限。

        Returns:
            (B,) int64。
        """
        return nearest(x, self.prepared(len(x)))

    @untraced
    def prepared(self, rows: int) -> PreparedCodebook:
        """为搜索整理好的当前码本；权重没变就用上次的。

        Args:
            rows: 接下来要找几行；多到值得时逐元素核对权重，见 `PreparedCodebook.is_current`。

        Raises:
            ValueError: 码本里有 NaN、Inf 或过大的值。
        """
        weight = self.embedding.weight
        if self._prepared is None or not self._prepared.is_current(weight, rows):
            check_codebook(weight)
            self._prepared = prepare(weight)
        return self._prepared

    def refresh_(self) -> None:
        """忘掉为搜索整理的副本；经 `.data` 或 NumPy 改了一部分权重之后要叫它，见 `SemanticIDEncoder.refresh_`。"""
        self._prepared = None

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """量化一批向量；训练模式下随后更新码本。

        Args:
            x: (B, H) 浮点输入向量。

        Returns:
            quantized: (B, H) 量化后的向量，前向是码字，反向把梯度原样交给 x（straight-through）。
            indices: (B,) int64 最近码字编号。
            commitment_loss: 标量，mean((x − sg[e])²)，没有乘 β。

        Raises:
            TypeError: x 不是实浮点张量。
            ValueError: 形状不对，或含 NaN/Inf。
            MultiProcessTrainingError: 训练模式下，进程组里不止一个进程。
        """
        x = check_features(x, self.embedding_dim, "x")
        if self.training:
            check_one_process()
        indices = self.lookup(x)  # (B,)
        codewords = self.embedding(indices)  # (B, H)
        commitment_loss = F.mse_loss(x, codewords)
        quantized = x + (codewords - x).detach()
        if self.training:
            self.update_(x, indices)
        return quantized, indices, commitment_loss

    @torch.no_grad()
    def update_(self, x: torch.Tensor, indices: torch.Tensor) -> int:
        """用一批 (x, indices) 更新 EMA 统计与命中的码字，再复活死码字。

        没有命中的码字不动：它的计数与和同乘衰减率，比值不变，不必重算（重算只会引入舍入误差）。
        统计始终用 float32，混合精度训练时半精度累加会吞掉小量。

        Args:
            x: (B, H) 落到这一层的残差。
            indices: (B,) 它们的编号，来自更新之前的码本。

        Returns:
            这一步复活的码字数。
        """
        x = x.detach().float()
        # 只对命中的码字做分段求和：one-hot 在 K = 16384、B = 2048 时要 384 MB，这里只要 B × H
        hit, slot, counts = torch.unique(indices, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(hit), x.shape[1], device=x.device).index_add_(0, slot, x)  # (hit, H)

        self.ema_cluster_size.mul_(self.ema_decay)
        self.ema_w.mul_(self.ema_decay)
        # 命中数已衰减到 epsilon 以下的历史视为遗忘并清零，否则会一路衰减成次正规数，既慢又不准
        forgotten = ((self.ema_cluster_size < self.epsilon) & (self.ema_cluster_size > 0)).nonzero()[:, 0]
        self.ema_cluster_size[forgotten] = 0.0
        self.ema_w[forgotten] = 0.0
        self.ema_cluster_size.index_add_(0, hit, counts.to(x.dtype), alpha=1 - self.ema_decay)
        self.ema_w.index_add_(0, hit, sums, alpha=1 - self.ema_decay)
        changed = hit
        self.embedding.weight[hit] = self.ema_w[hit] / self.ema_cluster_size[hit, None]

        self._advance_(indices)
        revived = self._revive_(x, indices)
        if len(revived):
            changed = torch.cat([hit, revived])
        if self._prepared is not None:
            self._prepared.refresh_(self.embedding.weight, changed)
        return len(revived)

    def _advance_(self, indices: torch.Tensor) -> None:
        """两个时钟向前走 B 行：每个码字最后一次命中在第几行，一共见过多少行。"""
        position = torch.arange(1, len(indices) + 1, device=indices.device) + self.rows_seen  # (B,)
        self.last_hit_row.scatter_reduce_(0, indices, position, "amax")
        self.rows_seen.add_(len(indices))

    def dead_codes(self) -> torch.Tensor:
        """(K,) bool：在期望命中 `DEAD_AFTER_EXPECTED_HITS` 次的行数里一次也没被命中的码字。"""
        alive_row = torch.maximum(self.last_hit_row, self.revived_row)
        return self.rows_seen - alive_row > DEAD_AFTER_EXPECTED_HITS * self.num_embeddings

    def _revive_(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """用死码字去分裂误差大的簇，返回被搬动的码字编号。

        抽一行真实残差，把死码字放在它所属码字朝它走一小步的地方。按误差平方抽样（k-means++ 的 D² 抽样）而不是
        取最大的几个：后者总挑离群点。随机数只由「见过多少行」决定，因此断点续训与不中断的训练抽到同样的行，
        也不动用户的全局随机状态。
        """
        dead = self.dead_codes().nonzero()[:, 0]
        limit = max(1, int(len(x) * _REVIVE_ROWS_RATE))  # 再小的批也复活得了
        if len(dead) == 0:
            return dead[:0]
        error = (x - self.embedding.weight[indices]).square().sum(1).double().cpu()  # (B,)
        generator = torch.Generator().manual_seed(int(self.rows_seen) * 64 + self.num_embeddings % 64)
        rows = draw_by_weight(error, min(limit, len(dead)), generator).to(x.device)
        dead = dead[: len(rows)]
        share = len(x) / self.num_embeddings  # 均匀使用时的稳态 EMA 计数，让复活者与健康者同样灵活
        parent = self.embedding.weight[indices[rows]]  # (m, H)
        codewords = torch.lerp(parent, x[rows], REVIVE_STEP)
        self.embedding.weight[dead] = codewords
        self.ema_cluster_size[dead] = share
        self.ema_w[dead] = codewords * share
        self.revived_row[dead] = self.rows_seen
        return dead

    @torch.no_grad()
    def install_(self, codewords: torch.Tensor, indices: torch.Tensor, batch_size: int) -> None:
        """换上一整遍数据算出的码字；时钟照常前进，EMA 计数取批大小为 B 时的稳态值 B · p。

        稳态计数让后续的 EMA 训练从第一步起就以合适的权重对待这些码字，不会一步跳走。

        Args:
            codewords: (K, H) 新码字。
            indices: (N,) 这一遍里每行的编号，次序即训练次序。
            batch_size: 之后 EMA 训练的批大小 B。
        """
        counts = torch.bincount(indices, minlength=self.num_embeddings)  # (K,)
        self.embedding.weight.copy_(codewords)
        self.ema_cluster_size.copy_(counts * (batch_size / len(indices)))
        torch.mul(self.embedding.weight, self.ema_cluster_size[:, None], out=self.ema_w)
        self._advance_(indices)

    @torch.no_grad()
    def reset_(self, codewords: torch.Tensor) -> None:
        """整体换上新的码字 (K, H)，计数回到 1，时钟归零：好像刚刚构造出来。"""
        self.embedding.weight.copy_(codewords)
        self.ema_cluster_size.fill_(1.0)
        self.ema_w.copy_(self.embedding.weight)
        self.rows_seen.zero_()
        self.last_hit_row.zero_()
        self.revived_row.zero_()
