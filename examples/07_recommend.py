"""全程：特征 → 语义 ID → 小生成模型 → 带标题的推荐。

需要 `pip install -e ".[hf]"`。用法：python examples/07_recommend.py [数据文件夹]，内有
items.parquet 与 interactions.parquet（docs/guides/downstream.md）；不给就用内置的物品，假想的用户各自只看一个类目。
"""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn.functional import pad
from transformers import LlamaConfig, LlamaForCausalLM

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook
from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout, beam_search
from algorithm.semantic_id.decoding.tokens import CLS_ID, PAD_ID

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(str(files("algorithm.semantic_id") / "demo"))
HISTORY, BATCH, STEPS = 5, 64, 1500 if len(sys.argv) > 1 else 100  # 真实的行为难学；1,500 步约半分钟


def load_users(category: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(U, HISTORY + 1) 物品行号，按时间先后；最后一个是要猜的。"""
    if (FOLDER / "interactions.parquet").is_file():
        users = pq.read_table(FOLDER / "interactions.parquet", columns=["train_items", "valid_item"]).to_pylist()
        rows = [[*user["train_items"], user["valid_item"]][-HISTORY - 1 :] for user in users]
        return np.array([row for row in rows if len(row) == HISTORY + 1])
    same = [np.flatnonzero(category == name) for name in np.unique(category)]
    return np.stack([rng.choice(same[i], HISTORY + 1) for i in rng.integers(0, len(same), 4000)])


def main() -> None:
    rng = np.random.default_rng(torch.manual_seed(0).initial_seed())
    # 一、特征 → 语义 ID；撞在一起的加一个后缀，一个物品一个 ID
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 32, 32)))
    train_codebook(encoder, FOLDER / "items.parquet", 0, config=TrainerConfig(max_train_rows=4000), progress=False)
    blocks = open_vectors(FOLDER / "items.parquet").blocks(8192)
    codes = torch.cat([encoder.encode_codes(torch.from_numpy(block.vectors)) for block in blocks])  # (N, 3)
    suffix = [int((codes[:row] == code).all(dim=1).sum()) for row, code in enumerate(codes)]  # 前面有几个同号的
    codes, sizes = torch.cat([codes, torch.tensor(suffix)[:, None]], dim=1), (*encoder.codebook_sizes, max(suffix) + 1)
    trie, layout = PrefixTrie.build(codes, sizes), TokenLayout.flat(sizes)
    print(f"num_items={trie.num_items} num_ids={trie.num_ids} vocab_size={layout.vocab_size}")

    # 二、小生成模型：<cls> 与历史里各物品的词，逐个往下写
    items = pq.read_table(FOLDER / "items.parquet").to_pydict()
    category = np.asarray(items.get("category", items.get("l1_category")))
    users = load_users(category, rng)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape |= {"vocab_size": layout.vocab_size, "pad_token_id": PAD_ID, "bos_token_id": CLS_ID, "eos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        chosen = users[rng.integers(200, len(users), BATCH)]
        words = pad(layout.encode(codes[chosen]).flatten(1), (1, 0), value=CLS_ID)  # (B, 25)
        loss = model(input_ids=words, labels=words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # 三、没有训练过的前 200 个用户：束搜索只走存在的 ID，得到物品
    history = pad(layout.encode(codes[users[:200, :HISTORY]]).flatten(1), (1, 0), value=CLS_ID)  # (U, 21)

    def step_fn(chosen: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        level, repeats = chosen.shape[1], len(chosen) // len(history)
        given = chosen + torch.tensor(layout.offsets[:level], dtype=torch.int64)
        words = torch.cat([history.repeat_interleave(repeats, dim=0), given], dim=1)
        return model(input_ids=words, logits_to_keep=1).logits[:, 0, layout.offsets[level] :][:, : sizes[level]]

    found = beam_search(step_fn, trie, batch_size=200, num_beams=20, num_results=10).items.numpy()  # (U, 10)
    recall, same = (found == users[:200, -1:]).any(axis=1).mean(), category[found] == category[users[:200, :1]]
    print(f"loss={loss:.3f} recall_at_10={recall:.4f} same_category={same.mean():.3f} real={(found >= 0).mean():.3f}")
    print("history: " + "; ".join(items["title"][row] for row in users[0, :HISTORY]))
    print("recommended: " + "; ".join(items["title"][row] for row in found[0, :5]))


if __name__ == "__main__":
    main()
