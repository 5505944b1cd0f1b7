"""`semid demo`：在内置的 8,192 个真实物品上走完全程：训练 → 编码 → 评估 → 挑出共享前缀的物品 → 写报告。"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List

from ..catalogs import encode
from ..options import Device, Session
from ..page import Page
from ..quality import evaluate
from . import train

__all__ = ["run", "show"]


def run(session: Session, output: Path = Path("semid-demo"), device: Device = "auto") -> Dict[str, Any]:
    """写 model/、catalog/、demo.json 与 report.html；只有上次演示留下的目录才会被替换。

    Returns:
        `evaluate` 的全部数字，加上 prefix_agreement（前缀长度 0…L 时两件物品同类的概率，0 为随机）、prefixes 与 report
        （网页的路径；没有装 semid[report] 时为 None）。

    Raises:
        FileExistsError: 目录里有不是演示写的东西。
    """
    import pyarrow.parquet as pq

    from ... import __version__
    from ...catalog import Catalog
    from ...catalog.format.parts import codes_of
    from ...evaluation import showcase
    from ...files.durable import write_atomically
    from ...files.run_folder import check_demo_folder

    check_demo_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    # 先写标记：演示中途被打断，下次也认得出这是自己的目录
    write_atomically(output / "demo.json", b"{}\n")
    model, catalog, features = output / "model", output / "catalog", showcase.DEMO_ITEMS
    sizes = ",".join(map(str, showcase.DEMO_CODEBOOK_SIZES))
    train.run(session, features, model, codebook_sizes=sizes, device=device, overwrite=True)
    encode.run(session, model, features, catalog, device=device, overwrite=True)
    # 放在训练目录里，报告才会把两者合在一起
    figures = evaluate.run(
        session, model, features, labels="category", output=model / "evaluation", device=device, overwrite=True
    )
    codes = codes_of(Catalog.open(catalog).read())  # (N, L)
    items = pq.read_table(features, columns=["title", "category"]).to_pydict()
    agreement = [showcase.prefix_agreement(codes, items["category"], depth) for depth in range(codes.shape[1] + 1)]
    result = {
        "model": os.fspath(model),
        "catalog": os.fspath(catalog),
        "report": _report(output, session.lang),
        **figures,
        "output": os.fspath(output),
        "prefix_agreement": agreement,
        "prefixes": showcase.choose_prefixes(codes, items["category"], items["title"]),
    }
    text = json.dumps({"semid_version": __version__, **result}, ensure_ascii=False, indent=2)
    write_atomically(output / "demo.json", (text + "\n").encode())
    return result


def show(result: Dict[str, Any], page: Page) -> None:
    """数字、共享前缀的物品、下一步。"""
    evaluate.show(result, page)
    chance, *agreement = (f"{value:.0%}" if value is not None else "–" for value in result["prefix_agreement"])
    page.show()
    page.say("demo.title", style="bold")
    page.say("demo.agreement", chance=chance, l1=agreement[0], l2=agreement[1])
    page.say("demo.rule")
    for group in result["prefixes"]:
        _show_group(group, page)
    page.show()
    page.say("demo.next", style="bold")
    items = page.text("demo.items")
    page.show(f"  semid info {result['model']}")
    page.show(f"  semid train {items} --output my-model")
    page.show(f"  semid encode my-model {items} --output my-catalog")
    page.show(f"  semid evaluate my-model {items}")
    page.show()
    if result["report"] is None:
        page.say("demo.no_report")
    else:
        page.say("demo.report", out=result["report"])


def _show_group(group: Dict[str, Any], page: Page) -> None:
    """一个 L1 前缀与它的分支。"""
    page.show()
    head = page.text("demo.group", label=group["label"], n=group["num_items"], purity=group["purity"])
    page.show(f"{_prefix(group['prefix'])}  {head}", style="cyan")
    page.pairs((_prefix(branch["prefix"]), _titles(branch), "cyan") for branch in group["branches"])


def _titles(branch: Dict[str, Any]) -> str:
    return " · ".join(branch["titles"]) + (" …" if branch["num_items"] > len(branch["titles"]) else "")


def _prefix(codes: List[int]) -> str:
    """`<a_3><b_12>` 太长；表格里用 `3-12`。"""
    return "-".join(map(str, codes))


def _report(output: Path, lang: str) -> str | None:
    """演示的网页；没有装 semid[report] 时演示照样成功。"""
    from ...report.page import write_report

    try:
        return str(write_report([output / "model"], output / "report.html", lang=lang, overwrite=True)["output"])
    except ImportError:
        return None
