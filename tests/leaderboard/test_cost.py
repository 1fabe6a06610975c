"""What a run will take, by the runs that were made."""

import pandas as pd
import pytest

from leaderboard import cost as module
from leaderboard.cost import cost
from leaderboard.store import COLUMNS, Store
from quant_engine import folders
from quant_engine.models.catalog import MODELS
from quant_engine.models.shapes import shapes
from quant_engine.spec import Calibration, QuantSetting

LLM, LARGE = MODELS["demo-llm"], MODELS["llama3-8b"]
RTN, GPTQ = (QuantSetting(method=method, w_bits=4, group_size=64) for method in ("rtn", "gptq"))


def runs(*rows):
    """Runs of SmolLM2-135M, GPTQ, 100 s of which 40 for 8 windows, unless a row says otherwise."""
    usual = {"source": "measured", "model": LLM.title, "method": "GPTQ", "task": "perplexity", "items": 8.0}
    usual |= {"duration_s": 40.0, "run_s": 100.0, "calibration_tokens": 1024.0, "device": "cpu"}
    usual |= {"peak_memory_bytes": 1e9}
    frame = pd.DataFrame([usual | {"run_id": str(number)} | row for number, row in enumerate(rows)])
    return frame.reindex(columns=COLUMNS)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The runs 0 to 4 were made on this machine, which has no GPU."""
    monkeypatch.setattr(module, "made_here", lambda: set("01234"))
    monkeypatch.setattr(module, "default_device", lambda: "cpu")


def expect(results, card=LLM, setting=GPTQ, tasks=("perplexity",), limit=8, tokens=1024, **lengths):
    return cost(results, card, setting, tasks, limit, Calibration(samples=1, length=tokens), **lengths)


def test_quantizing_grows_with_tokens_and_measuring_with_items():
    results = runs({}, {"run_s": 120.0}, {"run_s": 500.0})
    assert expect(results).seconds == pytest.approx(80 + 40)
    assert expect(results, tokens=2048, limit=4).seconds == pytest.approx(160 + 20)
    assert expect(results).runs == 3
    assert expect(results).words() == (
        "About 2 min, by 3 runs of this model and method on this machine. About 1.6 GB of memory and 114 MB of weights."
    )


def test_from_three_runs_the_part_that_tokens_do_not_change_is_known():
    """20 s and 0.04 s a token."""
    tokens = (500.0, 1000.0, 2000.0)
    results = runs(*({"calibration_tokens": count, "run_s": 40 + 20 + 0.04 * count} for count in tokens))
    assert expect(results, tokens=8000).seconds == pytest.approx(40 + 20 + 320)
    assert expect(results.iloc[:2], tokens=2000).seconds == pytest.approx(40 + (2 * 60 + 4 * 40) / 2)


def test_memory_is_counted_and_where_it_can_not_be_the_most_that_such_runs_took():
    results = runs({}, {"peak_memory_bytes": 3e9}, {"peak_memory_bytes": 2e9})
    assert expect(results).memory < expect(results, window=4096).memory < 3e9
    trained = QuantSetting(method="db_llm", w_bits=2, group_size=64)
    assert expect(results.assign(method="DB-LLM", w_bits=2.0), setting=trained).memory == 3e9


def test_an_estimate_is_no_more_exact_than_it_is():
    assert [module.roughly(seconds) for seconds in (1, 28, 91, 478, 7000, 16000)] == [
        "5 s", "30 s", "2 min", "8 min", "1.9 h", "4.4 h",
    ]  # fmt: skip


def test_a_run_with_several_tasks_is_taken_apart():
    results = runs({}, {"run_id": "0", "task": "piqa", "duration_s": 20.0, "items": 10.0})
    assert expect(results, tasks=("perplexity", "piqa")).seconds == pytest.approx(40 + 40 + 16)


def test_without_runs_here_it_is_a_guess_by_others():
    elsewhere = runs({"run_id": "9"}, {"run_id": "8", "model": LARGE.title, "run_s": 1e6})
    guess = expect(elsewhere)
    assert (guess.seconds, guess.runs) == (pytest.approx(100), 0)
    assert "a guess" in guess.words()
    larger = expect(runs({}), card=LARGE)
    assert larger.seconds == pytest.approx(100 * shapes()[LARGE.title].quantized / shapes()[LLM.title].quantized)
    assert larger.runs == 0
    assert larger.memory > 5e9
    gpu = expect(runs({"device": "cuda"}))
    assert gpu.runs == 0


def test_what_is_not_known_is_not_made_up():
    results = runs({})
    unknown = expect(results, setting=RTN)
    assert unknown.seconds is None
    assert "not known" in unknown.words()
    assert expect(results, tasks=("perplexity", "piqa")).untimed == ("piqa",)
    assert expect(results.iloc[:0]).seconds is None
    assert expect(results, limit=None).seconds == pytest.approx(100)


def test_what_ships_gives_a_guess_for_every_method_that_was_measured():
    frame = Store(folders.ASSETS / "runs").snapshot().frame
    for method, bits in (("rtn", 4), ("gptq", 3), ("awq", 4), ("quip", 2), ("billm", 1.1)):
        setting = QuantSetting(method=method, w_bits=bits)
        assert 1 < expect(frame, setting=setting, tasks=["wikitext2"], tokens=16384).seconds < 5000


def sweep(results, methods=("gptq", "rtn"), cards=(LLM,), tasks=("perplexity",)):
    settings = [QuantSetting(method=method, w_bits=bits, group_size=64) for method in methods for bits in (2, 4)]
    return module.sweep_cost(results, cards, settings, tasks, 8, Calibration(samples=1, length=1024))


def test_a_sweep_takes_the_sum_of_its_runs_and_the_memory_of_the_largest():
    results = runs({}, {"method": "RTN", "run_s": 50.0, "peak_memory_bytes": 2e9, "calibration_tokens": 0.0})
    expected = sweep(results)
    assert expected.seconds == pytest.approx(2 * 100 + 2 * 50)
    assert expected.memory == expect(results).memory
    assert expected.words(4) == "About 5 min of work in all. The largest takes about 1.6 GB of memory."


def test_a_sweep_says_what_it_does_not_count():
    partly = sweep(runs({}), tasks=("perplexity", "piqa"))
    assert (partly.unknown, partly.untimed) == (2, ("piqa",))
    assert "Not counted: 2 runs of methods not timed yet. Not counted: piqa." in partly.words(4)
    assert "partly a guess" in sweep(runs({}), methods=("gptq",), cards=(LLM, LARGE)).words(4)
    assert "not known" in sweep(runs({}), methods=("rtn",)).words(2)
