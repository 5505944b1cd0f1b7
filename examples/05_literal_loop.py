"""需求文档里的训练循环，逐行照抄；需要自己掌控循环（混合精度、自定义采样、联合训练）时从这里改起。

与 `train_codebook` 的差别：没有 k-means 初始化、留出评判、断点与最优状态；死码字的复活在量化器里，这里同样有。

用法：python examples/05_literal_loop.py
"""

from importlib.resources import files
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, compute_codebook_utilization, open_vectors

DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))


def train_codebook(encoder, item_features, num_epochs=10):
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)

    for epoch in range(num_epochs):
        for batch in DataLoader(item_features, batch_size=256):
            optimizer.zero_grad()
            output = encoder.rq_vae(batch)
            loss = output["total_loss"]
            loss.backward()
            optimizer.step()

        # 监控码本利用率
        utilization = compute_codebook_utilization(encoder)
        print(f"Epoch {epoch}: Loss={loss:.4f}, Utilization={utilization:.2%}")


def main() -> None:
    torch.manual_seed(0)
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))  # 均匀初始化，新建的模型处于训练模式
    item_features = torch.from_numpy(next(open_vectors(DEMO).blocks(2048)).vectors)  # (2048, 256)
    train_codebook(encoder, item_features)

    # 编码永远不写状态：训练模式与评估模式给出同样的 ID
    in_train_mode = encoder.encode_codes(item_features)
    encoder.eval()
    print(f"same_ids_in_eval_mode={torch.equal(in_train_mode, encoder.encode_codes(item_features))}")
    reconstructed = encoder.decode_codes(in_train_mode)
    deviation = (item_features - item_features.mean(dim=0)).square().sum()
    print(f"relative_mse={(item_features - reconstructed).square().sum() / deviation:.4f}")


if __name__ == "__main__":
    main()
