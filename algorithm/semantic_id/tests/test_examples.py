"""示例是给人抄的：每个都真的跑一遍，并检查它打印的性质，而不只是退出码。

两个子进程并排跑，每个单线程：导入 torch 占去大半时间，线程多了反而互相争核。
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
MAX_LINES = 80

pytestmark = pytest.mark.skipif(not EXAMPLES, reason="examples/ is not part of an installed wheel")


def _run(path: Path, folder: Path) -> str:
    """在空目录里跑一个示例，返回 stdout。"""
    here, temporary = folder / "here", folder / "temporary"
    here.mkdir()
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    environment |= {"PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, str(path)], cwd=here, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert result.returncode == 0, f"{path.name} failed:\n{result.stderr}"
    left = [*here.iterdir(), *(p for p in temporary.iterdir() if not p.name.startswith("torchinductor"))]
    assert left == [], f"{path.name} left files behind"  # torchinductor 是 torch 自己的缓存
    return result.stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """按编号取示例的输出，例如 output("01")；头一次用到时全部启动，两个一组。"""
    with ThreadPoolExecutor(2) as pool:
        running: Dict[str, Future[str]] = {
            path.name[:2]: pool.submit(_run, path, tmp_path_factory.mktemp(path.stem)) for path in EXAMPLES
        }
        yield lambda number: running[number].result()


def _numbers(text: str, label: str) -> list[float]:
    """取出 `label=` 之后的一串数字。"""
    found = re.search(rf"{re.escape(label)}=((?:-?[\d.]+(?:e-?\d+)? ?)+)", text)
    assert found, f"{label!r} is missing from:\n{text}"
    return [float(number) for number in found[1].split()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_train_beats_the_mean_and_survives_a_reload(output: Callable[[str], str]) -> None:
    text = output("01")
    (error,) = _numbers(text, "relative_mse")
    assert 0.0 < error < 0.75  # 1 等于只会猜均值；32 × 64 × 128 在两千行上约 0.61
    assert min(_numbers(text, "utilization")) > 0.9
    assert "same_ids_after_reload=True" in text
    assert re.search(r"fingerprint=[0-9a-f]{64}\n", text)
    assert "files=README.md config.json metrics.jsonl model.safetensors" in text  # 断点已清走，没有半成品


def test_catalog_prefixes_group_similar_items(output: Callable[[str], str]) -> None:
    text = output("02")
    assert "num_items=8192" in text
    assert "columns=item_id l1 l2 l3" in text
    (chance,), (l1,), (l1_l2,) = (_numbers(text, name) for name in ("chance", "same_l1", "same_l1_l2"))
    assert chance < 0.3  # 七类物品，随机两个同类约 0.22
    assert l1 > 2 * chance
    assert l1_l2 > l1
    assert len(re.findall(r"<\d+, \d+, \*> \d+ 个：", text)) == 3


def test_decode_improves_with_every_level_and_rejects_bad_codes(output: Callable[[str], str]) -> None:
    text = output("03")
    errors = _numbers(text, "prefix relative_mse")
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1.0
    assert _numbers(text, "decode relative_mse") == errors[-1:]
    assert "full_prefix_equals_decode=True" in text
    assert "rejected: l2_ids row 5 is 64; codes of L2 are in [0, 64)" in text


def test_token_table_keeps_the_geometry_of_the_codebooks(output: Callable[[str], str]) -> None:
    text = output("04")
    assert "num_tokens=227 offsets=[3, 35, 99]" in text  # 3 个特殊词 + 32 + 64 + 128
    kept = re.findall(r"L\d distance_correlation=(\S+) random_init=(\S+)", text)
    assert len(kept) == 3
    for correlation, chance in kept:
        assert float(correlation) > 0.9
        assert abs(float(chance)) < 0.4
    assert "tokens=(2, 13) logits=(2, 13, 227)" in text


def test_literal_loop_learns(output: Callable[[str], str]) -> None:
    text = output("05")
    epochs = re.findall(r"^Epoch (\d+): Loss=(\d+\.\d{4}), Utilization=(\d+\.\d{2})%$", text, re.MULTILINE)
    assert [int(epoch) for epoch, _, _ in epochs] == list(range(10))
    assert float(epochs[-1][2]) > 90.0  # 需求的验收线；均匀初始化不复活死码字时只剩零头
    assert "same_ids_in_eval_mode=True" in text
    (error,) = _numbers(text, "relative_mse")
    assert error < 0.75  # 草稿里的循环根本跑不起来；学不动时这里会是 1 左右


def test_generated_ids_are_all_items(output: Callable[[str], str]) -> None:
    text = output("06")
    figures = dict(re.findall(r"^(\w+): (real=.*)$", text, re.MULTILINE))
    assert list(figures) == ["free", "constrained", "no_plants"]
    real = {name: _numbers(line, "real")[0] for name, line in figures.items()}
    assert real["free"] < 1.0  # 不加约束时总有一些编出来的
    assert real["constrained"] == real["no_plants"] == 1.0
    for name, line in figures.items():
        assert _numbers(line, "same_category")[0] > 0.25, name  # 七类用户一样多，乱猜是 1/7
        assert (_numbers(line, "plants")[0] > 0) == (name != "no_plants")


def test_recommendations_are_items_of_the_users_taste(output: Callable[[str], str]) -> None:
    text = output("07")
    assert "num_items=8192 num_ids=8192" in text  # 后缀让 ID 唯一
    assert _numbers(text, "real")[0] == 1.0
    assert _numbers(text, "same_category")[0] > 0.4  # 七类用户一样多，乱猜是 1/7
    titles = {name: line.split("; ") for name, line in re.findall(r"^(history|recommended): (.*)$", text, re.MULTILINE)}
    assert {name: len(found) for name, found in titles.items()} == {"history": 5, "recommended": 5}
