"""从语义 ID 还原特征向量：前缀越长，还原得越准；坏编号会被拦下。

用法：python examples/03_decode.py
"""

from importlib.resources import files
from pathlib import Path

import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook

DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))


def main() -> None:
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))
    train_codebook(encoder, DEMO, num_epochs=0, config=TrainerConfig(max_train_rows=2000), progress=False)

    block = next(open_vectors(DEMO).blocks(2000))
    features = torch.from_numpy(block.vectors)  # (2000, 256)
    l1, l2, l3 = encoder.encode(features)  # 每个 (2000,) int64
    print(f"first_item={block.ids[0].as_py()} id=<{l1[0]}, {l2[0]}, {l3[0]}>")

    reconstructed = encoder.decode(l1, l2, l3)  # (2000, 256)
    deviation = (features - encoder.feature_mean).square().sum()
    error = (features - reconstructed).square().sum() / deviation
    print(f"decode relative_mse={error:.4f}")

    # 只用前缀也能还原，只是粗一些：码字逐层相加，再过同一个解码网络。生成模型刚吐出 L1 时就能拿它做粗排
    partial = torch.zeros_like(features)
    errors = []
    with torch.no_grad():
        for level, ids in enumerate((l1, l2, l3), start=1):
            partial = partial + encoder.get_codebook_embeddings(level)[ids]
            errors.append(float((features - encoder.rq_vae.decoder(partial)).square().sum() / deviation))
    print("prefix relative_mse=" + " ".join(f"{e:.4f}" for e in errors))
    print(f"full_prefix_equals_decode={torch.equal(encoder.rq_vae.decoder(partial), reconstructed)}")

    # 还原出来的向量再编码，多半回到同一个 ID，但没有保证：逐层贪心不是投影，更长的码字可能让第一层改选别人。
    # 要由 ID 找回物品请查物品表，不要靠重新编码
    again = encoder.encode_codes(reconstructed)
    back = (again == torch.stack([l1, l2, l3], dim=1)).all(dim=1).double().mean()
    print(f"reencoded_same_id={back:.3f}")

    # 生成模型可能吐出码本之外的编号；门口报错，说清哪一行、什么值、界限是多少
    l2[5] = 64
    try:
        encoder.decode(l1, l2, l3)
    except ValueError as error_message:
        print(f"rejected: {error_message}")


if __name__ == "__main__":
    main()
