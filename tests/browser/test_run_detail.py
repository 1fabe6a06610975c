"""A run as it is followed on the page: its map fills block by block, then its numbers stand against FP16."""

import re

import pytest
from playwright.sync_api import Page, expect
from serving import NOBODY_ASKS, served, tab

pytestmark = [pytest.mark.browser, pytest.mark.demo]

RUN_S = 300_000
LINEARS = 30 * 7


def choose(page: Page, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).locator("visible=true").first.click()
    page.get_by_role("option", name=name).click()


def fill(page: Page, label: str, value: str) -> None:
    page.get_by_label(label).locator("visible=true").first.fill(value)


def known(page: Page) -> int:
    """How many linears have their colour."""
    return page.locator("#run-detail td.known").count()


def test_the_map_fills_while_a_run_quantizes_and_its_number_is_compared_with_fp16(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab)
        tab(page, "Run")
        choose(page, "Model", "SmolLM2-135M")
        choose(page, "Method", "GPTQ")
        fill(page, "Items per task", "4")
        page.get_by_role("button", name="Calibration and method options").click()
        fill(page, "Samples", "4")
        fill(page, "Tokens each", "128")
        fill(page, "Perplexity window", "128")
        page.locator("#start").click()

        cells = page.locator("#run-detail .error-map tbody td")
        expect(page.locator("#run-detail td.known").first).to_be_visible(timeout=RUN_S)
        expect(cells).to_have_count(LINEARS)
        first = known(page)
        assert first < LINEARS, "blocks that are not quantized yet have no colour"
        expect(page.locator("#run-detail td.now").first).to_be_visible()
        expect(page.locator("#run-detail .error-map > p").first).to_contain_text(" of 30 blocks ")
        page.wait_for_function(f"document.querySelectorAll('#run-detail td.known').length > {first}", timeout=RUN_S)

        expect(page.locator("#run article")).to_have_class("run done", timeout=RUN_S)
        expect(page.locator("#run-detail td.known")).to_have_count(LINEARS)
        expect(page.locator("#run-detail td.now")).to_have_count(0)
        outcome = page.locator("#run-detail .outcome")
        expect(outcome).to_contain_text("No FP16 run with the same items is on this machine")
        expect(outcome).to_contain_text("The study has no SmolLM2-135M.")
        expect(outcome.locator("tbody tr")).to_have_count(1)
        expect(outcome.locator("td").first).to_have_text(re.compile(r"^[\d.]+ ?[\d.]+ to [\d.]+, 4 windows$"))

        choose(page, "Method", "FP16")
        page.locator("#start").click()
        expect(page.locator("#run article header")).to_contain_text("FP16")
        expect(page.locator("#run article")).to_have_class("run done", timeout=RUN_S)
        page.locator("#runs button", has_text="GPTQ W4A16 g64").click()
        expect(outcome).to_contain_text("Difference to FP16")
        expect(outcome).to_contain_text(re.compile("more than chance|may be chance"))

        page.set_viewport_size({"width": 390, "height": 900})
        expect(page.locator("#run-detail td.known")).to_have_count(LINEARS)
        fits = page.locator("#run-detail").evaluate("detail => detail.scrollWidth <= detail.clientWidth")
        assert fits, "30 blocks have room on a telephone"
        last = page.locator("#run-detail .error-map tbody tr").last.locator("td").last.bounding_box()
        assert last["x"] + last["width"] <= 390
        assert last["width"] >= 6
