"""transformers 的 `generate` 只生成存在的物品：一个 LogitsProcessor。

形状字母：R 行数（批 × 束），T 当前长度，V 词表大小，W 这些行里最多的孩子数。

走到第几层只由 `prompt_length` 与当前长度决定，允许什么只由最后几个词决定：束被重排、同一个对象用于几次 generate，
都不会错。编码器–解码器模型的 prompt_length 是 1（起始词）；只有解码器的是提示的长度，左侧补齐的批次各行相同。
唯一记着的是上一次调用的长度：一次 generate 从 prompt_length 起，一次长一个词，不是这样就说明 prompt_length
与提示对不上。光看词认不出来：提示的末尾常常正是一个物品（历史），少说 L 就像已经生成完了。

陷阱，都有测试：
- 候选不够束宽时 generate 会留下分数 −inf 的束（下称死束），它们的前缀不在树里：不能报错，也不能让整行都是 −inf
  （抽样时 softmax 得到 NaN，整批失败）。死束只许接 EOS。
- 模型可能把全部允许的词都判成 −inf（例如禁词表）：给它们同样的很低的有限分，仍然只生成存在的。
- 不允许的位置上的 NaN 与允许的无关，不能传过去；允许的位置上的 NaN 与 +inf 立即报错。
- 物品比束少时，generate 用分数 −1e9 的重复的束补满：它们也存在，只是重复；`sequences_scores` 低于 −1e8 的可以丢掉。
"""

from __future__ import annotations

import math
import threading
from typing import Dict

import torch

from ..errors import InputError, InputTypeError
from .beam_decoding import TABLE_FRACTION
from .tokens import TokenLayout
from .trie import PrefixTrie

try:
    from transformers import LogitsProcessor
except ImportError as error:
    raise ImportError("decoding.hf needs the extra `hf`: pip install 'semid[hf]'") from error

__all__ = ["SemanticIDLogitsProcessor"]

# 被模型判为 −inf、却非选不可的词：低于任何真的 log 概率，又高于 generate 补满束宽用的 −1e9
_LAST_RESORT = -1e6


class SemanticIDLogitsProcessor(LogitsProcessor):
    """把不通向任何物品的词判为 −inf。

    两种用法：
    - `num_ids=n`：正好生成 n 个 ID，一个接一个，然后 EOS；
    - `num_ids=None`：文字与 ID 混排，文字不受约束，`<a_…>` 一旦出现就必须走完一个存在的 ID。

    一个 ID 走完之后别无选择，EOS 的分数是 0（概率 1），所以束的分数就是各层 log 概率之和（`generate` 再除以
    长度的 `length_penalty` 次方；要原样的和就设 `length_penalty=0.0`）。
    """

    def __init__(
        self,
        trie: PrefixTrie,
        layout: TokenLayout,
        *,
        prompt_length: int,
        eos_token_id: int | None = None,
        num_ids: int | None = 1,
    ) -> None:
        """门。

        Args:
            trie: 前缀树，过滤过的也行；与 logits 不在同一个设备时自动搬一次。
            layout: 词号；大小须与树相同。
            prompt_length: 提示的长度；`generate` 收到的 `input_ids.shape[1]`，编码器–解码器模型是解码器的起始长度 1。
            eos_token_id: 走完之后的词；None 表示靠 `max_new_tokens = n·L` 停下。
            num_ids: 生成几个 ID；None 表示混排。

        Raises:
            TypeError: 类型不对。
            ValueError: 大小不符或越界。
        """
        for name, value in (("prompt_length", prompt_length), ("eos_token_id", eos_token_id), ("num_ids", num_ids)):
            if value is None and name != "prompt_length":
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise InputTypeError(f"{name} must be an int, got {type(value).__name__} ({value!r})")
        if trie.sizes != layout.sizes:
            raise InputError(f"trie has sizes {trie.sizes}, but the token layout has {layout.sizes}; build both alike")
        if prompt_length < 0 or (num_ids is not None and num_ids < 1):
            raise InputError(f"prompt_length={prompt_length} and num_ids={num_ids} must be >= 0 and >= 1")
        if eos_token_id is not None and int(layout.levels_of(torch.tensor([eos_token_id]))[0]):
            raise InputError(f"eos_token_id={eos_token_id} is the token of a code; use the model's own EOS")
        self.trie, self.layout = trie, layout
        self.prompt_length, self.eos_token_id, self.num_ids = prompt_length, eos_token_id, num_ids
        self._lengths: Dict[int, int] = {}  # 线程 → 上一次调用的长度：几个线程可以同时用同一个对象

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, T) 已有的词、(R, V) 分数 → 同形状的新分数；输入不改动。

        Raises:
            InputError: 长度与 prompt_length 对不上。
            ValueError: 词表不符，全部行的前缀都不在树里，或允许的词的分数是 NaN、+inf。
        """
        position = self._position(input_ids.shape[1])
        if scores.shape[1] < self.layout.vocab_size:
            raise InputError(
                f"scores cover {scores.shape[1]} tokens, but the token layout reaches id {self.layout.vocab_size - 1}; "
                "call model.resize_token_embeddings(len(tokenizer))"
            )
        self.trie = self.trie.to(scores.device)
        if self.num_ids is None:
            return self._mixed(input_ids, scores)
        num_levels = self.trie.num_levels
        if position >= self.num_ids * num_levels:
            return self._only_eos(scores)
        level = position % num_levels
        nodes = self._nodes(input_ids, level)
        if bool((nodes < 0).all()):
            raise InputError(
                f"after {position} generated tokens no row is on its way to an item; is prompt_length="
                f"{self.prompt_length} right for input_ids of length {input_ids.shape[1]}?"
            )
        out = torch.full_like(scores, -math.inf)
        self._allow(out, scores, level, nodes)
        return self._rescue(out, nodes < 0)

    def _position(self, length: int) -> int:
        """当前长度 → 已经生成了几个词；接不上上一次就是 prompt_length 说错了。

        可以从头开始、长一个词，也可以把同一步再问一遍；唯独走完之后的那一步不许重问，也不许再往后：提示以上一次生成的物品
        结尾、prompt_length 却没有跟着变，正是这个样子。
        """
        position, last = length - self.prompt_length, self._lengths.get(threading.get_ident())
        end = None if self.num_ids is None else self.num_ids * self.trie.num_levels
        follows = last is not None and (length == last + 1 or (length == last and position != end))
        over = end is not None and position > end
        if over or not (position == 0 or (position > 0 and follows)):
            since = "" if last is None else f" and the call before had {last}"
            hint = (
                f"; if it does, all {self.num_ids} IDs are complete: let generate stop at eos_token_id" if over else ""
            )
            raise InputError(
                f"prompt_length={self.prompt_length} does not match generate: input_ids have length {length}{since}; "
                "a run starts at prompt_length and grows by one token a call. Pass prompt_length=input_ids.shape[1] of "
                "the (left padded) prompt, 1 for an encoder-decoder model, and build a new processor for each length"
                + hint
            )
        self._lengths[threading.get_ident()] = length
        return position

    def _nodes(self, input_ids: torch.Tensor, level: int) -> torch.Tensor:
        """最后 level 个词 → 结点；不属于该层的词减去起点后越界，自然查不到。"""
        tail = input_ids[:, input_ids.shape[1] - level :]  # (R, level)
        return self.trie.walk(tail - torch.tensor(self.layout.offsets[:level], device=tail.device))

    def _allow(self, out: torch.Tensor, scores: torch.Tensor, level: int, nodes: torch.Tensor) -> None:
        """把各行的孩子的分数抄进 out；out 里这一层的其余位置须已是 −inf。"""
        start, size = self.layout.offsets[level], self.trie.sizes[level]
        table = None
        if self.trie.max_children[level] * TABLE_FRACTION > size:
            table = self.trie.table(level)
        if table is not None:  # 孩子多：整段一起
            valid = table[nodes.clamp(min=0)] & (nodes >= 0)[:, None]  # (R, K)
            out[:, start : start + size] = _usable(scores[:, start : start + size], valid)
            return
        codes, _, valid = self.trie.children(level, nodes)  # (R, W)
        values = _usable(scores.gather(1, codes + start), valid)
        # 补齐处写到这一层之外的一列，随后还原：写在层内可能盖掉一个真的孩子
        spare = start - 1 if start > 0 else start + size if scores.shape[1] > size else None
        if spare is None:  # 整个词表就是这一层
            wide = torch.cat([out, out[:, :1]], dim=1)
            out.copy_(wide.scatter_(1, torch.where(valid, codes, size), values)[:, :-1])
            return
        saved = out[:, spare].clone()
        out.scatter_(1, torch.where(valid, codes + start, spare), values)
        out[:, spare] = saved

    def _mixed(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """文字与 ID 混排：看最后一个词走到了第几层。提示里没写完的 ID 也会接着走完。"""
        num_levels = self.trie.num_levels
        if input_ids.shape[1]:
            depth = self.layout.levels_of(input_ids[:, -1]) % num_levels  # (R,) 0 表示不在 ID 里
        else:
            depth = torch.zeros(len(input_ids), dtype=torch.int64, device=scores.device)
        out = torch.full_like(scores, -math.inf)
        dead = torch.zeros_like(depth, dtype=torch.bool)
        for level in range(num_levels):  # 按层，不按行
            rows = (depth == level).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            part, given = out[rows], scores[rows]
            if level == 0:
                part = given.clone()
                for start, size in zip(self.layout.offsets, self.layout.sizes, strict=True):
                    part[:, start : start + size] = -math.inf
            nodes = self._nodes(input_ids[rows], level) if input_ids.shape[1] >= level else depth[rows] * 0 - 1
            self._allow(part, given, level, nodes)
            out[rows], dead[rows] = part, nodes < 0
        return self._rescue(out, dead)

    def _only_eos(self, scores: torch.Tensor) -> torch.Tensor:
        """全部 ID 都已走完。"""
        if self.eos_token_id is None:
            raise InputError(
                f"all {self.num_ids} IDs are complete and there is no eos_token_id; set it, or use max_new_tokens="
                f"{(self.num_ids or 0) * self.trie.num_levels}"
            )
        out = torch.full_like(scores, -math.inf)
        out[:, self.eos_token_id] = 0.0
        return out

    def _rescue(self, out: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        """死束接 EOS，没有 EOS 就接一个不是语义 ID 的词。

        它们的累计分数已是 −inf，接什么都不会被返回；但一行里必须有一个有限值。
        """
        place = self.eos_token_id
        if place is None:
            place = 0 if self.layout.offsets[0] > 0 else min(self.layout.vocab_size, out.shape[1] - 1)
        out[:, place] = torch.where(dead, _LAST_RESORT, out[:, place])
        return out


def _usable(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """允许的位置留下原来的分数，其余为 −inf；一行允许的全是 −inf 时都给 `_LAST_RESORT`。"""
    values = torch.where(valid, scores, -math.inf)
    best = values.amax(dim=1)  # (R,)，有 NaN 就是 NaN
    if bool(best.isfinite().all()):
        return values
    broken = ~(best < math.inf)
    if bool(broken.any()):
        row = int(broken.nonzero()[0])
        raise InputError(f"scores row {row} hold NaN or +inf for allowed tokens; check the model's logits")
    return torch.where(valid & (best == -math.inf)[:, None], _LAST_RESORT, values)
