"""训练一个小编码器、保存、重新加载，确认 ID 逐位相同。

用法：python examples/01_train.py [输出文件夹]（不给则用临时文件夹，跑完即删）
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import torch

from algorithm.semantic_id import SemanticIDConfig, SemanticIDEncoder, TrainerConfig, open_vectors, train_codebook

# 内置的 8,192 个 WordNet 名词：item_id、title、category、256 维 embedding
DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))


def main(folder: Path) -> None:
    # 码本要与数据相称：默认的 1024/4096/16384 是给上百万物品的，两千行填不满 16384 个码字
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))

    # 第二个参数可以是张量、NumPy 数组或 memmap、.npy 路径、Parquet 文件或文件夹；文件按块读，内存不随行数涨。
    # max_train_rows 按种子抽样，这里只为让示例几秒跑完；正式训练不必给。
    figures = train_codebook(
        encoder,
        DEMO,
        num_epochs=4,
        config=TrainerConfig(batch_size=256, max_train_rows=2000, seed=0),
        output_dir=folder,  # metrics.jsonl、断点、最后的模型都写在这里
        progress=False,
    )
    # relative_mse：重建误差平方和 / 到训练均值的偏差平方和；1 等于只会猜均值，0 为完美
    print(f"relative_mse={figures['relative_mse']:.4f}")
    print(f"utilization={' '.join(f'{u:.2f}' for u in figures['utilization'])}")
    print(f"best_epoch={figures['best_epoch']} of {figures['num_epochs']}")

    # 加载时核对 SHA-256 与指纹；文件里没有 pickle，加载别人的模型不会执行代码
    reloaded = SemanticIDEncoder.from_pretrained(folder)
    block = next(open_vectors(DEMO).blocks(1024))
    features = torch.from_numpy(block.vectors)  # (1024, 256)
    same = torch.equal(encoder.encode_codes(features), reloaded.encode_codes(features))
    print(f"same_ids_after_reload={same}")
    print(f"fingerprint={reloaded.fingerprint()}")
    print("files=" + " ".join(sorted(p.name for p in folder.iterdir())))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
