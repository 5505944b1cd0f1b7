"""胡闹的输入：每个读文件的地方，要么读得出来，要么给一个有类型的错误；别的异常、撑爆内存、段错误都是缺陷。"""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch

from .damage import quietly
from .mutate import mutate_json, mutate_npy, mutate_safetensors, reseal, write_odd_parquet
from .processes import Trial, Verdict
from .world import NAMES, SMALL, World

__all__ = ["Fuzz"]

Door = Callable[[Trial, Path], Any]


class Fuzz:
    """一次试验一扇门、一份胡闹的输入。

    Args:
        world: 像样的输入，用来改。
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.doors: List[Tuple[Door, float]] = [
            (self.config_json, 2), (self.weights, 2), (self.forged_model, 2), (self.state_json, 0.3),
            (self.manifest, 3), (self.index_npy, 1), (self.plan_json, 0.3), (self.evaluation_json, 2), (self.trie, 2),
            (self.token_layout, 1), (self.index_json, 2), (self.train_config, 1), (self.npy_features, 2),
            (self.npy_codes, 1), (self.parquet_features, 3), (self.parquet_codes, 1.5), (self.parquet_ids, 1),
            (self.parquet_judge, 1), (self.parquet_pairs, 1), (self.metrics_log, 0.3),
        ]  # fmt: skip
        self._models: List[Any] = []

    def __call__(self, trial: Trial) -> Verdict:
        """选一扇门，喂进去。"""
        door = trial.rng.choices([d for d, _ in self.doors], [w for _, w in self.doors])[0]
        folder = trial.folder / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        what = door.__name__  # type: ignore[attr-defined]
        try:
            door(trial, folder)
        except (OSError, ValueError, TypeError) as error:
            if not str(error).strip():
                return Verdict(what, f"an error without a word: {type(error).__name__}")
            return Verdict(what, self._ours(error))
        except Exception as error:
            return Verdict(what, f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}{_place(error)}")
        return Verdict(what)

    @staticmethod
    def _ours(error: BaseException) -> str:
        """类型对，却是从 NumPy、torch 或 Python 里漏出来的，没有一句给用户的话：也是缺陷。"""
        last = traceback.extract_tb(error.__traceback__)[-1]
        if "/semantic_id/" in last.filename or isinstance(error, OSError) or "<frozen" in last.filename:
            ours = last.line or ""
            raised = "raise" in ours or isinstance(error, OSError) or not ours or ")" == ours.strip()
            return "" if raised else f"not raised for the user: {type(error).__name__}: {error}{_place(error)}"
        return f"leaked from elsewhere: {type(error).__name__}: {str(error)[:200]}{_place(error)}"

    @property
    def _model(self) -> Any:
        if not self._models:
            from algorithm.semantic_id import SemanticIDEncoder

            self._models.append(SemanticIDEncoder.from_pretrained(self.world / "model"))
        return self._models[0]

    # ---- 模型与断点 ----

    def config_json(self, trial: Trial, folder: Path) -> None:
        shutil.copyfile(self.world / "model" / "model.safetensors", folder / "model.safetensors")
        original = json.loads((self.world / "model" / "config.json").read_bytes())
        data = mutate_json(original, trial.rng)
        (folder / "config.json").write_bytes(reseal(data, original) if trial.rng.random() < 0.8 else data)
        self._use_model(folder)

    def weights(self, trial: Trial, folder: Path) -> None:
        original = json.loads((self.world / "model" / "config.json").read_bytes())
        data = mutate_safetensors((self.world / "model" / "model.safetensors").read_bytes(), trial.rng)
        (folder / "model.safetensors").write_bytes(data)
        forged = {**original, "weights_sha256": hashlib.sha256(data).hexdigest()}
        (folder / "config.json").write_bytes(reseal(json.dumps(forged).encode(), original))
        self._use_model(folder)

    def forged_model(self, trial: Trial, folder: Path) -> None:
        """配置改过，指纹与校验和都重算过：只剩内容本身可以查。"""
        from safetensors.torch import load

        from algorithm.semantic_id.files.checkpoint import fingerprint_of

        original = json.loads((self.world / "model" / "config.json").read_bytes())
        data = (self.world / "model" / "model.safetensors").read_bytes()
        if trial.rng.random() < 0.4:
            data = mutate_safetensors(data, trial.rng)
        try:
            forged = {**original, "config": json.loads(mutate_json(original["config"], trial.rng))}
            forged["fingerprint"] = fingerprint_of(forged["config"], load(data))
        except Exception:  # 连伪造者也算不出指纹：照样交给它读
            forged = original
        forged["weights_sha256"] = hashlib.sha256(data).hexdigest()
        (folder / "model.safetensors").write_bytes(data)
        (folder / "config.json").write_bytes(reseal(json.dumps(forged).encode(), original))
        self._use_model(folder)

    def _use_model(self, folder: Path) -> None:
        from algorithm.semantic_id import SemanticIDEncoder

        encoder = SemanticIDEncoder.from_pretrained(folder)
        x = torch.zeros(3, encoder.embedding_dim)
        encoder.decode_codes(encoder.encode_codes(x))
        encoder.fingerprint()

    def state_json(self, trial: Trial, folder: Path) -> None:
        shutil.copytree(self.world / "unfinished", folder / "run")
        where = next((folder / "run" / "checkpoints").glob("epoch-*")) / "state.json"
        original = json.loads(where.read_bytes())
        data = mutate_json(original, trial.rng)
        where.write_bytes(reseal(data, original) if trial.rng.random() < 0.8 else data)
        argv = ["train", str(self.world / "x.parquet"), "--output", str(folder / "run"), *SMALL, "--resume", "--quiet"]
        code, line = quietly(argv)
        if code not in (0, 2):
            raise RuntimeError(f"exit {code}: {line}")

    # ---- 物品表 ----

    def manifest(self, trial: Trial, folder: Path) -> None:
        name = trial.rng.choice(["updated", "suffix", "nearest-free"])
        shutil.copytree(self.world / name, folder / "cat")
        original = json.loads((folder / "cat" / "MANIFEST.json").read_bytes())
        data = mutate_json(original, trial.rng)
        (folder / "cat" / "MANIFEST.json").write_bytes(reseal(data, original) if trial.rng.random() < 0.85 else data)
        self._use_catalog(folder / "cat", trial)

    def index_npy(self, trial: Trial, folder: Path) -> None:
        """换掉索引的一个文件，清单里的长度与校验和都改成它的。"""
        shutil.copytree(self.world / "updated", folder / "cat")
        original = json.loads((folder / "cat" / "MANIFEST.json").read_bytes())
        entries = [entry for entry in original["index"].values() if isinstance(entry, dict) and "name" in entry]
        entry = trial.rng.choice(entries)
        array = np.load(folder / "cat" / entry["name"])
        array = array.copy()
        if array.size and trial.rng.random() < 0.5:
            array[trial.rng.randrange(len(array))] = trial.rng.choice([0, 1, 200, 100])
            data = (folder / "cat" / entry["name"]).read_bytes()[: -array.nbytes] + array.tobytes()
        else:
            data = mutate_npy(array, trial.rng)
        (folder / "cat" / entry["name"]).write_bytes(data)
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        (folder / "cat" / "MANIFEST.json").write_bytes(reseal(json.dumps(original).encode(), original))
        self._use_catalog(folder / "cat", trial)

    def _use_catalog(self, path: Path, trial: Trial) -> None:
        from algorithm.semantic_id import Catalog, open_vectors
        from algorithm.semantic_id.catalog.changes.update import update_catalog

        catalog = Catalog.open(path)
        use = trial.rng.randrange(6)
        if use == 0:
            catalog.verify()
        elif use == 1:
            catalog.read()
        elif use == 2:
            found = catalog.find(NAMES[:20])
            catalog.items_of(found[(found >= 0).all(1)])
        elif use == 3:
            catalog.with_prefix([0])
        elif use == 4:
            catalog.count([1])
            catalog.items_under([[0], [1]], limit=3)
        elif trial.rng.random() < 0.3:
            update_catalog(self._model, path, open_vectors(self.world / "late.parquet"))

    def plan_json(self, trial: Trial, folder: Path) -> None:
        """`encode --resume` 读的编码计划。"""
        from algorithm.semantic_id import encode_catalog, open_vectors

        staging = folder / "cat.partial" / "staging"
        staging.mkdir(parents=True)
        plan = {"model_fingerprint": "0" * 64, "features": "x", "unique": "none", "rows_per_part": 100}
        (staging / "PLAN.json").write_bytes(mutate_json(plan, trial.rng))
        encode_catalog(self._model, open_vectors(self.world / "late.parquet"), folder / "cat", resume=True)

    def index_json(self, trial: Trial, folder: Path) -> None:
        from algorithm.semantic_id.catalog.exchange.index_json import import_index_json

        record = dict(list(json.loads((self.world / "codes.index.json").read_bytes()).items())[:12])
        if trial.rng.random() < 0.4:
            word = [
                "<a_0>",
                "<a_1>",
                "<b_01>",
                "<z_3>",
                "<a_999999999>",
                "<a_-1>",
                "a_1",
                "<A_1>",
                "",
                5,
                None,
                [],
                "<a_٣>",
            ]
            record[trial.rng.choice(list(record))] = [
                trial.rng.choice(word) for _ in range(trial.rng.choice([3, 3, 0, 30]))
            ]
            data = json.dumps(record).encode()
        else:
            data = mutate_json(record, trial.rng)
        (folder / "x.index.json").write_bytes(data)
        import_index_json(folder / "x.index.json", folder / "cat")

    # ---- 评估、前缀树、词表、配置 ----

    def evaluation_json(self, trial: Trial, folder: Path) -> None:
        shutil.copytree(self.world / "evaluation", folder / "run")
        where = folder / "run" / "evaluation.json"
        original = json.loads(where.read_bytes())
        data = mutate_json(original, trial.rng)
        where.write_bytes(reseal(data, original) if trial.rng.random() < 0.85 else data)
        self._use_evaluation(folder)

    def _use_evaluation(self, folder: Path) -> None:
        from algorithm.semantic_id.report.page import write_report

        write_report([folder / "run"], folder / "page.html")

    def metrics_log(self, trial: Trial, folder: Path) -> None:
        """训练目录的曲线，报告会画它。"""
        shutil.copytree(self.world / "other", folder / "run")
        shutil.copytree(self.world / "evaluation", folder / "run" / "evaluation")
        lines = [mutate_json(json.loads(line), trial.rng) for line in (folder / "run" / "metrics.jsonl").open()]
        (folder / "run" / "metrics.jsonl").write_bytes(b"\n".join(lines))
        self._use_evaluation(folder)

    def trie(self, trial: Trial, folder: Path) -> None:
        from algorithm.semantic_id.decoding import PrefixTrie

        data = mutate_safetensors((self.world / "trie.safetensors").read_bytes(), trial.rng)
        (folder / "trie").write_bytes(data)
        trie = PrefixTrie.load(folder / "trie")
        trie.find(torch.zeros(2, trie.num_levels, dtype=torch.long))

    def token_layout(self, trial: Trial, folder: Path) -> None:
        from algorithm.semantic_id.decoding import TokenLayout

        good = json.loads(TokenLayout((8, 4, 4), (10, 18, 22)).to_json())
        data = mutate_json(good, trial.rng)
        layout = TokenLayout.from_json(data.decode("utf-8", errors="replace"))
        layout.decode(torch.tensor([offset for offset in layout.offsets]))

    def train_config(self, trial: Trial, folder: Path) -> None:
        from algorithm.semantic_id import SemanticIDConfig, TrainerConfig

        known: Dict[str, Any] = {**SemanticIDConfig(embedding_dim=6).to_dict(), **TrainerConfig().to_dict()}
        values = json.loads(json.dumps(known))
        try:
            values = json.loads(mutate_json(values, trial.rng))
        except (ValueError, RecursionError):
            return
        if isinstance(values, dict):
            for kind in (SemanticIDConfig, TrainerConfig):
                kind(**{name: values[name] for name in kind.__dataclass_fields__ if name in values})

    # ---- .npy 与 Parquet ----

    def npy_features(self, trial: Trial, folder: Path) -> None:
        (folder / "x.npy").write_bytes(mutate_npy(self.world.x[:20], trial.rng))
        self._use_features(folder / "x.npy")

    def parquet_features(self, trial: Trial, folder: Path) -> None:
        write_odd_parquet(folder / "x.parquet", trial.rng, {"item_id": "ids", "embedding": "vectors"})
        self._use_features(folder / "x.parquet" if trial.rng.random() < 0.7 else folder)

    def _use_features(self, path: Path) -> None:
        from algorithm.semantic_id import open_vectors
        from algorithm.semantic_id.files.vectors import check_unique_ids

        source = open_vectors(path)
        for block in source.blocks(7):
            np.isfinite(block.vectors).all()
        check_unique_ids(source)

    def npy_codes(self, trial: Trial, folder: Path) -> None:
        codes = np.zeros((20, 3), trial.rng.choice([np.int64, np.int32, np.uint8]))
        (folder / "codes.npy").write_bytes(mutate_npy(codes, trial.rng))
        self._use_codes(folder / "codes.npy", trial)

    def parquet_codes(self, trial: Trial, folder: Path) -> None:
        names = trial.rng.choice([["l1", "l2", "l3"], ["l1", "l2", "l3"], ["l0", "l1", "l2"], ["l1", "l3"]])
        columns = {"item_id": "ids", **dict.fromkeys(names, "codes")}
        if trial.rng.random() < 0.3:
            columns["suffix"] = "codes"
        write_odd_parquet(folder / "codes.parquet", trial.rng, columns)
        self._use_codes(folder / "codes.parquet", trial)

    def _use_codes(self, path: Path, trial: Trial) -> None:
        from algorithm.semantic_id import open_vectors
        from algorithm.semantic_id.catalog import decode_codes_file
        from algorithm.semantic_id.evaluation.opening import Request, open_inputs

        if trial.rng.random() < 0.5:
            decode_codes_file(self._model, path, path.parent / "back.npy")
        else:
            open_inputs(Request(self.world / "x.parquet", codes=path))
        open_vectors(self.world / "x.npy")

    def parquet_ids(self, trial: Trial, folder: Path) -> None:
        """要退役的编号。"""
        from algorithm.semantic_id.catalog.changes.update import read_ids, update_catalog

        write_odd_parquet(folder / "ids.parquet", trial.rng, {"item_id": "ids"})
        ids = read_ids(folder / "ids.parquet", "item_id")
        if trial.rng.random() < 0.3:
            shutil.copytree(self.world / "suffix", folder / "cat")
            update_catalog(self._model, folder / "cat", None, retire=ids)

    def parquet_judge(self, trial: Trial, folder: Path) -> None:
        """评估的物品信息与用户行为。"""
        from algorithm.semantic_id.evaluation.opening import Request, open_inputs

        path = folder / "more.parquet"
        if trial.rng.random() < 0.5:
            write_odd_parquet(path, trial.rng, {"item_id": "ids", "title": "ids", "category": "codes"})
            more: Dict[str, Any] = {"items": path, "labels": trial.rng.choice(["category", "title", "nope"])}
        else:
            columns = trial.rng.choice(
                [{"user_id": "ids", "item_id": "ids", "timestamp": "codes"}, {"item_ids": "vectors"}]
            )
            write_odd_parquet(path, trial.rng, columns)
            more = {"interactions": path}
        open_inputs(Request(self.world / "x.parquet", load_model=lambda: self._model, **more))

    def parquet_pairs(self, trial: Trial, folder: Path) -> None:
        from algorithm.semantic_id import open_vectors
        from algorithm.semantic_id.training.behaviour import read_pairs

        if trial.rng.random() < 0.6:
            path = folder / "pairs.parquet"
            write_odd_parquet(path, trial.rng, {"left": "ids", "right": "ids"})
        else:
            path = folder / "pairs.npy"
            path.write_bytes(mutate_npy(np.zeros((9, 2), np.int64), trial.rng))
        read_pairs(path, open_vectors(self.world / trial.rng.choice(["x.parquet", "x.npy"])), 0)


def _place(error: BaseException) -> str:
    """从哪里冒出来的：最后几层的文件与行号。"""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/torture/" not in f.filename][-3:]
    return " at " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
