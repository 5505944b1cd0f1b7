"""行为引导：常被同一个人先后消费的物品，让它们的隐向量靠近，语义 ID 于是更常共享前缀。

做法是在 k-means 之前训练特征编码网络 z = x + f(x)：一批物品对里，左边的物品要在全部右边的物品中认出自己的那一个
（InfoNCE），同时 z 不许离 x 太远。网络只看内容，所以没有行为的新物品也跟着走；之后的 k-means 与精修都在 z 上做，
解码网络再学着从码字之和回到 x。代价是重建误差，收益是共同消费的提升度，两者的数字在 docs/log.md。

形状字母：U 在物品对里出现过的物品数，P 物品对数，D 特征维度，B 批大小。谁可以写：只写传入的网络。

References:
    van den Oord et al., 2018, InfoNCE, arXiv:1807.03748；Wang et al., 2024, LETTER, arXiv:2405.07314；
    FORGE, 2025, arXiv:2509.20904。
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Dict, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F

from ..errors import InputError, InputTypeError
from ..files.parquet_bytes import read_table
from ..files.progress import Progress
from ..files.source import VectorSource
from ..files.vectors_npy import NpyFile

__all__ = ["ItemPairs", "align_", "fit_decoder_", "read_pairs"]

MAX_PAIR_ITEMS = 1 << 18  # 256 维时 256 MB；更多的物品用不着，网络只有几十万个参数
STEPS = 600
BATCH_PAIRS = 512
TEMPERATURE = 0.2  # 余弦相似度的温度
ANCHOR = 0.5  # ‖z − x‖² / ‖x‖² 的权重：越大越忠于内容
LEARNING_RATE = 1e-3
RIDGE = 0.01  # 解码的岭：相对于 yᵀy 的平均对角元，即多看一百分之一行数的零
_BLOCK_ROWS = 8192


class ItemPairs(NamedTuple):
    """物品对与它们的特征。

    Attributes:
        vectors: (U, D) float32。
        rows: (P, 2) int64，指向 `vectors` 的行。
        sha256: 内容摘要，续训时核对。
    """

    vectors: torch.Tensor
    rows: torch.Tensor
    sha256: str


def read_pairs(pairs: Any, source: VectorSource, seed: int) -> ItemPairs:
    """验收物品对，并从来源里取出它们的特征。

    Args:
        pairs: (P, 2) 的物品编号：数组、张量、`.npy` 路径，或两列的 Parquet 路径。来源没有编号列时，编号就是行号。
        source: 特征来源。
        seed: 物品太多时按它抽样。

    Returns:
        `ItemPairs`。

    Raises:
        TypeError: 不支持的种类。
        ValueError: 形状不对、为空、含空值，或有来源里没有的编号。
    """
    left, right = (column.combine_chunks() for column in _columns(pairs))
    id_type = next(iter(source.id_blocks(1))).type
    try:
        left, right = left.cast(id_type), right.cast(id_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputTypeError(
            f"pairs hold {left.type} and {right.type}, but the item ids of {source.description} are {id_type}; "
            f"give pairs of item ids of that type"
        ) from None
    digest = hashlib.sha256()
    for column in (left, right):
        digest.update(repr(column.type).encode())
        for part in column.buffers():
            digest.update(part or b"")
    wanted = pc.unique(pa.concat_arrays([left, right]))
    if len(wanted) > MAX_PAIR_ITEMS:
        order = np.sort(np.random.default_rng(seed).permutation(len(wanted))[:MAX_PAIR_ITEMS])
        wanted = wanted.take(pa.array(order))
    place: Dict[Any, int] = {}
    vectors, found = [], 0
    for block in source.blocks():
        mask = pc.is_in(block.ids, value_set=wanted).to_numpy(zero_copy_only=False)
        if mask.any():
            ids = block.ids.filter(pa.array(mask))
            place.update(zip(ids.to_pylist(), range(found, found + len(ids)), strict=True))
            vectors.append(block.vectors[mask])
            found += len(ids)
    if found < len(wanted):
        missing = next(value for value in wanted.to_pylist() if value not in place)
        raise InputError(
            f"pairs name item {missing!r}, which {source.description} does not have; drop such pairs "
            f"({len(wanted) - found} of {len(wanted)} items are missing)"
        )
    index = np.array([[place.get(a, -1) for a in column.to_pylist()] for column in (left, right)], dtype=np.int64).T
    index = index[(index >= 0).all(axis=1) & (index[:, 0] != index[:, 1])]
    if len(index) == 0:
        raise InputError("pairs has no pair of two different items; at least one is needed")
    return ItemPairs(torch.from_numpy(np.concatenate(vectors)), torch.from_numpy(index), digest.hexdigest())


def align_(network: Any, pairs: ItemPairs, generator: torch.Generator, bar: Progress) -> None:
    """用物品对训练特征编码网络。

    Args:
        network: `FeatureEncoder`，就地训练。
        pairs: `read_pairs` 的结果。
        generator: 抽批用的随机数发生器；同样的种子得到同样的字节。
        bar: 进度条。
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    size = min(BATCH_PAIRS, len(pairs.rows))
    with bar.task("behaviour", STEPS) as report, torch.enable_grad():
        for step in range(1, STEPS + 1):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - (step - 1) / STEPS)
            chosen = pairs.rows[torch.randint(len(pairs.rows), (size,), generator=generator)]  # (B, 2)
            flip = torch.rand(size, generator=generator) < 0.5  # 对是无向的
            chosen = torch.where(flip[:, None], chosen.flip(1), chosen)
            x = pairs.vectors[chosen.T.reshape(-1)].to(device)  # (2B, D)，前一半是左边的物品
            loss = _loss(network, x, chosen[:, 1].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(step, STEPS)


@torch.no_grad()
def fit_decoder_(rq_vae: Any, x: torch.Tensor, z: torch.Tensor) -> None:
    """把解码网络设成从码字之和 y 回到 x 的岭回归解：y + Ay + b，一步到位，几千行也够用。

    行为引导之后 y 离 x 有一段系统的距离，靠几个 epoch 的梯度下降追不上。线性映射放得进残差网络：
    relu(v) − relu(−v) = v，一对隐单元表示一个方向，最后一个单元输出常数；隐层放不下 A 的全部方向时取奇异值最大的那些。

    Args:
        rq_vae: `ResidualVectorQuantizer`，只写它的解码网络。
        x: (S, D) float32 特征。
        z: (S, H) 同样这些行的隐向量。
    """
    decoder: Any = rq_vae.decoder
    sums = torch.zeros(z.shape[1] + 1, z.shape[1] + 1, dtype=torch.float64)
    cross = torch.zeros(z.shape[1] + 1, x.shape[1], dtype=torch.float64)
    for x_block, z_block in zip(x.split(_BLOCK_ROWS), z.split(_BLOCK_ROWS), strict=True):
        y = torch.zeros_like(z_block)
        for _, _, _, codewords in rq_vae.residuals(z_block):
            y += codewords
        gap = x_block.to(y.device) - decoder.base(y)
        design = torch.cat([y, y.new_ones(len(y), 1)], dim=1).double().cpu()  # (B, H + 1)
        sums += design.T @ design
        cross += design.T @ gap.double().cpu()
    ridge = torch.full((len(sums),), RIDGE * float(sums.diagonal()[:-1].mean()), dtype=torch.float64)
    ridge[-1] = 0.0  # 常数项不收缩
    solution = torch.linalg.solve(sums + torch.diag(ridge), cross)  # (H + 1, D)
    left, values, right = torch.linalg.svd(solution[:-1], full_matrices=False)
    rank = min(len(values), (decoder.weight_in.shape[1] - 1) // 2)
    unit = float(decoder.unit)
    half_in, half_out = left[:, :rank], values[:rank, None] * right[:rank]
    for parameter in (decoder.weight_in, decoder.bias_in, decoder.weight_out):
        parameter.zero_()
    decoder.weight_in[:, : 2 * rank] = torch.cat([half_in, -half_in], dim=1)
    decoder.weight_out[: 2 * rank] = torch.cat([half_out, -half_out])
    decoder.bias_in[-1] = 1.0
    decoder.weight_out[-1] = solution[-1] / unit


def _loss(network: Any, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """InfoNCE + ANCHOR · mean‖z − x‖² / mean‖x‖²；与特征的单位无关。

    同一批里右边的物品可能重复，重复的不算负例，否则热门物品会被自己推开。
    """
    z = network(x)  # (2B, H)
    left, other = F.normalize(z).chunk(2)
    logits = left @ other.T / TEMPERATURE  # (B, B)
    same = right[:, None] == right[None, :]
    logits = logits.masked_fill(same & ~torch.eye(len(right), dtype=torch.bool, device=x.device), float("-inf"))
    base = network.base(x)
    anchor = (z - base).square().mean() / base.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return F.cross_entropy(logits, torch.arange(len(right), device=x.device)) + ANCHOR * anchor


def _columns(pairs: Any) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """各种输入 → 左右两列编号。"""
    if isinstance(pairs, (str, Path)):
        path = Path(pairs)
        if not path.exists():
            raise FileNotFoundError(f"pairs path {str(path)!r} does not exist; give a .npy or a .parquet file")
        if path.suffix == ".parquet":
            table = read_table(path)
            if table.num_columns != 2:
                raise InputError(f"pairs file {str(path)!r} has columns {table.column_names}; exactly two are needed")
            pairs = table
        elif path.suffix == ".npy":
            pairs = np.concatenate([rows for _, rows in NpyFile(path).blocks(_BLOCK_ROWS)])
        else:
            raise InputError(f"pairs file {str(path)!r} has unknown extension {path.suffix!r}; use .npy or .parquet")
    if not isinstance(pairs, pa.Table):
        array = np.asarray(pairs)
        if array.ndim != 2 or array.shape[1] != 2:
            raise InputError(f"pairs must have shape (P, 2), got {array.shape}; one row is one pair of item ids")
        if array.dtype.kind not in "iuU":
            raise InputTypeError(f"pairs must hold item ids (ints or strings), got {array.dtype}")
        pairs = pa.table({"left": pa.array(array[:, 0]), "right": pa.array(array[:, 1])})
    if pairs.num_rows == 0:
        raise InputError("pairs is empty; at least one pair of item ids is needed")
    left, right = pairs.column(0), pairs.column(1)
    if left.null_count or right.null_count:
        raise InputError(f"pairs has {left.null_count + right.null_count} null item ids; drop those pairs")
    return left, right
