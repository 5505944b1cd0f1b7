"""三楼：受约束的解码，只生成存在的语义 ID。只认整数数组，从不 import 模型与物品表。

`transformers` 的 LogitsProcessor 在 `decoding.hf`，要用时单独 import：它需要 `semid[hf]`，
`decoding.tokens.add_tokens` 也需要。
"""

from .beam_decoding import Beams, beam_search
from .tokens import TokenLayout
from .trie import PrefixTrie
from .trie_file import TrieFileError
from .trie_filter import EmptyFilterError

__all__ = ["Beams", "EmptyFilterError", "PrefixTrie", "TokenLayout", "TrieFileError", "beam_search"]
