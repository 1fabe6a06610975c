"""Runs from the page: refused, started, followed, stopped, killed, and found on the leaderboard."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect
from serving import NOBODY_ASKS, Lab, served, tab, wait_until

from quant_engine.runs.queue import Queue, QueuedRun

pytestmark = pytest.mark.browser

RUN_S = 300_000


@pytest.fixture
def running(fresh_page) -> Page:
    tab(fresh_page, "Run")
    return fresh_page


def choose(page: Page, label: str, value: str) -> None:
    """Types into one of the Run tab's boxes that can be typed in."""
    box = page.get_by_label(label).locator("visible=true").first
    box.fill(value)
    box.press("Enter")


def choose_model(page: Page, name: str) -> None:
    page.get_by_label("Model", exact=True).locator("visible=true").first.click()
    page.get_by_role("option", name=name).click()


def start(page: Page) -> None:
    page.locator("#start").click()


def refused(page: Page, sentence: str) -> None:
    expect(page.locator("#run-problem")).to_contain_text(sentence)
    expect(page.locator("body")).not_to_contain_text("Traceback")


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("Weight bits", "9", "from 1 to 8"),
        ("Weight bits", "many", "must be a number"),
        ("Group size", "0", "Group size must be 1 or more"),
        ("Items per task", "none", "whole number"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(running, label, value, sentence):
    choose(running, label, value)
    start(running)
    refused(running, sentence)


def test_a_run_without_a_task_is_refused(running):
    running.locator("#tasks").get_by_text("Built-in text (perplexity)").click()
    start(running)
    refused(running, "at least one task")


def test_results_that_cannot_be_written_are_said_before_the_run_starts(tmp_path, opened):
    (tmp_path / "results").write_text("a file where the folder should be")
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab)
        tab(page, "Run")
        start(page)
        refused(page, "can't be written")


def test_a_hosted_page_starts_no_run_without_the_owners_token(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS, SPACE_ID="somebody/lab", LOWBIT_OWNER_TOKEN="secret") as lab:
        page = opened(lab)
        tab(page, "Run")
        start(page)
        refused(page, "needs the owner's token")
        assert Queue(lab.home / "queue.sqlite").list() == []


def test_the_form_fits_the_method(running):
    box = running.get_by_label("Method", exact=True).locator("visible=true").first
    box.click()
    running.get_by_role("option", name="FP16").click()
    expect(running.get_by_label("Weight bits", exact=True).locator("visible=true")).to_have_count(0)
    box.click()
    running.get_by_role("option", name="GPTQ").click()
    running.get_by_role("button", name="Calibration and method options").click()
    expect(running.get_by_label("Act order")).to_be_visible()
    expect(running.get_by_label("Calibration text")).to_be_visible()


def test_a_list_that_loses_the_focus_changes_nothing(running):
    page = running
    page.get_by_label("Method", exact=True).locator("visible=true").click()
    page.get_by_role("option", name="SmoothQuant").click()
    page.get_by_role("button", name="Calibration and method options").click()
    shown = {
        name: page.get_by_label(name).locator("visible=true")
        for name in ("Activation bits", "Perplexity window", "Model")
    }
    expect(shown["Activation bits"]).to_have_value("8")
    shown["Activation bits"].click()
    page.get_by_role("option", name="6", exact=True).click()
    shown["Perplexity window"].fill("512")
    for name, value in {"Method": "smoothquant", "Model": "demo"}.items():
        with page.expect_response(
            lambda reply, value=value: reply.request.post_data.startswith(f'{{"data":["{value}"')
        ):
            page.get_by_label(name, exact=True).locator("visible=true").focus()
            page.locator("#start").focus()
    page.wait_for_timeout(300)
    expect(shown["Activation bits"]).to_have_value("6")
    expect(shown["Perplexity window"]).to_have_value("512")


def worker_of(lab: Lab, run: QueuedRun) -> psutil.Process | None:
    """The process that does a run."""
    for child in psutil.Process(lab.pid).children():
        if run.run_id in child.cmdline():
            return child
    return None


@pytest.mark.demo
def test_a_run_finishes_and_its_row_is_on_the_leaderboard(lab, running, opened):
    choose(running, "Items per task", "2")
    running.get_by_role("button", name="Calibration and method options").click()
    choose(running, "Perplexity window", "128")
    start(running)
    card = running.locator("#run article")
    expect(card).to_contain_text("RTN W4A16 g64")
    reloaded = opened(lab)  # a second tab shows the same run: state is the queue's
    tab(reloaded, "Run")
    expect(reloaded.locator("#run article")).to_contain_text("RTN W4A16 g64")
    expect(card).to_have_class("run done", timeout=RUN_S)
    running.get_by_role("button", name="See it on the leaderboard").click()
    row = running.locator("table.board tbody tr.measured", has_text="RTN")
    expect(row).to_contain_text("measured")
    expect(row).to_contain_text("W4A16")


@pytest.mark.demo
def test_a_killed_run_is_failed_with_a_sentence_and_the_page_lives_on(tmp_path, opened):
    with served(tmp_path, before=NOBODY_ASKS) as lab:
        page = opened(lab)
        tab(page, "Run")
        choose(page, "Items per task", "")
        start(page)
        expect(page.locator("#run article.running")).to_be_visible(timeout=60_000)
        (run,) = Queue(lab.home / "queue.sqlite").list()
        wait_until(lambda: worker_of(lab, run), 30)
        os.kill(worker_of(lab, run).pid, signal.SIGKILL)
        expect(page.locator("#run article.failed")).to_contain_text("stopped by the system", timeout=60_000)
        page.reload()  # the address holds the tab
        expect(page.locator("#run article.failed")).to_be_visible()
        page.locator("#resume").click()
        expect(page.locator("#run article.running")).to_be_visible(timeout=60_000)
        page.locator("#cancel").click()
        expect(page.locator("#run article.cancelled")).to_be_visible(timeout=60_000)
        assert not list(Path(lab.results).glob("[0-9a-f]*"))
