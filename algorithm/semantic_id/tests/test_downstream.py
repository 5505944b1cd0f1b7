"""下游对照的零件：名次、配对自助法、后缀、生成模型与它的束搜索、缓存。数据都是造的，不碰外来的数据集。"""

from __future__ import annotations

import argparse
import ast
import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
if not (BENCHMARKS / "downstream").is_dir():
    pytest.skip("benchmarks/ is not part of an installed wheel", allow_module_level=True)
pytest.importorskip("transformers")
sys.path.insert(0, str(BENCHMARKS))
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

from downstream import baselines, data, generator, scoring, tokenizers, training  # noqa: E402
from downstream import row as rows  # noqa: E402

SMALL = replace(
    generator.SIZES["tiny"], width=32, heads=2, head_width=16, feed_forward=32, level_feed_forward=32, epochs=4,
    max_items=6, batch_size=16, num_beams=8, learning_rate=1e-2, dropout=0.0,
)  # fmt: skip
SMALL_T5 = replace(SMALL, kind="t5", layers=1)
SIZES = (3, 4, 2)
CODES = np.array(list(itertools.product(range(3), range(4), range(2))))[::2][:11]  # 11 个物品，树不满


def write_data(folder: Path, histories: list[list[int]], num_items: int, **changes: Any) -> Path:
    """造一份符合格式的数据；每个用户的最后两个物品是验证与测试。"""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    vectors = pa.FixedSizeListArray.from_arrays(rng.standard_normal(num_items * 8).astype(np.float32), 8)
    items: Dict[str, Any] = {"item_id": np.arange(num_items), "embedding": vectors}
    items["l1_category"] = [f"c{row % 3}" for row in range(num_items)]
    users: Dict[str, Any] = {"train_items": [h[:-2] for h in histories]}
    users |= {"valid_item": [h[-2] for h in histories], "test_item": [h[-1] for h in histories]}
    for key, value in changes.items():
        (items if key in items else users)[key] = value
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table(users), folder / "interactions.parquet")
    return folder


def cycles(num_users: int, num_items: int, length: int) -> list[list[int]]:
    """物品一个接一个：下一个总是上一个加一。"""
    return [[(start + i) % num_items for i in range(length)] for start in range(num_users)]


# ---- 名次与统计 ----


def test_ranks_and_gains_by_hand() -> None:
    items = np.array([[3, 1, 2], [5, 4, -1], [7, 8, 9]])
    targets = np.array([2, 6, 7])
    assert scoring.ranks_of(items, targets).tolist() == [2, -1, 0]
    seen = [np.array([3]), np.array([5]), np.array([8])]
    assert scoring.ranks_of(items, targets, seen).tolist() == [1, -1, 0]
    ranks = np.array([2, -1, 0, 5])
    assert scoring.gains(ranks, 5, False).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert scoring.gains(ranks, 5, True).tolist() == [0.5, 0.0, 1.0, 0.0]  # 1 / log2(4)


def test_paired_bootstrap_agrees_with_resampling_seeds_and_users() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random((3, 400)) < rate[:, None] for rate in (np.array([0.40, 0.24, 0.26]), np.full(3, 0.24)))
    low, high, p = scoring.paired_bootstrap(first.astype(float), second.astype(float), 8000, seed=1)
    delta = first.astype(float) - second
    seeds, users = rng.integers(0, 3, (8000, 3)), rng.integers(0, 400, (8000, 400))
    means = np.array([delta[s][:, u].mean() for s, u in zip(seeds, users, strict=True)])
    assert [low, high] == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.006)
    assert p == pytest.approx(2 * np.mean(means <= 0), abs=0.03)
    one = scoring.paired_bootstrap(first[:1] * 1.0, second[:1] * 1.0, 4000, seed=1)  # 一个种子：只有用户的波动
    assert one[1] - one[0] == pytest.approx(2 * 1.96 * delta[0].std() / 20, rel=0.08)
    assert scoring.paired_bootstrap(second * 1.0, second * 1.0, 100, seed=0) == (0.0, 0.0, 1.0)


def test_rank_correlation_by_hand() -> None:
    assert scoring.rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert scoring.rank_correlation([1, 2, 3], [3, 1, 2]) == pytest.approx(-0.5)
    assert scoring.rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9**0.5)  # 并列取平均名次
    assert scoring.rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert scoring.rank_correlation([1, 2], [1, 2]) is None


def test_suffix_makes_ids_unique_in_row_order() -> None:
    codes, sizes = tokenizers.suffixed(np.array([[1, 2], [0, 0], [1, 2], [0, 1], [1, 2]]), (3, 3))
    assert codes[:, 2].tolist() == [0, 0, 1, 0, 2]
    assert sizes == (3, 3, 3)
    assert len(np.unique(codes, axis=0)) == 5
    codes, sizes = tokenizers.suffixed(np.arange(4)[:, None], (4,))
    assert (codes.shape, sizes) == ((4, 1), (4,))


# ---- 数据 ----


def test_data_reads_and_pairs_stay_in_the_training_part(tmp_path: Path) -> None:
    found = data.load(write_data(tmp_path, [[0, 1, 1, 2, 3, 4], [5, 6, 7]], 8))
    assert [h.tolist() for h in found.histories] == [[0, 1, 1, 2], [5]]
    assert (found.valid.tolist(), found.test.tolist()) == ([3, 6], [4, 7])
    assert found.train_pairs().tolist() == [[0, 1], [1, 2]]
    assert [h.tolist() for h in found.test_histories] == [[0, 1, 1, 2, 3], [5, 6]]
    assert data.missing(tmp_path) is None
    assert data.missing(tmp_path / "nowhere") == "items.parquet"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": [1, 2, 3]}, r"item_id must equal the row number 0\.\.2"),
        ({"test_item": [3]}, r"test_item must be item ids in \[0, 3\), got 3\.\.3"),
        ({"train_items": [[]]}, "user row 0 has no train_items"),
        ({"valid_item": pa.array([None], pa.int64())}, "column 'valid_item' has nulls"),
        ({"embedding": pa.FixedSizeListArray.from_arrays([0.0, 1.0, float("nan")], 1)}, "embedding row 2 has NaN"),
    ],
)
def test_bad_data_is_refused_at_the_door(tmp_path: Path, changes: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(write_data(tmp_path, [[0, 1, 2]], 3, **changes))


# ---- 训练的序列 ----


def test_every_item_is_a_target_once_an_epoch() -> None:
    histories = [np.arange(3), np.arange(25), np.arange(6)]
    rng = np.random.default_rng(0)
    pieces = training.pieces_of(histories, 6, rng)
    assert max(map(len, pieces)) <= 6
    assert np.array_equal(np.concatenate(pieces), np.concatenate(histories))
    chosen = np.concatenate(list(training.batches(pieces, 2, rng)))
    assert sorted(chosen.tolist()) == list(range(len(pieces)))


# ---- 生成模型 ----


def fresh(size: generator.Size) -> Any:
    torch.manual_seed(0)
    model = generator.build(size, SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if size.kind == "stacked" else 1.0)  # 让各项有高有低
    return model


def brute_force(model: Any, history: np.ndarray) -> np.ndarray:
    """每个物品的 log 概率，逐个老老实实算：不用束、不用缓存重排，一次一个物品。"""
    codes = torch.from_numpy(CODES)
    memory = model.remember(codes[torch.from_numpy(history)][None], torch.tensor([len(history)]))
    out = []
    for item in codes:
        step, total = model.step_function(memory), 0.0
        for level in range(len(SIZES)):
            logits = step(item[None, :level], torch.zeros(1, dtype=torch.int64)).detach()
            total += float(logits.log_softmax(dim=1)[0, item[level]])
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize("size", [SMALL, SMALL_T5], ids=lambda size: size.kind)
def test_beam_search_ranks_items_as_brute_force_does(size: generator.Size) -> None:
    model = fresh(replace(size, num_beams=30))  # 比任何一层的前缀都多：结果是精确的排名
    histories = [np.array([4]), np.array([1, 2, 3, 10, 0]), np.arange(9)]  # 长短不一：补齐不能有影响
    found = training.recommend(model, histories, CODES, SIZES)
    for history, items in zip(histories, found, strict=True):
        scores = brute_force(model, history[-size.max_items :])
        assert np.ptp(scores) > 0.5
        assert items[: len(CODES)].tolist() == np.argsort(-scores).tolist()
        assert (items[len(CODES) :] == -1).all()


def test_a_state_sees_only_earlier_items() -> None:
    model = fresh(SMALL)
    codes = torch.from_numpy(CODES[[[0, 1, 2, 3], [0, 1, 9, 3]]])
    states = model._states(codes)
    assert torch.equal(states[0, :3], states[1, :3])
    assert not torch.allclose(states[0, 3], states[1, 3])


def test_loss_is_the_mean_log_probability_of_the_items() -> None:
    model = fresh(SMALL)
    history = np.array([4, 7, 2])
    expected = np.mean([-brute_force(model, history[:t])[history[t]] for t in range(3)])
    items, lengths = training.padded([history, np.array([], dtype=np.int64)])  # 全是补齐的一行不算数
    loss = model.loss(torch.from_numpy(CODES[items]), torch.from_numpy(lengths))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [SMALL, replace(SMALL_T5, epochs=50, learning_rate=4e-3)], ids=lambda size: size.kind)
def test_training_learns_and_repeats_bit_by_bit(size: generator.Size) -> None:
    histories = [np.array(h[:-1]) for h in cycles(110, 11, 5)]
    model, again = (training.train(histories, CODES, SIZES, size, seed=3) for _ in range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    found = training.recommend(model, histories, CODES, SIZES)
    targets = np.array([h[-1] for h in cycles(110, 11, 5)])
    assert scoring.gains(scoring.ranks_of(found, targets), 3, False).mean() > 0.8  # 乱猜是 3 / 11


def test_the_generator_does_not_know_who_made_the_ids() -> None:
    for name in rows.SOURCES:
        tree = ast.parse((BENCHMARKS / "downstream" / name).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert all("tokenizers" not in str(m) and "quality" not in str(m) for m in modules)
        assert {m for m in modules if m and m.startswith("algorithm")} <= {
            "algorithm.semantic_id.decoding", "algorithm.semantic_id.decoding.tokens"
        }  # fmt: skip


# ---- 底线 ----


def test_item_neighbours_by_hand() -> None:
    histories = [np.array([0, 1]), np.array([0, 1, 2]), np.array([3])]
    model = baselines.ItemNeighbours(histories, 4, shrink=0.0)
    # sim(0, 1) = 2 / √(2·2) = 1，sim(0, 2) = sim(1, 2) = 1 / √2，3 没有邻居
    assert model.recommend([np.array([0])], 3).tolist() == [[1, 2, -1]]
    assert model.recommend([np.array([3])], 2).tolist() == [[-1, -1]]
    # 新的 0 不打折、旧的 2 打折：1 得 1 + .5 × .71，2 得 .71，0 得 .5 × .71
    assert model.recommend([np.array([2, 0])], 3, decay=0.5).tolist() == [[1, 2, 0]]
    assert baselines.popularity(histories, 4, 2, 3).tolist() == [[0, 1, 2]] * 2


# ---- 缓存与命令 ----


def test_rows_resume_and_the_report_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_downstream
    from downstream import report

    monkeypatch.setitem(generator.SIZES, "tiny", replace(SMALL, epochs=1))
    folder = write_data(tmp_path / "data", cycles(40, 30, 6), 30)
    args = argparse.Namespace(
        size="tiny", device="cpu", cache=tmp_path / "cache", seeds=[1, 2], data_folder=folder, hardware="test",
        tokenizers=["random", "atomic"],
    )  # fmt: skip
    known = data.load(folder)
    bench_downstream.fill(args, known)
    left = sorted(path.name for path in (tmp_path / "cache").rglob("*"))
    assert sum(name == "row.json" for name in left) == 3  # random 是故意做坏的，只有一个种子
    assert not any(".part" in name for name in left)

    def never(*_: Any) -> Any:
        raise AssertionError("a cached row was trained again")

    monkeypatch.setattr(training, "train", never)
    bench_downstream.fill(args, known)
    args.seeds = [1, 3]
    report.write(list(bench_downstream.cells(args.tokenizers, args.seeds)), known, args, tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "`atomic` 种子 3" in text.split("## 还缺的格子")[1]
    assert "`random` 种子" not in text.split("## 还缺的格子")[1]
    assert "没有测过" in text.split("## paper")[1]
    (folder_of_row,) = {path.parent for path in (tmp_path / "cache").rglob("row.json") if "seed2" in path.parent.name}
    ranks = rows.read(folder_of_row)
    assert ranks is not None
    assert ranks.ranks["test"].shape == (40,)
    assert ranks.ranks["valid"].shape == (10,)


def test_ranks_belong_to_their_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = data.load(write_data(tmp_path / "data", cycles(40, 30, 6), 30))

    def next_item(model: Any, histories: list[np.ndarray], *_: Any) -> np.ndarray:
        return np.array([[history[-1], history[-1] + 1] for history in histories]) % 30

    monkeypatch.setattr(training, "train", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(training, "recommend", next_item)
    codes = np.arange(30)[:, None]
    found = rows.run("tiny", codes, (30,), known, 1, tmp_path / "cache", "cpu", lambda text: None)
    assert {name: set(ranks.tolist()) for name, ranks in found.ranks.items()} == {
        "valid": {1}, "test": {1}, "test_unseen": {0}
    }  # fmt: skip


def test_without_data_the_command_says_so_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_downstream

    monkeypatch.setattr(sys, "argv", ["bench_downstream.py", "--data-folder", str(tmp_path)])
    bench_downstream.main()
    assert "no items.parquet under --data-folder; nothing measured" in capsys.readouterr().err


def test_our_version_follows_the_files_that_make_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quality import tools

    copy = tmp_path / "algorithm"
    shutil.copytree(tools.PACKAGE, copy, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    before = tools.source_digest()
    monkeypatch.setattr(tools, "PACKAGE", copy)
    assert tools.source_digest() == before
    # kmeans 由 initialize 引进来；说明与注释不决定编号，代码才决定
    changes = (
        ("cli/app.py", "x = 1", True),
        ("training/kmeans.py", "# changed", True),
        ("training/kmeans.py", "x = 1", False),
    )
    for name, line, same in changes:
        with open(copy / "semantic_id" / name, "a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
        assert (tools.source_digest() == before) is same
    assert tokenizers.TOKENIZERS["semid-pairs"].version() == tools.TOOLS["semid-default"].version()
