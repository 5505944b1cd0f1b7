"""生成模型：看一个用户的历史，逐层写出下一个物品的语义 ID。由 transformers 的配置造出，不下载。

形状字母：B 用户，T 历史长度，L 层数，d 宽度，R = 批 × 束。它只认整数编号，不知道编号是谁做的。

- `tiny`（CPU）：两叠只有解码器的 Llama。第一叠一个位置一个物品（各层词向量之和），第二叠在一个物品之内逐层写编号，
  起头是第一叠的状态（RQ-Transformer 的两级做法）。同样的学习信号，词数是平铺做法的几分之一；每个位置都是训练目标；
  解码时历史只算一次，束里不必抄历史的缓存。
- `paper`（GPU）：TIGER 公布的 T5，编码器读平铺的词，解码器逐层写。一次一个目标。

两者都给出 `loss`、`remember`（历史 → 状态）与 `step_function`（给 `beam_search`）。
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaModel, T5Config, T5ForConditionalGeneration

from algorithm.semantic_id.decoding.tokens import CLS_ID, PAD_ID, SEP_ID, TokenLayout

# 5.40 起改名为 cache；约束里的 5.24 两个名字都认，范围里更早的只认旧的
warnings.filterwarnings("ignore", message="`past_key_values` is deprecated")

StepFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Size:
    """一种规模：模型、训练与解码的全部设置；进缓存的键，印进结果。

    Attributes:
        max_items: 历史最多看最近几个物品。
        layers, level_layers: tiny 两叠的层数；paper 是编码器与解码器的层数。
        epochs: 每个 epoch 每个用户的训练序列过一遍；paper 每个用户每个 epoch 抽一个目标。
        num_beams: 束宽。
    """

    kind: str
    max_items: int
    width: int
    heads: int
    head_width: int
    feed_forward: int
    layers: int
    level_layers: int
    level_feed_forward: int
    dropout: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    epochs: int
    num_beams: int
    warmup: float = 0.05


SIZES = {
    "tiny": Size(
        kind="stacked",
        max_items=20,
        width=128,
        heads=4,
        head_width=32,
        feed_forward=256,
        layers=2,
        level_layers=1,
        level_feed_forward=128,
        dropout=0.1,
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=0.05,
        epochs=10,
        num_beams=20,
    ),
    # TIGER（arXiv:2305.05065）：编码器、解码器各 4 层，6 头 × 64，d = 128，FFN 1024，dropout 0.1，批 256，20 万步。
    # 它用平方根衰减、前一万步学习率 0.01；这里换成线性预热与衰减
    "paper": Size(
        kind="t5",
        max_items=20,
        width=128,
        heads=6,
        head_width=64,
        feed_forward=1024,
        layers=4,
        level_layers=4,
        level_feed_forward=1024,
        dropout=0.1,
        batch_size=256,
        learning_rate=1e-3,
        weight_decay=0.05,
        epochs=2270,
        num_beams=50,
    ),
}


def build(size: Size, level_sizes: Sequence[int]) -> StackedGenerator | T5Generator:
    """由规模与各层大小造出模型；随机数用全局种子。"""
    return (StackedGenerator if size.kind == "stacked" else T5Generator)(size, level_sizes)


class StackedGenerator(nn.Module):
    """物品一叠、层一叠的生成模型。"""

    def __init__(self, size: Size, level_sizes: Sequence[int]):
        super().__init__()
        self.size, self.layout = size, TokenLayout.flat(level_sizes)
        self.embedding = nn.Embedding(self.layout.vocab_size, size.width)  # 输入与输出共用
        self.bias = nn.Parameter(torch.zeros(self.layout.vocab_size))
        nn.init.normal_(self.embedding.weight, std=0.05)
        shape = {"vocab_size": 1, "hidden_size": size.width, "num_attention_heads": size.heads}
        shape |= {"head_dim": size.head_width, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        self.items = LlamaModel(
            LlamaConfig(num_hidden_layers=size.layers, intermediate_size=size.feed_forward, **shape)
        )
        self.levels = LlamaModel(
            LlamaConfig(num_hidden_layers=size.level_layers, intermediate_size=size.level_feed_forward, **shape)
        )
        self.dropout = nn.Dropout(size.dropout)

    def _states(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, T, L) 历史 → (B, T + 1, d)：看过前 t 个物品之后的状态。右侧补齐：因果注意力看不到补齐处。"""
        x = self.embedding(self.layout.encode(codes)).sum(dim=2)
        start = self.embedding.weight[CLS_ID].expand(len(x), 1, -1)
        x = self.dropout(torch.cat([start, x], dim=1))
        return self.items(inputs_embeds=x, use_cache=False).last_hidden_state

    def _logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        part = slice(self.layout.offsets[level], self.layout.offsets[level] + self.layout.sizes[level])
        return F.linear(hidden, self.embedding.weight[part], self.bias[part])

    def loss(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, L) 右侧补齐的序列、(B,) 长度 → 每个物品各层交叉熵之和的平均；每个位置都是目标。"""
        valid = torch.arange(codes.shape[1], device=codes.device)[None] < lengths[:, None]
        states = self._states(codes[:, :-1])[valid]  # (N, d)
        targets = codes[valid]  # (N, L)
        given = self.embedding(self.layout.encode(codes)[valid][:, :-1])  # (N, L − 1, d)
        x = self.dropout(torch.cat([states[:, None], given], dim=1))
        hidden = self.levels(inputs_embeds=x, use_cache=False).last_hidden_state  # (N, L, d)
        losses = [
            F.cross_entropy(self._logits(hidden[:, level], level), targets[:, level])
            for level in range(self.layout.num_levels)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def remember(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, L) 历史 → (B, d) 看完之后的状态。"""
        return self._states(codes)[torch.arange(len(codes), device=codes.device), lengths]

    def step_function(self, memory: torch.Tensor) -> StepFunction:
        """给 `beam_search` 的一步；层一叠的缓存随束重排。"""
        cache = DynamicCache()

        def step(codes: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
            level = codes.shape[1]
            if level == 0:
                x = memory
            else:
                cache.batch_select_indices(parents)
                x = self.embedding(codes[:, -1] + self.layout.offsets[level - 1])
            hidden = self.levels(inputs_embeds=x[:, None], past_key_values=cache, use_cache=True).last_hidden_state
            return self._logits(hidden[:, 0], level)

        return step


class T5Generator(nn.Module):
    """TIGER 的编码器–解码器。"""

    def __init__(self, size: Size, level_sizes: Sequence[int]):
        super().__init__()
        self.size, self.layout = size, TokenLayout.flat(level_sizes)
        self.model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=self.layout.vocab_size,
                d_model=size.width,
                d_kv=size.head_width,
                d_ff=size.feed_forward,
                num_layers=size.layers,
                num_decoder_layers=size.level_layers,
                num_heads=size.heads,
                dropout_rate=size.dropout,
                feed_forward_proj="relu",
                pad_token_id=PAD_ID,
                eos_token_id=SEP_ID,
                decoder_start_token_id=CLS_ID,
                tie_word_embeddings=True,
            )
        )

    def _words(self, codes: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, L) → 平铺的词 (B, T · L + 1) 与遮罩；历史为空时也有一个 SEP。"""
        words = self.layout.encode(codes)
        mask = torch.arange(codes.shape[1], device=codes.device)[None] < lengths[:, None]
        words = F.pad(words.masked_fill(~mask[..., None], PAD_ID).flatten(1), (1, 0), value=SEP_ID)
        return words, words != PAD_ID

    def loss(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """每行随机取一个位置当目标，它之前的是历史。"""
        rows = torch.arange(len(codes), device=codes.device)
        place = (torch.rand(len(codes), device=codes.device) * lengths).long()
        words, mask = self._words(codes, place)
        labels = self.layout.encode(codes[rows, place])  # (B, L)
        return self.model(input_ids=words, attention_mask=mask, labels=labels).loss * self.layout.num_levels

    @torch.no_grad()
    def remember(self, codes: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        words, mask = self._words(codes, lengths)
        return self.model.encoder(input_ids=words, attention_mask=mask).last_hidden_state, mask

    def step_function(self, memory: Any) -> StepFunction:
        """不用缓存：最多四个词，重算比搬缓存简单；历史的状态按束重复。"""
        states, mask = memory

        def step(codes: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
            level, repeats = codes.shape[1], len(codes) // len(states)
            starts = torch.tensor(self.layout.offsets[:level], device=codes.device, dtype=torch.int64)
            words = F.pad(codes + starts, (1, 0), value=CLS_ID)
            out = self.model(
                encoder_outputs=(states.repeat_interleave(repeats, dim=0),),
                attention_mask=mask.repeat_interleave(repeats, dim=0),
                decoder_input_ids=words,
                use_cache=False,
            )
            start = self.layout.offsets[level]
            return out.logits[:, -1, start : start + self.layout.sizes[level]]

        return step
