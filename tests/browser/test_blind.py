"""The blind vote: two unnamed answers, a vote by keyboard, and its rate on the leaderboard."""

import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import expect
from serving import NO_MODELS, served
from test_access import look

pytestmark = pytest.mark.browser

SAYS_ITS_BITS = """
from leaderboard import requests
from leaderboard.lab import Lab
from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AnswerEvent
from quant_engine.results import AnswerStats

def ask(service, request):
    costs = {"ttft_s": 1, "tokens_per_s": 9.5, "tokens": 3, "prompt_tokens": 9, "weight_bytes": 149_000_000}
    stats = AnswerStats(**costs, stored_bits=4.3, dtype="float32")
    for side, setting in enumerate(request.sides):
        fields = {"request_id": request.request_id, "side": side, "text": f"A {setting.w_bits:g} bar"}
        yield AnswerEvent(kind="done", stats=stats, **fields)

AnswerService.ask, AnswerService.cancel = ask, lambda service, request_id: None
requests.available, Lab.warm_up = lambda card: True, lambda lab: None
"""


def test_a_blind_vote_is_stored_and_its_rate_stands_on_the_leaderboard(tmp_path, opened):
    with served(tmp_path, before=SAYS_ITS_BITS, **NO_MODELS) as lab:
        page = opened(lab, width=390, height=844)
        page.goto(f"{lab.url}/?tab=ask&ask.example=1&ask.question=Which+bar%3F")
        expect(page.locator("#picture img")).to_be_visible()
        page.get_by_role("button", name="Blind: can you tell").press("Enter")
        page.locator("#ask-blind").press("Enter")
        buttons = page.locator("#blind [data-vote]")
        expect(buttons).to_have_text(["A is quantized", "B is quantized", "I can't tell"])
        shown = page.locator("#blind").inner_text()
        assert {"A 3 bar", "A 16 bar"} <= {*shown.splitlines()}
        assert not any(name in page.locator("#blind").inner_html() for name in ("RTN", "FP16", "149", "stored"))
        assert look(page, "clipped") + look(page, "small") == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#blind article", has_text="A 3 bar").locator("[data-vote]").press("Enter")
        expect(page.locator("#blind .verdict")).to_contain_text("Right:")
        expect(page.locator("#blind")).to_contain_text("Told apart so far: 100% of 1 blind vote on this machine")
        expect(page.locator("#blind header span")).to_have_count(2)
        expect(page.locator("#blind dd", has_text="149 MB")).to_have_count(2)
        expect(buttons).to_have_count(0)
        with closing(sqlite3.connect(tmp_path / "votes.sqlite")) as votes:
            assert votes.execute("SELECT method, w_bits, verdict, words FROM votes").fetchall() == [
                ("rtn", 3, "right", None)
            ]
        page.goto(f"{lab.url}/?tab=ask&ask.example=1&ask.question=Which+bar%3F")
        page.get_by_role("button", name="Blind: can you tell").press("Enter")
        page.locator("#ask-blind").press("Enter")
        page.locator("#blind article", has_text="A 3 bar").locator("[data-vote]").press("Enter")
        expect(page.locator("#blind")).to_contain_text("Not counted: you have voted on this question before.")
        page.goto(f"{lab.url}/?model=Demo+LLaVA-NeXT")
        expect(page.locator("table.board td", has_text="100% of 1")).to_be_visible()
        assert "Traceback" not in lab.log.read_text()
