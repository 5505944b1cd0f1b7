"""报告里的数字怎样说成人话：每个关键数字一个问题、一个值、一句结论；对比表的每一行与谁最好。

只认 evaluation.json 的内容，纯函数；结论的句子是评估时写下的，这里不再判断一遍。
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

__all__ = ["compare_rows", "figure_tiles", "format_metric", "overall", "prefix_rows"]

Pair = Tuple[str, str]  # (中文, 英文)

_SEVERITIES = ("bad", "watch", "ok")

# 问题 → 它用到的指标；体检结论按 metric 归到这里。第一个指标是标题数字
_QUESTIONS: Dict[str, Tuple[str, str, Tuple[str, ...]]] = {
    "relative_mse": (
        "ID 说清了物品的多少？",
        "How much of an item do the IDs tell?",
        ("relative_mse", "level_relative_mse"),
    ),
    "collision_rate": (
        "不同的物品会撞到同一个 ID 吗？",
        "Do different items collide?",
        ("collision_rate", "duplicate_rate"),
    ),
    "assigned_collision_rate": (
        "去重之后，一个 ID 只对应一个物品吗？",
        "After assignment, one item per ID?",
        ("assigned_collision_rate", "num_not_in_catalog"),
    ),
    "perplexity": ("码字都用上了吗？", "Is every codeword in use?", ("perplexity", "utilization")),
    "neighbour_share": ("相似的物品共享前缀吗？", "Do similar items share a prefix?", ("neighbour_share",)),
    "label_purity": ("前缀懂得类目吗？", "Do prefixes know the categories?", ("label_purity",)),
    "co_consumption_lift": ("前缀懂得用户行为吗？", "Do prefixes know behaviour?", ("co_consumption_lift",)),
    "embedding_hit_rate_10": (
        "近邻里有用户会一起消费的物品吗？",
        "Do neighbours hold what users consume together?",
        ("embedding_hit_rate_10", "reconstruction_hit_rate_10"),
    ),
    "generalisation_ratio": ("没见过的物品也编得好吗？", "Do unseen items encode well?", ("generalisation_ratio",)),
}

# 谁大谁好；不在这里的（随机水平、训练时的数字）不评好坏
_LOWER = {
    "mse", "relative_mse", "level_relative_mse", "gini", "id_gini", "dead_codes", "collision_rate",
    "collided_item_rate", "max_collision", "assigned_collision_rate", "assigned_changed_rate", "num_not_in_catalog",
    "generalisation_ratio", "unseen_relative_mse", "unseen_collision_rate",
}  # fmt: skip
_HIGHER = {
    "utilization", "perplexity", "label_purity", "nmi", "neighbour_share", "co_consumption", "co_consumption_lift",
    "reconstruction_hit_rate_10", "reconstruction_hit_rate_100",
}  # fmt: skip
_PLAIN_SHARES = {"gini", "id_gini", "nmi", "nmi_chance", "relative_mse", "level_relative_mse"}


class Tile(NamedTuple):
    """一个关键数字。

    Attributes:
        metric: 指标的键。
        question: 产品经理会问的问题。
        value: 标题数字。
        detail: 数字下面的一行。
        severity: bad、watch、ok；没有结论为 none。
        verdicts: 评估写下的结论，最严重的在前。
    """

    metric: str
    question: Pair
    value: str
    detail: Pair
    severity: str
    verdicts: List[Pair]


def figure_tiles(evaluation: Mapping[str, Any]) -> List[Tile]:
    """量到的每个关键数字一块；没有归处的结论各自成块，不会丢。

    Args:
        evaluation: evaluation.json 的内容。

    Returns:
        次序固定：误差、冲突、使用、语义、行为、泛化。
    """
    metrics = evaluation["metrics"]
    left = list(evaluation["verdicts"])
    tiles: List[Tile] = []
    for metric, (zh, en, family) in _QUESTIONS.items():
        mine = [verdict for verdict in left if verdict.get("metric") in family]
        left = [verdict for verdict in left if verdict.get("metric") not in family]
        if metrics.get(metric) is not None:
            value, detail = _TILE_TEXTS[metric](metrics, evaluation)
            tiles.append(Tile(metric, (zh, en), value, detail, *_judged(mine)))
        elif mine:
            tiles.append(Tile(metric, (zh, en), "–", ("", ""), *_judged(mine)))
    for verdict in left:
        key = str(verdict.get("metric", ""))
        name = next(((e["zh"], e["en"]) for e in evaluation["legend"] if e.get("key") == key), (key, key))
        value = format_metric(key, metrics.get(key)) if not isinstance(metrics.get(key), list) else ""
        tiles.append(Tile(key, name, value, ("", ""), *_judged([verdict])))
    return tiles


def overall(tiles: Sequence[Tile]) -> Tuple[str, Pair]:
    """(最严重的一档, 一句总评)。"""
    bad = sum(tile.severity == "bad" for tile in tiles)
    watch = sum(tile.severity == "watch" for tile in tiles)
    if bad:
        return "bad", (f"先修这 {bad} 处，再拿去训练推荐模型", f"fix {bad} of these before training a recommender")
    if watch:
        return "watch", (f"可以用，有 {watch} 处值得看一眼", f"usable; {watch} worth a look")
    return "ok", ("没有发现问题", "nothing to worry about")


def format_metric(key: str, value: Any) -> str:
    """一个数字的写法：计数带千分号，占比写百分数，其余四位有效数字；没有的写短横。"""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if _is_share(key):
        if 0 < value < 0.00005:
            return "<0.01%"
        return f"{value:.2%}" if abs(value) < 0.1 else f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def compare_rows(evaluations: Sequence[Mapping[str, Any] | None]) -> List[Dict[str, Any]]:
    """对比表：每个指标一行（逐层、逐前缀的各一行），每个运行一格。

    Args:
        evaluations: 各运行的 evaluation.json；None 为没有评估过。

    Returns:
        每行 {key, name (中, 英), cells: [文字], best: [是否最好], main: 是否关键数字}。
    """
    names: Dict[str, Pair] = {}
    for evaluation in evaluations:
        for entry in (evaluation or {}).get("legend", []):
            names.setdefault(entry["key"], (entry["zh"], entry["en"]))
    rows = []
    for key, name in names.items():
        values = [None if e is None else e["metrics"].get(key) for e in evaluations]
        width = max((len(v) for v in values if isinstance(v, list)), default=0)
        prefix = any(isinstance(v, list) for v in values) and _by_prefix(key, evaluations)
        for part in range(width) if width else [None]:
            cells = [_part(value, part) for value in values]
            tail = "" if part is None else f" L1–L{part + 1}" if prefix and part else f" L{part + 1}"
            rows.append(
                {
                    "key": key,
                    "name": (name[0] + tail, name[1] + tail),
                    "cells": [format_metric(key, cell) for cell in cells],
                    "best": _best(key, cells),
                    "main": key in _QUESTIONS and part in (None, 0),
                }
            )
    return rows


def prefix_rows(metrics: Mapping[str, Any], num_levels: int) -> List[Dict[str, Any]]:
    """逐前缀长度的一张表：语义、类目、行为，旁边是随机水平。

    Returns:
        每列 {name (中, 英), cells: [(数字, 随机水平)]}，没有量的列不在里面。
    """
    columns = [
        ("neighbour_share", "prefix_chance", ("近邻共享前缀", "neighbours share it")),
        ("label_purity", "label_purity_chance", ("标签纯度", "label purity")),
        ("nmi", "nmi_chance", ("NMI", "NMI")),
        ("co_consumption", "co_consumption_expected", ("一起消费而共享", "co-consumed share it")),
        ("prefix_alone_rate", "", ("独占前缀", "alone in it")),
    ]
    out = []
    for key, chance, name in columns:
        if not metrics.get(key):
            continue
        cells = []
        for length in range(num_levels):
            beside = _part(metrics.get(chance), length)
            cells.append((format_metric(key, _part(metrics[key], length)), format_metric(key, beside)))
        out.append({"name": name, "cells": cells, "chance": bool(chance)})
    return out


def _judged(verdicts: List[Mapping[str, Any]]) -> Tuple[str, List[Pair]]:
    """(最严重的一档, 句子)，严重的在前；认不出的档当作 watch，宁可多看一眼。"""
    ranked = sorted(verdicts, key=lambda verdict: _SEVERITIES.index(_severity(verdict)))
    return (_severity(ranked[0]) if ranked else "none"), [(v["zh"], v["en"]) for v in ranked]


def _severity(verdict: Mapping[str, Any]) -> str:
    found = verdict.get("severity")
    return found if found in _SEVERITIES else "watch"


def _is_share(key: str) -> bool:
    """写成百分数的：名字里就是比例，而习惯上不写成小数的。"""
    if key in _PLAIN_SHARES:
        return False
    ends = ("_rate", "_share", "utilization", "purity", "purity_chance", "prefix_chance", "co_consumption", "_expected")
    return key.endswith(ends) or "hit_rate" in key


def _by_prefix(key: str, evaluations: Sequence[Mapping[str, Any] | None]) -> bool:
    """这个逐项的指标是按前缀长度的（否则按层）；图例的单位里写着。"""
    for evaluation in evaluations:
        for entry in (evaluation or {}).get("legend", []):
            if entry["key"] == key:
                return "prefix" in entry.get("unit", "")
    return False


def _part(value: Any, part: int | None) -> Any:
    """列表取一项，短了就是 None；标量原样。"""
    if part is None or not isinstance(value, list):
        return value if part is None else None
    return value[part] if part < len(value) else None


def _best(key: str, cells: Sequence[Any]) -> List[bool]:
    """哪一格最好；不到两个数字、全都一样或不评好坏的指标，都没有最好。"""
    known = [cell for cell in cells if isinstance(cell, (int, float))]
    if len(known) < 2 or min(known) == max(known) or key not in _LOWER | _HIGHER:
        return [False] * len(cells)
    target = min(known) if key in _LOWER else max(known)
    return [cell == target for cell in cells]


def _levels(values: Sequence[float], style: Callable[[float], str]) -> str:
    return " · ".join(f"L{i + 1} {style(value)}" for i, value in enumerate(values))


def _relative(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    value = m["relative_mse"]
    return f"{1 - value:.0%}", (f"相对误差 {value:.3f}，越低越好", f"relative MSE {value:.3f}, lower is better")


def _collided(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    shared = round(m.get("collided_item_rate", 0.0) * e["num_items"])
    most = m.get("max_collision", 1)
    return f"{m['collision_rate']:.1%}", (
        f"{shared:,} 个物品与别人共用 ID，最挤的 ID 上 {most:,} 个",
        f"{shared:,} items share an ID, at most {most:,} on one",
    )


def _assigned(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    missing, rate = m.get("num_not_in_catalog", 0), m["assigned_collision_rate"]
    zh, en = f"物品表的冲突率；{missing:,} 个物品不在表里", f"collision rate of the catalog; {missing:,} items missing"
    return f"{rate:.1%}", (zh, en)


def _used(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    shares = [value / size for value, size in zip(m["perplexity"], e["codebook_sizes"], strict=True)]
    text = _levels(shares, lambda v: f"{v:.2f}")
    return f"{min(m['utilization']):.0%}", (
        f"利用率最低的一层；困惑度 / K：{text}",
        f"least used level; perplexity / K: {text}",
    )


def _neighbours(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    chance = format_metric("prefix_chance", _part(m.get("prefix_chance"), 0))
    zh, en = f"十个最近的物品里共享 L1 的；随机 {chance}", f"of the ten nearest items share L1; {chance} at random"
    return f"{m['neighbour_share'][0]:.0%}", (zh, en)


def _purity(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    chance = format_metric("label_purity", _part(m.get("label_purity_chance"), 0))
    zh, en = f"只看 L1 就猜对标签的；打乱后 {chance}", f"of labels guessed from L1 alone; {chance} when shuffled"
    return f"{m['label_purity'][0]:.0%}", (zh, en)


def _lift(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    value = m["co_consumption_lift"][0]
    shown = "–" if value is None else f"{value:.1f}×"
    return shown, ("一起消费的物品共享 L1 的机会，比随机", "co-consumed items share L1, against chance")


def _hits(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    kept = format_metric("hit_rate", m.get("reconstruction_hit_rate_10"))
    chance = format_metric("hit_rate", m.get("embedding_hit_rate_10_chance"))
    zh, en = (
        f"特征的前十近邻；重建后 {kept}，随机 {chance}",
        f"in ten nearest features; {kept} rebuilt, {chance} at random",
    )
    return format_metric("hit_rate", m["embedding_hit_rate_10"]), (zh, en)


def _generalises(m: Mapping[str, Any], e: Mapping[str, Any]) -> Tuple[str, Pair]:
    rows = m.get("unseen_num_items", 0)
    zh, en = f"{rows:,} 个没见过的物品的误差，比见过的", f"error of {rows:,} unseen items, against seen ones"
    return f"{m['generalisation_ratio']:.2f}×", (zh, en)


_TILE_TEXTS: Dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Tuple[str, Pair]]] = {
    "relative_mse": _relative,
    "collision_rate": _collided,
    "assigned_collision_rate": _assigned,
    "perplexity": _used,
    "neighbour_share": _neighbours,
    "label_purity": _purity,
    "co_consumption_lift": _lift,
    "embedding_hit_rate_10": _hits,
    "generalisation_ratio": _generalises,
}
