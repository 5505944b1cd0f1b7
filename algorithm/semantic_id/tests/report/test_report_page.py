"""报告的页面，在真的无头 Chromium 里：打开、点树、换语言、搜索、换运行、暗色、手机、打印、不联网。

没有 Chromium 时跳过；设了 REQUIRE_CHROMIUM（`.ci/run`）则跳过就是失败。
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from algorithm.semantic_id.report.page import write_report
from algorithm.semantic_id.tests.report.chromium import Chromium, find_chromium
from algorithm.semantic_id.tests.report.report_runs_made import NASTY, make_items, make_run, make_training

CHINESE = re.compile("[一-鿿]")


def chromium_or_skip() -> str:
    """Chromium 的路径；没有就跳过，或按 REQUIRE_CHROMIUM 失败。"""
    found = find_chromium()
    if found is None and os.environ.get("REQUIRE_CHROMIUM"):
        pytest.fail("REQUIRE_CHROMIUM is set, but there is no Chromium on PATH (apt-get install chromium)")
    if found is None:
        pytest.skip("no Chromium on PATH; the report page is not tested")
    return found


@pytest.fixture(scope="module")
def browser():
    with Chromium(chromium_or_skip()) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """三次运行：有评估与曲线的、误差更小的、只有训练的。"""
    folder = tmp_path_factory.mktemp("page")
    first = make_training(folder / "first")
    make_run(first / "evaluation", "first", make_items(suffix=True))
    second = make_run(folder / "second", "second", make_items(seed=1), relative_mse=0.2)
    write_report([first, second, make_training(folder / "third")], folder / "report.html")
    return folder / "report.html"


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).innerText")


def shown_rows(browser, selector):
    """表里每行：第一格与第二格的文字。"""
    return browser.evaluate(
        f"[...document.querySelectorAll('{selector} tbody tr')].map(r => [r.cells[0].innerText, r.cells[1].innerText])"
    )


def by_prefix(prefix, seed=0):
    """暴力：有这个前缀的物品，(完整 ID, 标题) 的集合；第一个运行有去重位。"""
    rows = make_items(seed=seed).to_pylist()
    mine = [row for row in rows if [row["l1"], row["l2"], row["l3"]][: len(prefix)] == list(prefix)]
    return {(f"{r['l1']}-{r['l2']}-{r['l3']}.0", r["title"].replace("\n", " ")) for r in mine}


@pytest.mark.parametrize("there", [True, False])
def test_skip_is_a_failure_when_chromium_is_required(monkeypatch, there):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SEMID_CHROMIUM", raising=False)
    if there:
        monkeypatch.setenv("REQUIRE_CHROMIUM", "1")
    else:
        monkeypatch.delenv("REQUIRE_CHROMIUM", raising=False)
    with pytest.raises(pytest.fail.Exception if there else pytest.skip.Exception, match="Chromium"):
        chromium_or_skip()


def test_opens_without_an_error_or_a_request(browser, page):
    browser.open(page)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert browser.evaluate("document.querySelectorAll('#usage-charts canvas').length") == 3
    assert browser.evaluate("document.querySelectorAll('#curves canvas').length") == 4
    for canvas in ("treemap", "plane"):  # 真的画了东西：不止一种颜色
        colours = browser.evaluate(
            f"(() => {{ const c = document.getElementById('{canvas}'); const d = new Uint32Array(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.buffer); return new Set(d).size; })()"
        )
        assert colours > 20, canvas


def test_cannot_go_online_even_if_asked(browser, page):
    browser.open(page)
    refused = browser.evaluate("fetch('https://example.invalid/').then(() => 'went', (e) => e.name)")
    assert refused == "TypeError"
    assert any("Content Security Policy" in error for error in browser.errors)


def test_tree_is_clicked_down_to_the_titles(browser, page):
    browser.open(page)
    where = []
    for _ in range(2):  # L1，再 L2；点的是画布正中那一格
        browser.click_on("#treemap")
        where = browser.evaluate("[...document.querySelectorAll('#crumbs button')].slice(1).map(b => b.innerText)")
    prefix = [int(part.split()[1]) for part in where]
    assert [part.split()[0] for part in where] == ["L1", "L2"]
    rows = {tuple(row) for row in shown_rows(browser, "#branches")}
    assert rows == by_prefix(prefix)
    assert len(rows) > 3
    browser.click_on("#branches tbody button")
    title = shown_rows(browser, "#branches")[0][1]
    assert text(browser, "#item h3") == title
    browser.click_on("#crumbs button")  # 回到根：四个 L1，从大到小
    counts = [int(n) for _, n in shown_rows(browser, "#branches")]
    assert counts == sorted((len(by_prefix([code])) for code in range(4)), reverse=True)
    assert browser.errors == []


def test_language_switch(browser, page):
    browser.open(page)
    assert "挤。加一层。" in text(browser, "#overview")
    assert "语义 ID 报告" in text(browser, ".brand")
    browser.click_on("[data-lang=en]")
    browser.wait_for("document.querySelector('#crumbs button').innerText === 'All'")
    everything = browser.evaluate("document.body.innerText").replace("中文", "")
    assert not CHINESE.search(everything), CHINESE.findall(everything)
    assert "crowded. Add a level." in everything
    assert browser.evaluate("document.getElementById('query').placeholder").startswith("item id")
    browser.click_on("[data-lang=zh]")
    browser.wait_for("document.querySelector('#crumbs button').innerText === '全部'")
    assert not any(word in text(browser, "#overview") for word in ("crowded", "Items", "fix first"))


def test_search_shows_the_id_and_the_neighbours(browser, page):
    browser.open(page)
    browser.click_on("#query")
    browser.type("THING number 77")
    browser.wait_for("document.querySelectorAll('#hits button').length === 1")
    row = make_items().to_pylist()[77]
    codes = [row["l1"], row["l2"], row["l3"]]
    assert text(browser, "#hits .sid") == "-".join(map(str, codes)) + ".0"
    browser.click_on("#hits button")
    chips = browser.evaluate("[...document.querySelectorAll('.chips b')].map(b => Number(b.innerText))")
    assert chips == [*codes, 0]
    assert "id-77" in text(browser, "#item")
    listed = browser.evaluate(
        "[...document.querySelectorAll('#item h4')].map(h => [Number(h.dataset.shared), h.innerText,"
        " !h.nextSibling ? [] : [...h.nextSibling.querySelectorAll('tbody tr')]"
        ".map(r => [r.cells[0].innerText, r.cells[1].innerText])])"
    )
    assert [length for length, _, _ in listed] == [3, 2, 1]
    nearer = {(f"{row['l1']}-{row['l2']}-{row['l3']}.0", row["title"])}
    for length, heading, found in listed:
        mates = by_prefix(codes[:length])
        assert {tuple(pair) for pair in found} <= mates - nearer
        assert len(found) == min(8, len(mates - nearer))
        assert "-".join(map(str, codes[:length])) in heading
        nearer |= mates
    assert browser.errors == []


@pytest.mark.parametrize(("query", "count"), [("id-77", 1), ("2-1", None), ("nothing like this", 0), ("3，2", None)])
def test_search_by_id_and_by_prefix(browser, page, query, count):
    browser.open(page)
    browser.click_on("#query")
    browser.type(query)
    browser.wait_for("document.querySelector('#hits li')")
    found = browser.evaluate("document.querySelectorAll('#hits button').length")
    prefix = [int(part) for part in re.split("[-，]", query)] if count is None else []
    assert found == (len(by_prefix(prefix)) if count is None else count)


def test_titles_stay_text(browser, page):
    browser.open(page)
    before = browser.evaluate("document.querySelectorAll('script, img').length")
    for nasty in NASTY[:3]:
        browser.evaluate(
            f"(() => {{ const q = document.getElementById('query'); q.value = {json.dumps(nasty)};"
            " q.dispatchEvent(new Event('input')); })()"
        )
        browser.wait_for(f"document.querySelector('#hits .name')?.textContent === {json.dumps(nasty)}")
        browser.click_on("#hits button")
        assert text(browser, "#item h3") == nasty
    assert browser.evaluate("document.querySelectorAll('script, img').length") == before
    assert browser.evaluate("window.pwned") is None
    assert browser.errors == []


def test_another_run(browser, page):
    def choose(index):
        browser.evaluate(
            f"(() => {{ const s = document.getElementById('run'); s.value = {index};"
            " s.dispatchEvent(new Event('change')); })()"
        )
        browser.wait_for(
            f"!document.body.classList.contains('busy') && !document.querySelector('[data-run=\"{index}\"]').hidden"
        )

    browser.open(page)
    value = (
        "[...document.querySelectorAll('[data-metric=relative_mse] .value')].filter(e => e.offsetParent)[0].innerText"
    )
    assert browser.evaluate(value) == "60%"
    best = browser.evaluate(
        "[...document.querySelectorAll('tr[data-key=relative_mse] td')].map(td => td.classList.contains('best'))"
    )
    assert best == [False, True, False]
    choose(1)
    assert browser.evaluate(value) == "80%"
    browser.click_on("#treemap")
    code = int(browser.evaluate("document.querySelectorAll('#crumbs button')[1].innerText").split()[1])
    counts = [int(n) for _, n in shown_rows(browser, "#branches")]
    assert sum(counts) == len(by_prefix([code], seed=1))
    choose(2)  # 只有训练：曲线在，物品的各节收起
    assert browser.evaluate("document.getElementById('tree').hidden")
    assert browser.evaluate("document.querySelectorAll('#curves canvas').length") == 4 - 1  # 不知道 K，不画困惑度
    assert browser.errors == []


def test_colours_follow_the_system_and_errors(browser, page):
    corner = (
        "(() => { const c = document.getElementById('plane');"
        " return [...c.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3); })()"
    )
    browser.open(page, dark=True)
    assert browser.evaluate(corner) == [0x1B, 0x1B, 0x1E]
    dark = browser.evaluate("document.getElementById('treemap').toDataURL()")
    browser.click_on("#tree [data-colour=error]")
    browser.wait_for("document.querySelector('#tree .ramp')")
    assert browser.evaluate("document.getElementById('treemap').toDataURL()") != dark
    browser.open(page)
    assert browser.evaluate(corner) == [0xFD, 0xFD, 0xFC]


def test_worst_and_collisions(browser, page):
    browser.open(page)
    assert shown_rows(browser, "#worst-list")[0][1] == NASTY[0]  # 第 0 行误差最大
    groups = {}
    for row in make_items().to_pylist():
        groups.setdefault((row["l1"], row["l2"], row["l3"]), []).append(row["title"])
    sizes = sorted((len(titles) for titles in groups.values() if len(titles) > 1), reverse=True)
    assert f"{len(sizes)} 组" in text(browser, "#crowded-note")
    shown = browser.evaluate(
        "[...document.querySelectorAll('#crowded-list summary .n')].map(n => parseInt(n.innerText))"
    )
    assert shown == sizes[: len(shown)]
    browser.click_on("#crowded-list summary")
    browser.wait_for("document.querySelector('#crowded-list details tbody tr')")
    prefix = tuple(map(int, text(browser, "#crowded-list summary .sid").split("-")))
    assert {title for _, title in shown_rows(browser, "#crowded-list details")} == {
        title.replace("\n", " ") for title in groups[prefix]
    }


def test_phone_has_no_sideways_scroll_and_prints(browser, page):
    browser.open(page, 390, 844, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.click_on("[data-lang=en]")
    browser.wait_for("document.documentElement.lang === 'en'")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    pdf = browser.print_pdf()
    assert pdf.startswith(b"%PDF")
    assert browser.errors == []


def test_map_click_picks_the_item_under_the_pointer(browser, page):
    browser.open(page)
    browser.evaluate("document.getElementById('plane').scrollIntoView({block: 'center'})")
    # 逐格悬停，直到提示框说出一个物品，再在那里点下去
    box = browser.evaluate(
        "(() => { const b = document.getElementById('plane').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    for step in range(400):
        x = box[0] + box[2] * (0.3 + 0.4 * (step % 20) / 20)
        y = box[1] + box[3] * (0.3 + 0.4 * (step // 20) / 20)
        browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        tip = browser.evaluate("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
        if "thing number" in tip:
            break
    title = re.search(r"thing number \d+", tip)[0]
    browser.click(x, y)
    browser.wait_for("document.querySelector('#item h3')")
    assert text(browser, "#item h3") == title


def test_a_broken_page_says_so(browser, page, tmp_path):
    broken = tmp_path / "broken.html"
    whole = page.read_text(encoding="utf-8")
    start = whole.index('id="block-0">') + len('id="block-0">')
    broken.write_text(whole[:start] + "AAAA" + whole[start + 4 :], encoding="utf-8")
    with pytest.raises(RuntimeError, match="did not start"):
        browser.open(broken)
    assert "读不出来" in text(browser, "#trouble")
    assert "挤。加一层。" in text(browser, "#overview")  # 数字仍在


def test_nothing_is_left_behind(page):
    with Chromium(chromium_or_skip()) as one:
        profile, pid = Path(one.profile), one.pid
        one.open(page)
    assert not profile.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
