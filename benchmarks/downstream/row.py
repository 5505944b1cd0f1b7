"""一格 = （规模、编号的做法、种子）：训练一个生成模型，名次存进缓存；被打断后重跑只补缺的格子。

缓存：`codes/` 是各家的编号，`rows/<格>/` 是 `row.json` 与 `ranks.npz`。先写到旁边再改名，中途被杀不留半格。格子的键里是
编号本身的摘要（不是谁做的）、行为数据的摘要、规模的设置、生成模型与训练的语法树的摘要（改注释不必重跑）、torch 与
transformers 的版本。
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import resource
import shutil
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from downstream.data import Interactions

HERE = Path(__file__).resolve().parent
SCHEMA = 1
VALID_STRIDE = 4  # 验证集上只看四分之一的用户：只用来挑做法
SOURCES = ("generator.py", "training.py")


@dataclass(frozen=True)
class Row:
    """缓存里的一格。

    Attributes:
        record: row.json 的内容。
        ranks: 名字 → (U,) int16 名次，−1 为不在其中；`test`、`test_unseen`（去掉看过的）、`valid`（四分之一用户）。
    """

    record: Dict[str, Any]
    ranks: Dict[str, np.ndarray]


def key_of(size_name: str, codes: np.ndarray, data: Interactions, seed: int) -> Dict[str, Any]:
    """决定这一格的一切。"""
    from downstream.generator import SIZES

    source = "".join(_meaning(HERE / name) for name in SOURCES)
    return {
        "schema": SCHEMA,
        "size": asdict(SIZES[size_name]),
        "seed": seed,
        "data": data.digest,
        "codes": hashlib.sha256(np.ascontiguousarray(codes).tobytes()).hexdigest()[:16],
        "source": hashlib.sha256(source.encode()).hexdigest()[:12],
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }


def _meaning(path: Path) -> str:
    """语法树去掉文档字符串之后的样子，与空白、注释无关。"""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SIZES":
            node.value = ast.Constant(None)  # 各规模的设置另在键里
    return ast.dump(tree)


def folder_of(key: Dict[str, Any], size_name: str, cache: Path) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return cache / "rows" / f"{size_name}_seed{key['seed']}_{digest}"


def read(folder: Path) -> Row | None:
    """缓存里的一格；没有为 None。"""
    path = folder / "row.json"
    if not path.is_file():
        return None
    with np.load(folder / "ranks.npz", allow_pickle=False) as stored:
        return Row(json.loads(path.read_text(encoding="utf-8")), dict(stored))


def run(
    size_name: str,
    codes: np.ndarray,
    sizes: tuple[int, ...],
    data: Interactions,
    seed: int,
    cache: Path,
    device: str,
    say: Callable[[str], None],
) -> Row:
    """训练、给全部用户排名、写进缓存。codes 已唯一（加过后缀）。"""
    from downstream import scoring, training
    from downstream.generator import SIZES

    key = key_of(size_name, codes, data, seed)
    folder = folder_of(key, size_name, cache)
    started, wall = time.process_time(), time.perf_counter()
    model = training.train(data.histories, codes, sizes, SIZES[size_name], seed, device, say)
    trained = time.process_time()
    some = range(0, data.num_users, VALID_STRIDE)
    valid = training.recommend(model, [data.histories[i] for i in some], codes, sizes, device)
    test = training.recommend(model, data.test_histories, codes, sizes, device)
    done = time.process_time()
    ranks = {
        "valid": scoring.ranks_of(valid, data.valid[::VALID_STRIDE]),
        "test": scoring.ranks_of(test, data.test),
        "test_unseen": scoring.ranks_of(test, data.test, data.test_histories),
    }
    record = {
        "key": key,
        "train_cpu_s": trained - started,
        "decode_cpu_s": done - trained,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "level_sizes": list(sizes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "device": device,
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    np.savez(part / "ranks.npz", **ranks)
    (part / "row.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return Row(record, ranks)
