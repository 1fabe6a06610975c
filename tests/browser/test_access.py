"""Readable text, the keyboard, narrow screens, nothing that jumps, and a page that outlives the failure of a part."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from serving import NO_MODELS, served, tab
from test_leaderboard import rows, summary_is
from test_views import measured, open_row, search_has

pytestmark = pytest.mark.browser

TABS = ("Leaderboard", "Explore", "Ask a picture", "Run", "Methods")
LOOK_JS = (Path(__file__).parent / "look.js").read_text().strip()
LINK = (
    "?method=GPTQ,AWQ&bits=4,3&show=retained&sort=-ptb&q=g:128&pin=LLaMA3-8B~llm_ptq~AWQ~4~16~128"
    "&row=LLaMA3-8B~llm_ptq~AWQ~4~16~128"
)


def look(page: Page, what: str):
    """What look.js sees."""
    return page.evaluate(f"{LOOK_JS}.{what}()")


def look_around(page: Page) -> None:
    """Brings every chart into view, so that it is drawn."""
    for chart in page.locator("[data-figure]:visible").all():
        chart.scroll_into_view_if_needed()
        expect(chart.locator(".main-svg").first).to_be_attached()
    page.evaluate("scrollTo(0, 0)")


def view(page: Page) -> set[str]:
    """What the address says."""
    return {*page.url.partition("?")[2].split("&")}


def contrast(page: Page, theme: str) -> list[str]:
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
    page.wait_for_timeout(300)  # charts are drawn anew
    return look(page, "contrast")


def test_the_contrast_check_finds_what_is_hard_to_read(fresh_page):
    page = fresh_page
    page.evaluate("document.querySelector('.masthead p').style.color = '#a0a0a0'")
    page.evaluate("document.querySelector('table.board td.lost').style.background = 'rgb(120 60 0)'")
    found = look(page, "contrast")
    assert {text.split()[1] for text in found} == {"p.null:", "td.first"}, found


def test_text_is_readable_on_every_tab_in_both_themes(tmp_path, opened, monkeypatch):
    """WCAG 2.1 AA (1.4.3), shaded cells, the card, pins, notes and charts included."""
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    run = measured(4, 75.0, 6)
    (tmp_path / "results" / "0123456789abcdef").mkdir()
    with served(tmp_path, **NO_MODELS) as lab:
        page = opened(lab, search=f"?model=all&sort=-wikitext2&row=run~{run.run_id}{'&pin='.join(['', *PINS[:2]])}")
        page.add_style_tag(content="* { transition: none !important }")
        page.get_by_role("button", name="More filters and columns").click()
        found = {("card", theme): contrast(page, theme) for theme in ("light", "dark")}
        page.keyboard.press("Escape")
        expect(page.locator("#card .card")).to_have_count(0)
        for name in TABS:
            tab(page, name)
            look_around(page)
            for theme in ("light", "dark"):
                found[name, theme] = contrast(page, theme)
        tab(page, "Leaderboard")
        page.get_by_label("Model", exact=True).locator("visible=true").click()
        page.get_by_role("option", name="LLaVA-Next-8B").click()
        expect(page.locator("td.collapsed").first).to_be_visible()
        for theme in ("light", "dark"):
            found["collapsed", theme] = contrast(page, theme)
        assert {where: texts for where, texts in found.items() if texts} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_in_heat_maps_are_readable_on_the_scales_colours(lab, opened, theme):
    page = opened(lab, theme=theme)
    page.evaluate("""() => {
      for (const name of ['--heat-lost', '--heat-gained', '--sheet']) {
        const sample = Object.assign(document.createElement('p'), { textContent: `sample ${name}` });
        sample.style.cssText = `color: var(--ink); background: var(${name}); font-size: 11px`;
        document.querySelector('#rooms').prepend(sample);
      }
    }""")
    assert [text for text in look(page, "contrast") if "sample" in text] == []


PINS = [
    f"LLaMA3-8B~llm_ptq~{method}~{bits}~16~128" for method, bits in (("GPTQ", 4), ("AWQ", 4), ("RTN", 4), ("GPTQ", 3))
]


def test_four_rows_can_be_pinned_from_the_table_on_a_narrow_screen(lab, opened):
    page = opened(lab, width=390, height=844)
    for count, key in enumerate(PINS, 1):
        row = page.locator(f'#board tr[data-row="{key}"]')
        row.locator(".pin").click()
        expect(row.locator(".pin")).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#pins .chips button")).to_have_count(count)
    search_has(page, *[f"pin={key}" for key in PINS])
    expect(page.locator("#card .card")).to_have_count(0)
    page.locator("#pins").scroll_into_view_if_needed()
    expect(page.locator("#chart-pins .main-svg").first).to_be_visible()
    page.locator(f'#board tr[data-row="{PINS[0]}"] .pin').click()
    expect(page.locator("#pins .chips button")).to_have_count(3)


def test_nothing_is_clipped_or_too_small_to_press_on_a_narrow_screen(lab, opened):
    page = opened(lab, width=390, height=844, search=f"{'&pin='.join(['?', *PINS])}&sort=wikitext2")
    found = {}
    for name in TABS:
        tab(page, name)
        look_around(page)
        found[name] = look(page, "clipped") + look(page, "small")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tab(page, "Leaderboard")
    open_row(page, "GPTQ")
    found["card"] = look(page, "clipped") + look(page, "small")
    assert {name: parts for name, parts in found.items() if parts} == {}


def test_a_link_shows_its_view_from_the_first_frame_on(lab, opened):
    context, pages = opened(lab).context, []
    for link in (LINK, "?tab=explore&x.quality=c4&fit.card=L4", "?model=LLaVA-Next-8B&track=mllm_ptq"):
        page = context.new_page()
        page.add_init_script(f"{LOOK_JS}.record()")
        page.goto(f"{lab.url}/{link}")
        page.wait_for_selector("#rooms")
        pages.append(page)
    page.wait_for_timeout(4500)  # longer than the page's own timer: nothing is drawn anew behind the visitor's back
    for page in pages:
        views = page.evaluate("views")
        assert len(views) == 1, views


def test_the_keyboard_reaches_every_control_of_the_leaderboard_in_order(lab, opened):
    page = opened(lab, search="?method=GPTQ&bits=4")
    page.get_by_role("button", name="More filters and columns").click()
    page.get_by_role("tab", name="Leaderboard").focus()
    visited = []
    for _ in range(120):
        page.keyboard.press("Tab")
        at = look(page, "focus")
        if at is None:
            break
        visited.append(at)
    assert [element["name"] for element in visited if not element["ring"]] == []
    names = [element["name"] for element in visited]
    first = ("Model", "Language", "Value", "Search", "Clear filters", "FP16", "16", "per row", "paper")
    wanted = [*first, "CSV", "Method", "WikiText2", "Pin GPTQ W4A16 128"]
    indices = [names.index(name) for name in wanted]
    assert indices == sorted(indices), names
    everything = page.locator(
        "#rooms [role=tabpanel]:visible :is(button, input, textarea, [tabindex='0']):visible"
    ).count()
    assert len(visited) >= everything


def test_escape_closes_what_opens(page):
    model = page.get_by_label("Model", exact=True).locator("visible=true")
    model.focus()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("option").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    opener = page.locator("table.board button.open").nth(3)
    opener.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#card .close")).to_be_focused()
    page.locator(".masthead").click()  # also when the focus is elsewhere
    page.keyboard.press("Escape")
    expect(page.locator("#card .card")).to_have_count(0)
    page.locator("table.board button.open").nth(3).press("Enter")
    expect(page.locator("#card .close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()


def test_a_late_answer_undoes_nothing(page):
    """A list that loses the focus asks for the table anew, though nothing was chosen; meanwhile the visitor goes on."""
    held = []

    def hold(route: Route) -> None:
        asked = '{"data":["LLaMA3-8B"' in (route.request.post_data or "")
        route.fallback() if held or not asked else held.append(route)

    page.route("**/run/predict*", hold)
    page.get_by_label("Model", exact=True).locator("visible=true").focus()
    with page.expect_request(lambda _: bool(held)):
        page.get_by_label("Search").focus()
    page.get_by_label("Search").fill("gptq")
    summary_is(page, "7 of")
    page.get_by_role("radio", name="% kept").check()
    page.locator("table.board button.open").nth(3).press("Enter")
    expect(page.locator("#card .close")).to_be_focused()
    search_has(page, "q=gptq", "show=retained", "row=LLaMA3-8B~llm_ptq~GPTQ")
    before = view(page)
    with page.expect_response(lambda reply: reply.request == held[0].request):
        held[0].continue_()
    page.wait_for_timeout(4000)  # the table is redrawn where it does not fit the controls
    expect(page.locator("#card .card")).to_be_visible()
    summary_is(page, "7 of")
    expect(page.get_by_label("Search")).to_have_value("gptq")
    expect(page.get_by_role("radio", name="% kept")).to_be_checked()
    assert view(page) == before


def test_a_failed_figure_is_a_sentence_in_its_place_and_the_rest_works(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    run = measured(4, 75.0, 6)
    next((tmp_path / "results" / run.run_id).glob("layers*")).write_bytes(b"no parquet")
    breaks = "from leaderboard import figures; figures.methods_and_bits = lambda *_: 1 / 0"
    with served(tmp_path, before=breaks, **NO_MODELS) as lab:
        page = opened(lab)
        page.goto(f"{lab.url}/?tab=explore&x.model=SmolLM2-135M&x.run={run.run_id}")
        failed = page.locator('#explore .figure[aria-label="Methods × bits"]')
        expect(failed).to_contain_text("This figure could not be made")
        expect(page.locator("#chart-bits .main-svg").first).to_be_visible()
        layers = page.locator('#inside .figure[aria-label="Error by layer"]')
        expect(layers).to_contain_text(re.compile("could not be made|can't be read"))
        expect(page.locator("#fit")).to_contain_text("settings of")
        tab(page, "Leaderboard")
        page.get_by_label("Search").fill("gptq w4 g128")
        summary_is(page, "1 of")
        assert "GPTQ" in rows(page)[0]
        assert "ZeroDivisionError" in lab.log.read_text()
        expect(page.locator("body")).not_to_contain_text("Traceback")
