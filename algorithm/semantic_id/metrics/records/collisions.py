"""冲突的指标：不同的物品会撞到同一个 ID 吗；去重之后呢。"""

from __future__ import annotations

from typing import Iterator

from ..behaviour import id_gini
from ..codes import collision_rate
from .base import Known, Metric, Sentence, Tile, Verdict, share
from .measured import Measured

__all__ = ["METRICS"]

QUESTION = ("不同的物品会撞到同一个 ID 吗？", "Do different items collide?")
ASSIGNED = ("去重之后，一个 ID 只对应一个物品吗？", "After assignment, one item per ID?")

# 1% 以下不用理会；每十个物品就有一个要靠去重位区分时，容量明显不够；三成以上，ID 已经认不出物品
COLLISION_LOW, COLLISION_RATE, COLLISION_BAD = 0.01, 0.1, 0.3
# 冲突的物品里一半以上是逐字节相同的特征：不是码本的错
DUPLICATE_SHARE = 0.5

LOW = Sentence("collision_rate_ok", "冲突率 {rate}，不高。", "collision rate {rate} is low.")
SOME = Sentence(
    "collisions_some",
    "冲突率 {rate}，最挤的 ID 上 {most} 个物品：编码时加 --unique 就能分开。",
    "collision rate {rate}, at most {most} items on one ID: encoding with --unique tells them apart.",
)
HIGH = Sentence(
    "collisions_high",
    "冲突率 {rate}：不同物品挤在同一个 ID 上，最多 {most} 个。加一层、加大最后一层码本，或检查有无重复的特征。",
    "collision rate {rate}: up to {most} items share one ID. Add a level, enlarge the last codebook, or look "
    "for duplicate vectors.",
)
DUPLICATES = Sentence(
    "duplicates",
    "冲突率 {rate}，而 {duplicates} 的物品特征与别人逐字节相同：再大的码本也分不开。先去重，或编码时加 --unique。",
    "collision rate {rate}, but {duplicates} of the items repeat another vector byte for byte: no codebook "
    "can tell them apart. Drop duplicates, or encode with --unique.",
    "duplicate_rate",
)
ONE_ITEM = Sentence(
    "collisions_unknown",
    "没有判断冲突：只有一个物品。在更多物品上评估。",
    "not judged whether items collide: there is only one item. Evaluate on more items.",
)
NOT_UNIQUE = Sentence(
    "catalog_not_unique",
    "物品表里仍有 {rate} 的冲突：它是不去重编码的，生成出来的 ID 认不出物品。用 semid encode --unique 重新编码。",
    "the catalog still has collision rate {rate}: it was encoded without unique IDs, so a generated ID does not "
    "name one item. Encode again with --unique.",
)
INCOMPLETE = Sentence(
    "catalog_incomplete",
    "{rows} 个物品里有 {missing} 个不在物品表中：物品表比特征旧。用 semid update 把它们加进去。",
    "{missing} of {rows} items are not in the catalog: it is older than the features. Add them with semid update.",
    "num_not_in_catalog",
)
UNIQUE = Sentence(
    "assigned_collision_rate_ok",
    "这些物品在物品表里每个 ID 只有一个。",
    "in the catalog each of these items has an ID of its own.",
)


def judge_collisions(f: Known) -> Iterator[Verdict]:
    """由低到高四段；重复的特征另说，那不是码本的错。"""
    rate, duplicates = f["collision_rate"], f.get("duplicate_rate") or 0.0
    values = {"rate": share(rate), "most": f["max_collision"], "duplicates": share(duplicates)}
    if f["num_items"] < 2:
        yield ONE_ITEM.says("unknown")
    elif rate > COLLISION_RATE:
        sentence = DUPLICATES if duplicates > DUPLICATE_SHARE * rate else HIGH
        yield sentence.says("bad" if rate > COLLISION_BAD else "watch", **values)
    else:
        yield (SOME if rate > COLLISION_LOW else LOW).says("ok", **values)


def judge_assigned(f: Known) -> Iterator[Verdict]:
    """物品表里有一个冲突都是坏事；缺物品另说。"""
    rate, missing = f["assigned_collision_rate"], f.get("num_not_in_catalog") or 0
    yield NOT_UNIQUE.says("bad", rate=share(rate)) if rate > 0 else UNIQUE.says("ok")
    if missing:
        yield INCOMPLETE.says("watch", missing=missing, rows=f["num_items"])


def _changed(m: Measured) -> float:
    """物品表里的各层编号与直接编码不同的物品所占比例。"""
    assert m.assigned is not None
    levels = m.codes.shape[1]
    return float((m.assigned[m.in_catalog, :levels] != m.codes[m.in_catalog]).any(axis=1).mean())


def _tile(f: Known) -> Tile:
    shared, most = round((f.get("collided_item_rate") or 0.0) * f["num_items"]), f.get("max_collision", 1)
    zh = f"{shared:,} 个物品与别人共用 ID，最挤的 ID 上 {most:,} 个"
    return Tile(f"{f['collision_rate']:.1%}", (zh, f"{shared:,} items share an ID, at most {most:,} on one"))


def _assigned_tile(f: Known) -> Tile:
    missing = f.get("num_not_in_catalog") or 0
    zh, en = f"物品表的冲突率；{missing:,} 个物品不在表里", f"collision rate of the catalog; {missing:,} items missing"
    return Tile(f"{f['assigned_collision_rate']:.1%}", (zh, en))


FOUND = ("在物品表里的物品", "items found in the catalog")
METRICS = (
    Metric(
        key="collision_rate",
        name=("冲突率（去重之前）", "collision rate before assignment"),
        formula=("1 − 不同 ID 数 / N", "1 − distinct IDs / N"),
        range="[0, 1)",
        question=QUESTION,
        better="lower",
        style="share",
        source="LC-Rec, 2024, arXiv:2311.09049",
        measure=lambda m: m.collisions[0],
        judge=judge_collisions,
        tile=_tile,
    ),
    Metric(
        key="collided_item_rate",
        name=("与别人共用 ID 的物品", "items that share an ID"),
        formula=("ID 不独占的物品 / N", "items whose ID another item has / N"),
        range="[0, 1]",
        question=QUESTION,
        better="lower",
        style="share",
        source="TIGER, 2023, arXiv:2305.05065",
        measure=lambda m: m.collisions[1],
    ),
    Metric(
        key="max_collision",
        name=("最拥挤的 ID", "most crowded ID"),
        formula=("一个 ID 上最多有几个物品", "largest number of items on one ID"),
        range="[1, N]",
        question=QUESTION,
        better="lower",
        unit=("物品", "items"),
        source="TIGER, 2023, arXiv:2305.05065",
        measure=lambda m: m.collisions[2],
    ),
    Metric(
        key="id_gini",
        name=("ID 的基尼系数", "Gini of IDs"),
        formula=(
            "物品在用到的各个完整 ID 上的件数的基尼系数",
            "Gini coefficient of item counts over the distinct IDs in use",
        ),
        range="[0, 1)",
        question=QUESTION,
        better="lower",
        source="FORGE, 2025, arXiv:2509.20904",
        in_table=False,
        measure=lambda m: id_gini(m.codes),
    ),
    Metric(
        key="duplicate_rate",
        name=("重复的特征", "duplicate vectors"),
        formula=(
            "与另一行逐字节相同的多余行 / N：任何 ID 都分不开它们",
            "rows that repeat another one byte for byte / N: no codes can separate them",
        ),
        range="[0, 1)",
        question=QUESTION,
        style="share",
        in_table=False,
        needs=("duplicates",),
        measure=lambda m: m.duplicates / m.num_items,
    ),
    Metric(
        key="assigned_collision_rate",
        name=("冲突率（去重之后）", "collision rate after assignment"),
        formula=("物品表里的完整 ID：1 − 不同 ID 数 / 物品数", "full IDs of the catalog: 1 − distinct IDs / items"),
        range="[0, 1)",
        question=ASSIGNED,
        better="lower",
        population=FOUND,
        style="share",
        source="LC-Rec, 2024, arXiv:2311.09049",
        needs=("assigned",),
        measure=lambda m: collision_rate(m.assigned[m.in_catalog]),
        judge=judge_assigned,
        tile=_assigned_tile,
    ),
    Metric(
        key="assigned_changed_rate",
        name=("去重时换了编号的物品", "items moved by assignment"),
        formula=(
            "物品表里的各层编号与直接编码不同的物品所占比例",
            "share of items whose codes in the catalog differ from plain encoding",
        ),
        range="[0, 1]",
        question=ASSIGNED,
        better="lower",
        population=FOUND,
        style="share",
        in_table=False,
        needs=("assigned",),
        measure=_changed,
    ),
    Metric(
        key="num_not_in_catalog",
        name=("不在物品表里的物品", "items not in the catalog"),
        formula=("特征里有、物品表里没有的物品数", "items of the features that the catalog lacks"),
        range="[0, N]",
        question=ASSIGNED,
        better="lower",
        unit=("物品", "items"),
        needs=("assigned",),
        measure=lambda m: int((~m.in_catalog).sum()),
    ),
)
