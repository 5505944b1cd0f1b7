"""用码本初始化 Transformer 的词表：语义相近的编号，词向量从第一步起就相近。

用法：python examples/04_token_table.py
"""

from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook

DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))
PAD, BOS, EOS = 0, 1, 2  # 特殊词排在最前，各层编号依次往后排
NUM_SPECIAL = 3
D_MODEL = 96


def build_token_table(encoder: SemanticIDEncoder, d_model: int) -> tuple[nn.Embedding, list[int]]:
    """返回词表与各层的起始词号：第 l 层的编号 c 对应词号 offsets[l-1] + c。"""
    # 同一个数字在不同层意思不同（L1 的 5 与 L2 的 5 无关），所以每层要有自己的一段词号
    offsets = [NUM_SPECIAL]
    for size in encoder.codebook_sizes:
        offsets.append(offsets[-1] + size)
    table = nn.Embedding(offsets[-1], d_model, padding_idx=PAD)
    nn.init.normal_(table.weight, std=0.02)  # 特殊词没有码字可用，保持常见的 0.02
    with torch.no_grad():
        table.weight[PAD] = 0.0
        for level, size in enumerate(encoder.codebook_sizes, start=1):
            codebook = encoder.get_codebook_embeddings(level)  # (K_l, H)
            # 去均值：整层共有的分量只说明「这是第几层」，留给层位置编码去学
            centered = codebook - codebook.mean(dim=0)
            # 旋转到主方向再截前 d_model 维：截掉的是方差最小的方向，距离关系保留得最多。H < d_model 时补零
            _, _, axes = torch.linalg.svd(centered, full_matrices=False)
            rows = centered @ axes[:d_model].T  # (K_l, min(d_model, H, K_l))
            # 残差一层比一层小；不统一到 0.02，L3 的词向量会小得几乎不起作用
            rows = rows * (0.02 * (d_model * size) ** 0.5 / rows.norm())
            table.weight[offsets[level - 1] : offsets[level]] = nn.functional.pad(rows, (0, d_model - rows.shape[1]))
    return table, offsets


def main() -> None:
    torch.manual_seed(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))
    train_codebook(encoder, DEMO, num_epochs=0, config=TrainerConfig(max_train_rows=2000), progress=False)
    table, offsets = build_token_table(encoder, D_MODEL)
    print(f"num_tokens={table.num_embeddings} offsets={offsets[:-1]}")

    # 检查：词向量之间的距离与码字之间的距离一致（随机初始化时相关系数约为 0）
    for level in (1, 2, 3):
        codewords = torch.pdist(encoder.get_codebook_embeddings(level))
        tokens = torch.pdist(table.weight.detach()[offsets[level - 1] : offsets[level]])
        random = torch.pdist(torch.randn(encoder.codebook_sizes[level - 1], D_MODEL))
        kept, chance = (float(torch.corrcoef(torch.stack([codewords, d]))[0, 1]) for d in (tokens, random))
        print(f"L{level} distance_correlation={kept:.3f} random_init={chance:.3f}")

    # 两个用户，各自最近的 4 个物品：<BOS> 加 4 × 3 个词
    features = torch.from_numpy(next(open_vectors(DEMO).blocks(8)).vectors)
    codes = encoder.encode_codes(features) + torch.tensor(offsets[:-1])  # (8, 3)，已是词号
    tokens = torch.cat([torch.full((2, 1), BOS), codes.reshape(2, -1)], dim=1)  # (2, 13)
    layer = nn.TransformerEncoderLayer(D_MODEL, nhead=4, dim_feedforward=128, batch_first=True)
    hidden = layer(table(tokens))  # (2, 13, D_MODEL)
    logits = hidden @ table.weight.T  # 输入输出共用词表
    print(f"tokens={tuple(tokens.shape)} logits={tuple(logits.shape)}")


if __name__ == "__main__":
    main()
