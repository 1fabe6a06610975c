"""Sweeps and the history of runs on the page: a grid that fills, runs that pause, notes, a search, deleting."""

import io
import zipfile

import pytest
from playwright.sync_api import Page, expect
from serving import NOBODY_ASKS, served, tab

from quant_engine.runs.queue import Queue
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

pytestmark = pytest.mark.browser

SWEEP_S = 600_000
RUN_S = 120_000


def compose_sweep(page: Page) -> None:
    """RTN at 3 and 4 bits on the demo language model."""
    page.get_by_role("radio", name="Sweep").check()
    form = page.locator("#sweep-form")
    form.get_by_label("SmolLM2-135M", exact=True).check()
    for name in ("Demo LLaVA-NeXT", "GPTQ", "2"):
        form.get_by_label(name, exact=True).uncheck()
    page.get_by_label("Items per task").locator("visible=true").fill("1")
    page.get_by_role("button", name="Calibration and method options").click()
    page.get_by_label("Perplexity window").locator("visible=true").fill("128")
    page.get_by_role("heading", name="History").click()  # the boxes lose the focus


def cell(page: Page, label: str):
    return page.locator(f'#sweep-grid button[aria-label^="{label}:"]')


@pytest.mark.demo
def test_a_sweep_fills_its_grid_and_its_runs_can_be_saved_and_deleted(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab)
        tab(page, "Run")
        compose_sweep(page)
        expect(page.locator("#run-cost")).to_contain_text("2 runs.")
        page.get_by_role("button", name="Start 2 runs").click()
        expect(page.locator("#sweep-grid tbody button")).to_have_count(2)
        expect(page.locator("#sweep-grid th[scope=col]")).to_have_text(["SmolLM2-135M", "4 bits", "3 bits"])
        expect(page.locator("#sweep-grid tbody th")).to_contain_text(["RTN g64"])
        reloaded = opened(lab)  # a second window shows the same: while it runs, without the sweep's form
        tab(reloaded, "Run")
        expect(reloaded.locator("#sweep-grid tbody button")).to_have_count(2)
        expect(page.locator("#sweep-grid button.done")).to_have_count(2, timeout=SWEEP_S)
        expect(page.locator("#sweep-grid .summary")).to_contain_text("2 done")
        expect(page.locator("#pause-all, #resume-all, #cancel-all").locator("visible=true")).to_have_count(0)
        chosen = cell(page, "RTN W3A16 g64")
        chosen.focus()
        expect(page.locator("#sweep-grid .detail")).to_contain_text("RTN W3A16 g64: ")
        page.keyboard.press("Enter")
        expect(page.locator("#run article")).to_contain_text("RTN W3A16 g64")
        expect(chosen).to_have_attribute("aria-pressed", "true")
        expect(chosen).to_be_focused()
        run_id = chosen.get_attribute("data-run")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download", exact=True).click()
        content = download.value.path().read_bytes()
        assert "run.json" in zipfile.ZipFile(io.BytesIO(content)).namelist()
        page.locator("#delete").click()
        page.get_by_role("button", name="Keep it").click()
        assert (lab.results / run_id).is_dir()
        page.locator("#delete").click()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.locator("#sweep-grid .summary")).to_contain_text("1 done, 1 deleted")
        assert not (lab.results / run_id).exists()


@pytest.mark.demo
def test_a_run_pauses_and_goes_on(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab)
        tab(page, "Run")
        page.get_by_label("Items per task").locator("visible=true").fill("")
        page.locator("#start").click()
        expect(page.locator("#run article.running")).to_be_visible(timeout=RUN_S)
        page.locator("#pause").click()
        expect(page.locator("#run article.paused")).to_be_visible(timeout=RUN_S)
        expect(page.locator("#resume")).to_have_text("Resume")
        page.locator("#resume").click()
        expect(page.locator("#run article.running")).to_be_visible(timeout=RUN_S)
        page.locator("#cancel").click()
        expect(page.locator("#run article.cancelled")).to_be_visible(timeout=RUN_S)
        expect(page.locator("#resume")).to_have_text("Retry")


def spec(bits: float) -> RunSpec:
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64)
    return RunSpec(weights=WeightSpec(model="demo-llm", setting=setting), tasks=("perplexity",))


@pytest.mark.parametrize("width", [1440, 390])
def test_the_history_is_searched_noted_and_cleared(tmp_path, opened, width):
    queue = Queue(tmp_path / "queue.sqlite")
    runs = [queue.submit(spec(bits)) for bits in (2, 3, 4)]
    for run in runs:
        queue.cancel(run)
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab, width=width)
        tab(page, "Run")
        rows = page.locator("#runs li")
        expect(rows).to_have_count(3)
        rows.filter(has_text="W3A16").get_by_role("button").click()
        expect(page.locator("#run article")).to_contain_text("W3A16")
        note = page.get_by_label("Note", exact=True)
        note.fill("before the change")
        page.wait_for_timeout(2200)  # two looks at the queue leave what is being written alone
        expect(note).to_have_value("before the change")
        page.get_by_role("button", name="Save note").click()
        expect(rows.filter(has_text="before the change")).to_contain_text("W3A16")
        page.get_by_label("Find runs").fill("change rtn")
        expect(rows).to_have_count(1)
        page.get_by_label("Find runs").fill("nobody's")
        expect(page.locator("#runs")).to_contain_text("No run fits")
        page.get_by_label("Find runs").fill("")
        expect(rows).to_have_count(3)
        page.locator("#delete").click()
        expect(page.get_by_role("button", name="Keep it")).to_be_focused()
        page.get_by_role("button", name="Delete for good").click()
        expect(rows).to_have_count(2)
        expect(rows.filter(has_text="W3A16")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_sweeps_are_chosen_from_and_stopped_together(tmp_path, opened):
    queue = Queue(tmp_path / "queue.sqlite")
    first, second = (queue.submit_sweep([spec(bits) for bits in widths]) for widths in ((2, 3), (4, 5, 6)))
    for run in (*first.runs, *second.runs):
        queue.pause(run)
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab, width=390)
        tab(page, "Run")
        cells = page.locator("#sweep-grid tbody button")
        expect(cells).to_have_count(3)
        expect(page.locator("#resume-all")).to_be_visible()
        chooser = page.get_by_label("Sweep", exact=True).locator("visible=true").last
        chooser.click()
        page.get_by_role("option", name="2 runs").click()
        expect(cells).to_have_count(2)
        page.wait_for_timeout(2200)
        expect(cells).to_have_count(2)
        page.locator("#cancel-all").click()
        expect(page.locator("#sweeps")).to_be_hidden()  # nothing of it is left to do, and the form is for one setting
        assert {queue.get(run).state for run in first.runs} == {"cancelled"}
        assert {queue.get(run).state for run in second.runs} == {"paused"}
        page.get_by_role("radio", name="Sweep").check()
        expect(page.locator("#sweep-grid button.cancelled")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
