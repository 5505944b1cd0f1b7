"""(层, 编号) ↔ 词号 ↔ `<a_3>`：同一个编号在不同层意思不同，所以每层有自己的一段词号。

第 l 层的编号 c 的词号是 offsets[l-1] + c，词面是 `<字母_c>`，L1 是 a，L2 是 b……去重位只是再多一层（三层之后就是 d）。
两种用法：
- 自己的小词表：`TokenLayout.flat(sizes)`，0…4 留给 pad、cls、sep、mask、unk；
- 现成的大模型：`add_tokens(tokenizer, sizes)` 接在它的词表后面。
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence, Tuple

import torch

from ..errors import InputError, InputTypeError
from ..files.sealed import seal, unseal
from ..token_text import MAX_LEVELS, TOKEN, token
from .trie_build import check_sizes

__all__ = ["CLS_ID", "MASK_ID", "PAD_ID", "SEP_ID", "UNK_ID", "TokenLayout", "add_tokens"]

PAD_ID, CLS_ID, SEP_ID, MASK_ID, UNK_ID = range(5)
_NUM_SPECIAL = 5
_FORMAT, _FORMAT_VERSION = "semid-tokens", 2  # 2 起有自己的校验和
# 词号的上界：张量里是 int64，词表远没有这么大
_MAX_TOKEN_ID = 1 << 31


@dataclass(frozen=True)
class TokenLayout:
    """各层的词号排在哪里。

    Attributes:
        sizes: (K_1, …, K_L)，含去重位。
        offsets: 各层第一个词号；从小到大，互不重叠。
    """

    sizes: Tuple[int, ...]
    offsets: Tuple[int, ...]

    def __post_init__(self) -> None:
        """门：层数相同、不重叠。"""
        sizes = check_sizes(self.sizes)
        offsets = tuple(self.offsets)
        if any(isinstance(o, bool) or not hasattr(o, "__index__") for o in offsets):
            raise InputTypeError(f"offsets={offsets!r} must be ints: the first token id of each level")
        if len(sizes) > MAX_LEVELS:
            raise InputError(f"sizes has {len(sizes)} levels; tokens have letters for {MAX_LEVELS} at most")
        if len(offsets) != len(sizes):
            raise InputError(f"offsets={offsets} must have one value per level of sizes={sizes}")
        ends = [0, *(offset + size for offset, size in zip(offsets, sizes, strict=True))]
        if any(offset < end for offset, end in zip(offsets, ends[:-1], strict=True)):
            raise InputError(f"offsets={offsets} overlap or fall with sizes={sizes}; levels must follow each other")
        if ends[-1] > _MAX_TOKEN_ID:
            raise InputError(
                f"offsets={offsets} with sizes={sizes} reach token id {ends[-1] - 1}; the bound is 2**31 - 1"
            )
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "offsets", tuple(int(offset) for offset in offsets))

    @classmethod
    def flat(cls, sizes: Sequence[int]) -> TokenLayout:
        """自己的小词表：0…4 是 pad、cls、sep、mask、unk，之后各层首尾相接。

        >>> TokenLayout.flat((1024, 4096, 16384)).offsets
        (5, 1029, 5125)
        """
        sizes = check_sizes(sizes)
        return cls(sizes, tuple(_NUM_SPECIAL + sum(sizes[:level]) for level in range(len(sizes))))

    @property
    def num_levels(self) -> int:
        """层数 L。"""
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """全部语义 ID 词的个数，Σ K_l。"""
        return sum(self.sizes)

    @property
    def vocab_size(self) -> int:
        """最大的词号加一；词表至少要这么大。"""
        return self.offsets[-1] + self.sizes[-1]

    def encode(self, codes: torch.Tensor) -> torch.Tensor:
        """(…, L) 编码 → (…, L) 词号。

        Raises:
            TypeError: 不是整数张量。
            ValueError: 层数不对或编号越界。
        """
        self._check(codes, "codes", (0,) * self.num_levels)
        return codes.long() + torch.tensor(self.offsets, device=codes.device)

    def decode(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(…, L) 词号 → (…, L) 编码；必须正好是一个个完整的 ID，要从长序列里找就用 `extract`。

        Raises:
            TypeError: 不是整数张量。
            ValueError: 层数不对，或某个词不属于那一层。
        """
        self._check(token_ids, "token_ids", self.offsets)
        return token_ids.long() - torch.tensor(self.offsets, device=token_ids.device)

    def levels_of(self, token_ids: torch.Tensor) -> torch.Tensor:
        """每个词属于第几层，1…L；不是语义 ID 的词为 0。"""
        offsets = torch.tensor(self.offsets, device=token_ids.device)
        ends = offsets + torch.tensor(self.sizes, device=token_ids.device)
        level = torch.bucketize(token_ids.contiguous(), offsets, right=True)  # 起点不超过它的层数
        return torch.where(token_ids < ends[(level - 1).clamp(min=0)], level, 0)

    def extract(self, sequences: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """从生成的序列里找出全部完整的 ID。

        Args:
            sequences: (R, T) 词号，例如 `generate` 的返回值。

        Returns:
            (所在的行 (M,), 编码 (M, L))，按行、按先后。
        """
        num_levels = self.num_levels
        if sequences.ndim != 2:
            raise InputError(f"sequences have shape {tuple(sequences.shape)}; need (R, T)")
        if sequences.shape[1] < num_levels:
            empty = torch.zeros(0, dtype=torch.int64, device=sequences.device)
            return empty, empty.view(0, num_levels)
        windows = sequences.unfold(1, num_levels, 1)  # (R, T − L + 1, L)
        wanted = torch.arange(1, num_levels + 1, device=sequences.device)
        whole = (self.levels_of(windows) == wanted).all(dim=2)
        return whole.nonzero()[:, 0], self.decode(windows[whole])

    def to_text(self, codes: Sequence[int] | torch.Tensor) -> str:
        """一个 ID 的词面。

        >>> TokenLayout.flat((16, 16, 100)).to_text((12, 7, 99))
        '<a_12><b_7><c_99>'
        """
        values = self.encode(torch.as_tensor(codes)) - torch.tensor(self.offsets)
        if values.ndim != 1:
            raise InputError(
                f"codes have shape {tuple(values.shape)}; to_text takes one ID of shape ({self.num_levels},)"
            )
        return "".join(token(level, code) for level, code in enumerate(values.tolist()))

    def from_text(self, text: str) -> List[Tuple[int, ...]]:
        """文字里全部完整的 ID；词之间可以有空白（有的分词器解码时会加）。

        一个编号只有一种写法（见 `token_text.py`）：`<a_01>`、全角数字的，都不是 `<a_1>`，只是文字。

        >>> TokenLayout.flat((16, 16, 100)).from_text("买了 <a_12> <b_7><c_99>，没买 <a_1>")
        [(12, 7, 99)]
        """
        found: List[Tuple[int, ...]] = []
        part: List[int] = []
        end = 0
        for match in TOKEN.finditer(text):
            level, code = ord(match[1]) - ord("a"), int(match[2])
            if (
                level >= self.num_levels
                or code >= self.sizes[level]
                or level != len(part)
                or text[end : match.start()].strip()
            ):
                part = []  # 接不上：从这里重新开始
            if level == len(part) and level < self.num_levels and code < self.sizes[level]:
                part.append(code)
            if len(part) == self.num_levels:
                found.append(tuple(part))
                part = []
            end = match.end()
        return found

    def level_tokens(self, level: int) -> List[str]:
        """第 level 层（1…L）的全部词面，按编号。"""
        if not 1 <= level <= self.num_levels:
            raise InputError(f"level={level} is out of range; use 1..{self.num_levels} (1 is L1)")
        return [token(level - 1, code) for code in range(self.sizes[level - 1])]

    def to_json(self, **more: Any) -> str:
        """写成带校验和的 JSON，随分词器一起存；more 是一并记下的别的键。"""
        record = {"format": _FORMAT, "format_version": _FORMAT_VERSION, "sizes": self.sizes, "offsets": self.offsets}
        return seal({**record, **more}).decode()

    @classmethod
    def from_json(cls, text: str, where: str = "token layout") -> TokenLayout:
        """读回 `to_json`；版本 1 的没有校验和，照样能读。

        Args:
            text: JSON。
            where: 错误信息里的文件名。

        Raises:
            TypeError: 大小或起点不是整数。
            ValueError: 不是它写的、被改动，或内容不对。
        """
        record, has_seal = unseal(text.encode("utf-8", "surrogatepass"), where)
        if record.get("format") != _FORMAT:
            raise InputError(f"{where} is no token layout: format must be {_FORMAT!r}; write one with `semid tokens`")
        version = record.get("format_version")
        if version not in (1, _FORMAT_VERSION) or isinstance(version, bool):
            raise InputError(
                f"{where} has format_version {version!r}, this semid reads up to {_FORMAT_VERSION}; upgrade semid"
            )
        if version != 1 and not has_seal:
            raise InputError(f"{where} has no checksum, but its version always has one; write it again")
        sizes, offsets = record.get("sizes"), record.get("offsets")
        if not isinstance(sizes, list) or not isinstance(offsets, list):
            raise InputError(f"{where} must hold the lists sizes and offsets; write it again with `semid tokens`")
        return cls(tuple(sizes), tuple(offsets))

    def _check(self, values: torch.Tensor, name: str, starts: Sequence[int]) -> None:
        """整数、L 列、每列在 [start, start + K_l) 之内。"""
        if not isinstance(values, torch.Tensor) or values.dtype.is_floating_point or values.dtype == torch.bool:
            kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
            raise InputTypeError(f"{name} must be an integer torch.Tensor, got {kind}")
        if values.ndim == 0 or values.shape[-1] != self.num_levels:
            raise InputError(f"{name} have shape {tuple(values.shape)}; need (..., {self.num_levels}): one per level")
        low = torch.tensor(starts, device=values.device)
        bad = (values < low) | (values >= low + torch.tensor(self.sizes, device=values.device))
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            value, level = int(values[tuple(place)]), place[-1]
            bound = f"[{starts[level]}, {starts[level] + self.sizes[level]})"
            raise InputError(f"{name} at {place[:-1]} has {value} for L{level + 1}; it must be in {bound}")


def add_tokens(tokenizer: Any, sizes: Sequence[int]) -> TokenLayout:
    """把全部语义 ID 词加进一个 Hugging Face 分词器（就地）；已经全都加过就只读出词号。

    词不是特殊词，`skip_special_tokens=True` 解码时不会丢；`normalized=False`，转小写的分词器也认得。
    之后别忘了 `model.resize_token_embeddings(len(tokenizer))`，再用 `init_embedding_rows_` 初始化新的行。

    Args:
        tokenizer: `transformers` 的分词器。
        sizes: (K_1, …, K_L)，含去重位。

    Returns:
        这个分词器里的 `TokenLayout`。

    Raises:
        ImportError: 没有安装 `semid[hf]`。
        ValueError: 分词器里已有一部分同名的词，排不成连续的一段；或它加进去之后仍认不出。
    """
    try:
        from tokenizers import AddedToken
    except ImportError as error:
        raise ImportError("LLM tokens need the extra `hf`: pip install 'semid[hf]'") from error
    layout = TokenLayout.flat(sizes)
    words = [word for level in range(1, layout.num_levels + 1) for word in layout.level_tokens(level)]
    vocabulary = tokenizer.get_vocab()
    present = [word for word in words if word in vocabulary]
    if present and len(present) < len(words):
        raise InputError(
            f"the tokenizer already has {len(present)} of the {len(words)} tokens, e.g. {present[0]!r}, so the ids "
            "would not be in one piece; start from the original tokenizer"
        )
    if not present:
        tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    ids = tokenizer.convert_tokens_to_ids(words)
    offsets = [ids[sum(layout.sizes[:level])] for level in range(layout.num_levels)]
    expected = [o + code for o, size in zip(offsets, layout.sizes, strict=True) for code in range(size)]
    if ids != expected:
        raise InputError(
            "the tokenizer does not hold the tokens in consecutive order; start from the original tokenizer"
        )
    layout = TokenLayout(layout.sizes, tuple(offsets))
    last = [size - 1 for size in layout.sizes]
    if tokenizer.encode(layout.to_text(last), add_special_tokens=False) != layout.encode(torch.tensor(last)).tolist():
        raise InputError(f"the tokenizer splits {layout.to_text(last)!r} otherwise than one token per level")
    return layout
