"""训练一个小 Transformer 生成语义 ID，用前缀树保证生成的每一个都是真的物品。

需要 `pip install -e ".[hf]"`；模型由配置造出，不下载。用法：python examples/06_generate_items.py
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook
from algorithm.semantic_id.decoding import PrefixTrie, TokenLayout
from algorithm.semantic_id.decoding.embedding_rows import init_embedding_rows_
from algorithm.semantic_id.decoding.hf import SemanticIDLogitsProcessor
from algorithm.semantic_id.decoding.tokens import CLS_ID, PAD_ID, SEP_ID

DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))
HISTORY, BEAMS, STEPS, BATCH = 3, 8, 40, 64


def sample_users(category: np.ndarray, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """(B, HISTORY + 1) 物品行号：假想的用户只看同一类的物品。"""
    by_category = [np.flatnonzero(category == name) for name in np.unique(category)]
    return np.stack([rng.choice(by_category[i], HISTORY + 1) for i in rng.integers(0, len(by_category), num_users)])


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))
    train_codebook(encoder, DEMO, num_epochs=0, config=TrainerConfig(max_train_rows=2000), progress=False)
    vectors = next(open_vectors(DEMO).blocks(8192)).vectors
    codes = encoder.encode_codes(torch.from_numpy(vectors))  # (N, 3)
    items = pq.read_table(DEMO, columns=["title", "category"]).to_pydict()
    category = np.asarray(items["category"])

    trie, layout = PrefixTrie.build(codes, encoder.codebook_sizes), TokenLayout.flat(encoder.codebook_sizes)
    print(f"num_items={trie.num_items} num_ids={trie.num_ids} vocab_size={layout.vocab_size}")
    config = LlamaConfig(
        vocab_size=layout.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        pad_token_id=PAD_ID, bos_token_id=CLS_ID, eos_token_id=SEP_ID, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    codebooks = [encoder.get_codebook_embeddings(level) for level in (1, 2, 3)]
    init_embedding_rows_(model.get_input_embeddings().weight, layout, codebooks)

    # 一行：<cls> 历史里的三个 ID、要预测的 ID、<sep>
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        ids = layout.encode(codes[sample_users(category, BATCH, rng)]).flatten(1)  # (B, 12)
        ids = torch.nn.functional.pad(torch.nn.functional.pad(ids, (1, 0), value=CLS_ID), (0, 1), value=SEP_ID)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss={loss:.3f}")

    # 同样的提示，受约束与不受约束各生成一次
    users = sample_users(category, 16, rng)
    prompt = torch.nn.functional.pad(layout.encode(codes[users[:, :HISTORY]]).flatten(1), (1, 0), value=CLS_ID)
    options = {"num_beams": BEAMS, "num_return_sequences": BEAMS, "max_new_tokens": 4, "attention_mask": prompt * 0 + 1}
    no_plants = trie.filter(deny=category == "plant")  # 例如这类物品售罄了：不重建，也不改动 trie
    for name, shown in {"free": trie, "constrained": trie, "no_plants": no_plants}.items():
        only_items = SemanticIDLogitsProcessor(shown, layout, prompt_length=prompt.shape[1], eos_token_id=SEP_ID)
        out = model.generate(prompt, logits_processor=[] if name == "free" else [only_items], **options)
        rows, found = layout.extract(out[:, prompt.shape[1] :])
        item = shown.find(found).numpy()  # 行号；不是物品的为 −1
        rows, item = rows[item >= 0], item[item >= 0]
        same = category[item] == category[users[rows // BEAMS, 0]]
        print(f"{name}: real={len(item) / len(out):.3f} same_category={same.mean():.3f}", end=" ")
        print(f"plants={(category[item] == 'plant').mean():.3f}")
    print("最后一个用户：" + "、".join(items["title"][i] for i in item[-BEAMS:]))


if __name__ == "__main__":
    main()
