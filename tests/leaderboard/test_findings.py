"""Claims of the study are judged by stated rules on numbers of the store, and every sentence is written from them."""

import math
import re

import pytest

from leaderboard.analysis import arrange
from leaderboard.evidence import Amount, NotMeasured, Setting, Side, every
from leaderboard.findings import CLAIMS, OURS, STUDY, count, findings, markdown
from leaderboard.store import Store
from leaderboard.ui.findings_tab import findings_html
from quant_engine import folders


@pytest.fixture(autouse=True)
def shipped(monkeypatch):
    monkeypatch.setenv("LOWBIT_SHIPPED", str(folders.ASSETS / "runs"))


@pytest.fixture
def board(shipped):
    return arrange(Store().snapshot().frame)


def amount(low, high):
    return Amount("a setting", "times", (low + high) / 2, low, high)


def test_an_interval_that_holds_the_limit_tells_nothing():
    assert [amount(*ends).above(1.5) for ends in ((1, 1.4), (1, 2), (1.6, 2), (1.5, 1.5), (1.5, 2))] == [
        False, None, True, False, None
    ]  # fmt: skip
    assert [amount(*ends).below(1.5) for ends in ((1, 1.4), (1, 2), (1.6, 2), (1.5, 1.5), (1, 1.5))] == [
        True, None, False, False, None
    ]  # fmt: skip
    assert amount(math.inf, math.inf).above(10)


def test_a_rule_on_several_numbers_fails_with_one_of_them_and_is_open_with_one_that_tells_nothing():
    assert [every(answers) for answers in ([True, True], [True, None], [None, False], [])] == [True, None, False, True]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_the_studys_own_numbers_keep_to_every_rule(board, claim):
    amounts, holds = claim.judge(Side(board, "paper", *STUDY))
    assert holds is True
    assert all(amount.low == amount.value == amount.high for amount in amounts)


def test_the_studys_numbers_are_those_that_it_prints(board):
    study = Side(board, "paper", *STUDY)
    assert study.accuracy(Setting("GPTQ", 4, grouped=True)).value == pytest.approx(67.3 - 68.6)
    assert study.perplexity(Setting("SmoothQuant", 4, 4)).value == pytest.approx(4300 / 6.1)
    assert study.language_after_pictures().value == pytest.approx(9.5 / 6.1)
    with pytest.raises(NotMeasured, match="LLaMA3-8B GPTQ W5"):
        study.accuracy(Setting("GPTQ", 5, grouped=True))


def test_our_verdicts_follow_from_their_rules(board):
    ours = Side(board, "measured", *OURS)
    for found in findings(board):
        if found.verdict == "not measured yet":
            with pytest.raises(NotMeasured):
                found.claim.judge(ours)
            assert found.ours == []
            continue
        assert found.verdict == {True: "agrees", False: "disagrees", None: "can't tell"}[found.claim.judge(ours)[1]]
        assert all(amount.low <= amount.value <= amount.high for amount in found.ours)


def test_a_changed_number_changes_its_sentence_and_verdict(board):
    (before,) = (found for found in findings(board) if found.claim.key == "w4a4")
    results = Store().snapshot().frame.copy()
    printed = (results["source"] == "paper") & (results["method"] == "SmoothQuant") & (results["w_bits"] == 4)
    results.loc[printed & (results["task"] == "wikitext2") & (results["model"] == STUDY[0]), "value"] = 61.0
    measured = (results["source"] == "measured") & (results["method"] == "SmoothQuant") & (results["w_bits"] == 4)
    results.loc[measured & (results["task"] == "wikitext2"), "value"] /= 1000
    (after,) = (found for found in findings(arrange(results)) if found.claim.key == "w4a4")
    assert "10×" in after.sentence
    assert (before.verdict, after.verdict) == ("agrees", "disagrees")
    assert before.sentence != after.sentence


def test_the_page_shows_each_claim_with_its_rule_and_the_rows_behind_it(board):
    found = findings(board)
    shown = findings_html(found)
    assert len(re.findall('class="finding"', shown)) == len(CLAIMS)
    for each in found:
        assert each.claim.claim in shown
        assert ("?" + each.link.replace("&", "&amp;") in shown) == bool(each.ours)


def test_the_readme_has_the_findings_of_the_store(board):
    found = findings(board)
    readme = (folders.PROJECT / "README.md").read_text(encoding="utf-8")
    assert count(found) in readme, "put what `python -m leaderboard.findings` prints into the README"
    assert markdown(found) in readme
