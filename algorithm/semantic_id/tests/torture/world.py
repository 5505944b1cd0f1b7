"""被折磨的小世界：特征、模型、物品表、评估……全部由公开的命令写出，只写一次，此后只读。

`contents` 说两份输出是不是一样；`VIEWS` 说使用者从一份输出里看到什么。
"""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .processes import call, run

__all__ = ["NAMES", "SMALL", "TOKENIZER_LETTERS", "VIEWS", "World", "contents", "vectors"]

N, D = 240, 6
SMALL = ("--codebook-sizes", "8,8,32", "--epochs", "3", "--batch-size", "64", "--effort", "fast")
NAMES = [f"sku-{i}" for i in range(N)]
TOKENIZER_LETTERS = "abcdefghijklmnopqrstuvwxyz<>_0123456789 "
# 里面有时刻与耗时，或只给人看：两次运行不必相同
_LOOSE = {"tensorboard", "README.md"}
_MOMENTS = {"created", "elapsed_s", "self_sha256", "seconds", "config_sha256"}


def vectors(count: int, seed: int) -> np.ndarray:
    """几个疏密不一的团；每七行有一对一样的，ID 因此会撞。"""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, D))[rng.integers(0, 8, count)] * 4 + rng.standard_normal((count, D))
    x[7::7] = x[6::7][: len(x[7::7])]
    return x.astype(np.float32)


def _table(names: List[str], x: np.ndarray) -> pa.Table:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    return pa.table({"item_id": names, "embedding": rows, "title": [f"title of {n}" for n in names]})


class World:
    """一个目录里的全部输入。

    Args:
        folder: 空目录。
        whole: 连同分词器、faiss 索引、评估与报告；短的一段不全要。
    """

    def __init__(self, folder: Path, whole: bool = True) -> None:
        self.folder, self.whole = folder, whole
        self.x = vectors(N, 3)
        self._write_inputs()
        self._write_outputs()
        self.before = contents(folder)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def _write_inputs(self) -> None:
        np.save(self / "x.npy", self.x)
        pq.write_table(_table(NAMES, self.x), self / "x.parquet")
        pq.write_table(_table([f"new-{i}" for i in range(60)], vectors(60, 4)), self / "new.parquet")
        pq.write_table(_table([f"late-{i}" for i in range(40)], vectors(40, 5)), self / "late.parquet")
        pq.write_table(pa.table({"item_id": NAMES[10:30]}), self / "retire.parquet")
        pairs = np.random.default_rng(6).integers(0, N, (300, 2))
        pairs[pairs[:, 0] == pairs[:, 1], 1] += 1
        left, right = ([NAMES[row % N] for row in column] for column in pairs.T)
        pq.write_table(pa.table({"left": left, "right": right}), self / "pairs.parquet")

    def _write_outputs(self) -> None:
        x = str(self / "x.parquet")
        self._semid("train", x, "--output", "model", *SMALL)
        self._semid("train", x, "--output", "other", *SMALL, "--seed", "9")
        for unique in ("none", "suffix", "nearest-free"):
            self._semid("encode", "model", x, "--output", unique, f"--unique={unique}", "--rows-per-part", "100")
        shutil.copytree(self / "suffix", self / "updated")
        self._semid("update", "updated", "new.parquet", "--model", "model", "--retire", "retire.parquet")
        self._semid("export", "none", "--index-json", "codes.index.json")
        self._semid("evaluate", "model", x, "--output", "evaluation")
        self._unfinished()
        self._in_child(self._write_trie)
        if self.whole:
            self._semid("decode", "model", "none", "--output", "back.npy")
            self._semid("report", "evaluation", "--output", "report.html")
            self._in_child(self._write_tokenizer)
            self._semid("tokens", "model", "--tokenizer", "tokenizer", "--output", "tokens", "--embedding-dim", "8")
            if find_spec("faiss") is not None:
                self._in_child(self._write_faiss)

    def _semid(self, *argv: str) -> None:
        """相对的名字是本目录里的。"""
        known = [str(self / a) if (self / a).exists() and not a.startswith("-") else a for a in argv]
        for flag in ("--output", "--index-json"):
            if flag in argv:
                known[argv.index(flag) + 1] = str(self / argv[argv.index(flag) + 1])
        ended = run([*known, "--quiet"], self.folder)
        if ended.code:
            raise RuntimeError(f"the world could not be built: {argv}: {ended.err}")

    def _unfinished(self) -> None:
        """训练到一半被杀，留下断点。"""
        argv = ["train", self / "x.parquet", "--output", self / "unfinished", *SMALL, "--quiet"]
        for moment in (110, 90, 130, 70, 150, 50, 170, 30):
            shutil.rmtree(self / "unfinished", ignore_errors=True)
            run([str(a) for a in argv], self / "unfinished", kill_at=moment)
            if len(list((self / "unfinished" / "checkpoints").glob("epoch-000001"))) == 1:
                return
        raise RuntimeError("no kill moment left a checkpoint of epoch 1")

    def _in_child(self, function: Callable[[], None]) -> None:
        _, death = call(lambda emit: function())
        if death:
            raise RuntimeError(f"the world could not be built: {function.__name__} {death}")

    def _write_trie(self) -> None:
        from algorithm.semantic_id import Catalog
        from algorithm.semantic_id.decoding import PrefixTrie

        PrefixTrie.build(Catalog.open(self / "suffix")).save(self / "trie.safetensors")

    def _write_tokenizer(self) -> None:
        from tokenizers import Tokenizer, decoders, models
        from transformers import PreTrainedTokenizerFast

        words = {letter: i for i, letter in enumerate(TOKENIZER_LETTERS)}
        tokenizer = Tokenizer(models.BPE(words, []))
        tokenizer.decoder = decoders.Fuse()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(str(self / "tokenizer"))

    def _write_faiss(self) -> None:
        import faiss

        index = faiss.IndexResidualQuantizer(D, 2, 3)
        index.train(self.x)
        faiss.write_index(index, str(self / "residual.faiss"))


def contents(path: Path) -> Dict[str, str]:
    """文件或目录里的全部：相对的名字 → 摘要；时刻与耗时抹去，模型卡与训练曲线不算。"""
    if not path.exists():
        return {}
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(_plain(file)).hexdigest()[:16]
        for file in files
        if not _LOOSE & set(file.relative_to(path).parts)
    }


def _plain(file: Path) -> bytes:
    data = file.read_bytes()
    if file.name in ("metrics.jsonl", "evaluation.json", "state.json", "demo.json"):
        try:
            lines = [json.loads(line) for line in (data.splitlines() if file.suffix == ".jsonl" else [data])]
        except ValueError:
            return data
        return json.dumps([_timeless(line) for line in lines], sort_keys=True).encode()
    return data


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in _MOMENTS and not k.endswith("_s")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


# ---- 使用者看到什么 ----


def _view_model(path: Path) -> str:
    from algorithm.semantic_id import SemanticIDEncoder

    return SemanticIDEncoder.from_pretrained(path).fingerprint()


def _view_catalog(path: Path) -> str:
    from algorithm.semantic_id import Catalog

    catalog = Catalog.open(path)
    catalog.verify()
    rows = catalog.read()
    found = catalog.find(rows.column("item_id"))
    text = json.dumps([catalog.generation, catalog.fingerprint, rows.to_pydict(), found.tolist()])
    return hashlib.sha256(text.encode()).hexdigest()


def _view_evaluation(path: Path) -> str:
    from algorithm.semantic_id.evaluation.folder import read_evaluation_folder

    evaluation, items, codewords = read_evaluation_folder(path)
    text = json.dumps([_timeless(evaluation), items.to_pydict(), codewords.to_pydict()], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _view_files(path: Path) -> str:
    return json.dumps(contents(path), sort_keys=True) if path.exists() else "error: absent"


VIEWS: Dict[str, Callable[[Path], str]] = {
    "model": _view_model,
    "catalog": _view_catalog,
    "evaluation": _view_evaluation,
    "files": _view_files,
}
