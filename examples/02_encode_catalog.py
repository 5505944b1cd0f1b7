"""把整张物品表编码成语义 ID，落盘、读回，看看共享前缀的物品是不是真的相似。

用法：python examples/02_encode_catalog.py [输出文件夹]（不给则用临时文件夹，跑完即删）
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from algorithm.semantic_id import (
    Catalog,
    SemanticIDConfig,
    SemanticIDEncoder,
    TrainerConfig,
    encode_catalog,
    open_vectors,
    train_codebook,
)

DEMO = Path(str(files("algorithm.semantic_id") / "demo" / "items.parquet"))


def same_category_rate(prefix: np.ndarray, category: np.ndarray) -> float:
    """随机取前缀相同的两个不同物品，它们属于同一类的概率。"""
    pairs = same = 0
    for value in np.unique(prefix):
        members = category[prefix == value]
        pairs += len(members) * (len(members) - 1)
        _, counts = np.unique(members, return_counts=True)
        same += int((counts * (counts - 1)).sum())
    return same / pairs


def main(folder: Path) -> None:
    encoder = SemanticIDEncoder(SemanticIDConfig(codebook_sizes=(32, 64, 128)))
    # num_epochs=0：只做逐层残差 k-means 初始化，对示例已经够好
    train_codebook(encoder, DEMO, num_epochs=0, config=TrainerConfig(max_train_rows=2000), progress=False)

    # 训练只见过 2,000 行，编码的是全部 8,192 行；一块一块地读，输出先写在旁边，写完才改名到位
    summary = encode_catalog(encoder, open_vectors(DEMO), folder / "catalog")
    print(f"num_items={summary['num_items']} num_parts={summary['num_parts']}")

    # 读的时候逐分片核对 SHA-256；行序与输入相同，所以可以直接与原表并排
    table = Catalog.open(folder / "catalog").read()
    print("columns=" + " ".join(table.column_names))
    items = pq.read_table(DEMO, columns=["item_id", "title", "category"])
    assert table["item_id"].equals(items["item_id"])

    l1, l2 = (table[name].to_numpy() for name in ("l1", "l2"))
    category = np.asarray(items["category"].to_pylist())
    print(f"same_category chance={same_category_rate(np.zeros_like(l1), category):.3f}", end=" ")
    print(f"same_l1={same_category_rate(l1, category):.3f}", end=" ")
    print(f"same_l1_l2={same_category_rate(l1 * 64 + l2, category):.3f}")

    # 拿最大的几个 (L1, L2) 前缀给人看
    titles = items["title"].to_pylist()
    prefixes, sizes = np.unique(np.stack([l1, l2], axis=1), axis=0, return_counts=True)
    for a, b in prefixes[np.argsort(-sizes, kind="stable")[:3]]:
        members = np.flatnonzero((l1 == a) & (l2 == b))
        print(f"<{a}, {b}, *> {len(members)} 个：" + "、".join(titles[i] for i in members[:6]))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
