"""The leaderboard as a visitor uses it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from serving import NO_MODELS, served, tab, wait_until

from quant_engine.results import Result
from quant_engine.runs import folder as run_folder
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

pytestmark = pytest.mark.browser

LATE_MS = 2000
LATE = """
import functools, time
from leaderboard.ui.leaderboard_tab import LeaderboardTab

refresh = LeaderboardTab.refresh

@functools.wraps(refresh)
def late(self, *arguments, **values):
    updates = refresh(self, *arguments, **values)
    time.sleep(2 if self.board in updates else 0)
    return updates

LeaderboardTab.refresh = late
"""
"""For a page that takes its time to draw new results."""


def rows(page: Page) -> list[list[str]]:
    """The table's rows as lists of cell texts, without ranks; the setting comes first: method, bits, group, source."""
    return page.eval_on_selector_all(
        "table.board tbody tr",
        "rows => rows.map(row => [...row.querySelectorAll(':scope > :not(.kr)')].map(cell => "
        "(cell.querySelector('.open') ?? (cell.firstChild?.nodeType === 3 ? cell.firstChild : cell))"
        ".textContent.trim()))",
    )


def headers(page: Page) -> list[str]:
    heads = page.locator("table.board thead tr:nth-child(2) th:not(.kr)")
    return [text.strip(" ▴▾\n") for text in heads.all_inner_texts()]


def column(page: Page, title: str) -> list[str]:
    index = headers(page).index(title)
    return [row[index] for row in rows(page)]


def press(page: Page, group: str, choice: str) -> None:
    """A filter's pill or a segment."""
    page.locator("fieldset", has=page.get_by_text(group, exact=True)).get_by_text(choice, exact=True).click()


def summary_is(page: Page, start: str) -> None:
    """Waits until the line above the table begins so."""
    expect(page.locator("#board .summary")).to_have_text(re.compile(f"^{start}"))


def test_the_studys_table_is_there(page):
    index = headers(page).index("WikiText2")
    gptq = [row for row in rows(page) if row[:4] == ["GPTQ", "W4A16", "128", "paper"]]
    assert [row[index] for row in gptq] == ["6.5"]
    summary_is(page, "41 settings")


def test_a_filter_shows_what_it_says_and_clear_brings_all_back(page):
    press(page, "Method", "GPTQ")
    press(page, "Weight bits", "3")
    summary_is(page, "2 of 41 settings")
    assert {tuple(row[:2]) for row in rows(page)} == {("GPTQ", "W3A16")}
    press(page, "Group size", "128")
    summary_is(page, "1 of 41 settings")
    page.get_by_role("button", name="Clear filters").click()
    summary_is(page, "41 settings")
    assert len(rows(page)) == 41


def test_sorting_is_on_real_numbers_and_survives_a_filter(page):
    page.get_by_role("button", name="WikiText2").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("WikiText2")
    # Waited for: a table that was drawn for what statistics found meanwhile may show for a moment.
    wait_until(lambda: column(page, "WikiText2")[-1] == "2.7×10⁶", 20)
    best_first = column(page, "WikiText2")
    assert best_first[0] == "6.1"
    assert best_first.index("8.7") < best_first.index("27.9") < best_first.index("210")
    press(page, "Weight bits", "2")
    summary_is(page, "10 of 41 settings")
    assert column(page, "WikiText2")[-1] == "2.7×10⁶"
    page.get_by_role("button", name="WikiText2").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("WikiText2")
    assert column(page, "WikiText2")[0] == "2.7×10⁶"


def test_search_finds_settings_and_says_when_there_are_none(page):
    page.get_by_label("Search").fill("awq w4 g128")
    summary_is(page, "1 of 41 settings")
    assert rows(page)[0][:3] == ["AWQ", "W4A16", "128"]
    page.get_by_label("Search").fill("nothing of this name")
    expect(page.locator("#board")).to_contain_text("No setting matches.")
    page.get_by_label("Search").fill("")
    summary_is(page, "41 settings")


def test_difference_and_retention(page):
    press(page, "Method", "GPTQ")
    press(page, "Weight bits", "4")
    press(page, "Show", "Δ FP16")
    summary_is(page, ".*difference to FP16")
    assert column(page, "WikiText2") == ["+0.4", "+0.9"]
    press(page, "Show", "% kept")
    summary_is(page, ".*percent of FP16")
    assert column(page, "WikiText2") == ["93.8%", "87.1%"]


def test_another_model_and_track_show_their_own_columns_and_collapsed_cells(page):
    press(page, "Method", "QuIP")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="LLaVA-Next-8B").click()
    expect(page.locator("table.board")).to_contain_text("MME-P")
    assert "collapsed" in column(page, "AI2D")
    assert len(rows(page)) == 13


def test_the_table_can_be_used_with_the_keyboard(page):
    button = page.get_by_role("button", name="PIQA")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("PIQA")
    expect(button).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_tab_overflows_in_any_theme_or_width(lab, opened, width, theme):
    page = opened(lab, width=width, theme=theme)
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    for name in ("Leaderboard", "Explore", "Ask a picture", "Run", "Methods"):
        tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_method_and_header_stay_in_view_when_the_table_scrolls(lab, opened):
    page = opened(lab, width=390, height=844)
    # Both places in one look: on a busy machine the page may still be moving.
    page.wait_for_function(
        """() => {
            const box = document.querySelector("#board .scroll");
            box.scrollTo(600, 400);
            const method = [...box.querySelectorAll("th button")].find(button => button.innerText.startsWith("Method"));
            const [outer, inner] = [box, method].map(element => element.getBoundingClientRect());
            return box.scrollLeft > 0 && Math.abs(inner.x - outer.x) < 12 && Math.abs(inner.y - outer.y) < 60;
        }"""
    )


def test_the_theme_switch_is_remembered(lab, opened):
    page = opened(lab)
    page.get_by_label("Switch between light and dark").click()
    page.wait_for_function("document.body.classList.contains('dark')")
    page.reload()
    page.wait_for_selector("table.board")
    page.wait_for_function("document.body.classList.contains('dark')")


def write_a_run() -> None:
    """A run of GPTQ's 4 bits, group 64, as if LLaMA3-8B were here."""
    setting = QuantSetting(method="gptq", w_bits=4, group_size=64)
    spec = RunSpec(weights=WeightSpec(model="llama3-8b", setting=setting), tasks=("wikitext2",))
    result = Result(
        run_id=spec.run_id,
        source="measured",
        model="LLaMA3-8B",
        track="llm_ptq",
        method="gptq",
        w_bits=4,
        group_size=64,
        task="wikitext2",
        metric="perplexity",
        value=6.54,
    )
    run_folder.write(spec, {}, [result], [], {}, "")


def test_an_answer_that_comes_late_does_not_stay(tmp_path, opened, monkeypatch):
    with served(tmp_path, before=LATE, **NO_MODELS) as lab:
        page = opened(lab)
        page.wait_for_timeout(LATE_MS)  # what the page asks as it opens
        monkeypatch.setenv("LOWBIT_RESULTS", str(lab.results))
        write_a_run()
        with page.expect_request(lambda request: "llm_ptq" in (request.post_data or ""), timeout=10_000):
            pass  # the drawing of the new run is on its way: it will be of the model that is left now
        page.get_by_label("Model", exact=True).locator("visible=true").first.click()
        page.get_by_role("option", name="LLaVA-Next-8B").click()
        summary_is(page, "13 settings")
        page.wait_for_timeout(LATE_MS)  # the late answer comes
        summary_is(page, "13 settings")
        expect(page.get_by_label("Pictures and language")).to_be_checked()


def test_a_finished_run_appears_while_the_table_is_open(tmp_path, opened, monkeypatch):
    with served(tmp_path, **NO_MODELS) as lab:
        page = opened(lab)
        press(page, "Method", "GPTQ")
        summary_is(page, "7 of 41 settings")
        monkeypatch.setenv("LOWBIT_RESULTS", str(lab.results))
        write_a_run()
        summary_is(page, "8 of 42 settings")
        assert ["GPTQ", "W4A16", "64", "measured", "6.54"] in [row[:5] for row in rows(page)]
        press(page, "Source", "measured")
        summary_is(page, "1 of 42 settings")


def test_a_corrupt_run_folder_is_named_and_the_rest_shows(tmp_path, opened):
    (tmp_path / "results" / "0123456789abcdef").mkdir(parents=True)
    with served(tmp_path, **NO_MODELS) as lab:
        page = opened(lab)
        expect(page.locator("#problems")).to_contain_text("0123456789abcdef")
        expect(page.locator("#problems")).to_contain_text("run.json is missing")
        assert len(rows(page)) == 41


def test_the_page_asks_no_other_host_for_anything(lab, browser):
    context = browser.new_context()
    asked = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(lab.url)
    page.wait_for_selector("table.board")
    page.wait_for_timeout(1000)
    context.close()
    assert [url for url in asked if not url.startswith((lab.url, "data:", "blob:"))] == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system has no /proc")
def test_the_page_process_never_maps_torch(lab, page):
    assert "torch" not in Path(f"/proc/{lab.pid}/maps").read_text()
