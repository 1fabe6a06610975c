"""What a finished run's numbers say: intervals, the paired difference to FP16, and where the study's numbers lie."""

import math
import threading
from collections.abc import Sequence

import pytest

from leaderboard import run_outcome
from leaderboard.run_outcome import Outcome, Outcomes, rounding_of, where_of
from leaderboard.store import Store
from leaderboard.ui import run_detail
from leaderboard.ui.outcome_table import outcome_html
from leaderboard.ui.run_detail import RunDetail
from quant_engine.evaluate import parse_result_name
from quant_engine.progress import Progress
from quant_engine.results import ItemOutput, Result
from quant_engine.runs import folder as run_folder
from quant_engine.runs.queue import QueuedRun
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

GPTQ = QuantSetting(method="gptq", w_bits=4, group_size=128)
FP16 = QuantSetting()
RIGHT, WRONG = 1.0, 0.0


def write(
    setting: QuantSetting,
    tasks: dict[str, Sequence[float]],
    *,
    model: str = "llama3-8b",
    limit: int | None = None,
    window: int = 2048,
    status: str | None = None,
    prompt: str = "p",
    data: str = "rows 1",
) -> RunSpec:
    """Writes a run whose items scored so, as the engine does: numbers and their parts come from the tasks."""
    spec = RunSpec(
        weights=WeightSpec(model=model, revision="r1", setting=setting), tasks=tuple(tasks), limit=limit, window=window
    )
    rows, items = [], {}
    for name, scores in tasks.items():
        task = parse_result_name(name)[0]
        items[name] = [
            ItemOutput(
                item=str(n), prompt=prompt, gold=["x"], prediction="x" if score else "y", score=score,
                choices=["x", "y"], log_probabilities=[-1.0, -2.0], measures=[score, score],
            )
            for n, score in enumerate(scores)
        ]  # fmt: skip
        outcome = task.conclude(items[name], data)
        numbers = [(name, outcome), *((part.name, part) for part in outcome.parts)]
        rows += [
            Result(
                run_id=spec.run_id, source="measured", model=model, model_revision="r1", track="llm_ptq",
                method=setting.method, w_bits=setting.w_bits, group_size=setting.group_size, task=number_name,
                metric=task.metric, value=number.value, standard_error=number.standard_error, items=number.items,
                status=status or number.status, data_revision=data,
            )
            for number_name, number in numbers
        ]  # fmt: skip
    run_folder.write(spec, {}, rows, [], items, "")
    return spec


def outcome(spec: RunSpec) -> Outcome:
    return run_outcome.outcome(Store().snapshot().frame, spec.run_id)


def losses(perplexity: float, count: int = 40, spread: float = 0.05) -> list[float]:
    return [math.log(perplexity) + spread * (-1) ** n for n in range(count)]


def text_of(html: str) -> str:
    return html.replace("<b>", "").replace("</b>", "").replace("<small>", " | ").replace("</small>", "")


def test_a_number_has_the_interval_of_its_items(results):
    number = outcome(write(GPTQ, {"wikitext2": losses(6.5)})).numbers[0]
    low, high = number.interval
    assert low < 6.5 < high
    assert (number.items, number.counted) == (40, "windows")
    html = text_of(outcome_html(outcome(write(GPTQ, {"wikitext2": losses(6.5)}))))
    assert f"6.50 | {low:.2f} to {high:.2f}, 40 windows" in html


@pytest.mark.parametrize(("ours", "where"), [(6.5, "inside"), (6.2, "above"), (6.9, "below"), (6.6, "inside")])
def test_the_studys_number_is_said_to_lie_inside_or_beyond_our_interval(results, ours, where):
    """The study prints 6.5 for LLaMA3-8B, GPTQ W4A16 g128, WikiText2."""
    study = outcome(write(GPTQ, {"wikitext2": losses(ours)})).numbers[0].study
    assert (study.value, study.where, study.caveat) == (6.5, where, "")
    html = text_of(outcome_html(outcome(write(GPTQ, {"wikitext2": losses(ours)}))))
    assert f"6.5 | {where} our interval" in html


@pytest.mark.parametrize(
    ("value", "interval", "where"),
    [
        (6.5, (6.54, 6.9), "inside"),  # 6.54 is printed as 6.5
        (6.5, (6.56, 6.9), "below"),
        (210.0, (195.0, 209.6), "inside"),
        (210.0, (195.0, 209.4), "above"),
        (2.7e6, (2.74e6, 3e6), "inside"),
        (2.7e6, (2.76e6, 3e6), "below"),
    ],
)
def test_a_printed_number_is_taken_as_rounded(value, interval, where):
    assert where_of(value, interval) == where
    assert rounding_of(6.5) == 0.05


def test_item_sets_of_another_size_are_said(results):
    study = outcome(write(GPTQ, {"wikitext2": losses(6.2, 8, 0.01)}, limit=8)).numbers[0].study
    assert (study.where, study.caveat) == ("above", "of the whole set, ours of 8 items")


def test_perplexities_on_other_windows_are_not_held_against_the_interval(results):
    found = outcome(write(GPTQ, {"wikitext2": losses(6.5)}, window=512))
    assert found.numbers[0].study.where is None
    html = text_of(outcome_html(found))
    assert "6.5 | on windows of 2,048 tokens, ours of 512" in html
    assert "mark study" not in html.split("legend")[0], "it is on another scale"


@pytest.mark.parametrize(
    ("model", "setting", "remark"),
    [
        ("demo-llm", GPTQ, "The study has no SmolLM2-135M."),
        (
            "llama3-8b",
            QuantSetting(method="gptq", w_bits=4, group_size=64),
            "The study has no GPTQ W4A16 g64 of LLaMA3-8B, but one with one group a row or groups of 128.",
        ),
        ("llama3-8b", QuantSetting(method="gptq", w_bits=7), "The study has no GPTQ W7A16 of LLaMA3-8B."),
    ],
)
def test_what_the_study_lacks_is_said(results, model, setting, remark):
    found = outcome(write(setting, {"wikitext2": losses(6.5)}, model=model))
    assert found.remarks[0] == remark
    assert found.numbers[0].study is None
    assert "The study<" not in outcome_html(found)


def test_tasks_that_the_study_lacks_are_named(results):
    found = outcome(write(GPTQ, {"wikitext2": losses(6.5), "perplexity": losses(9.0), "piqa": [RIGHT, WRONG]}))
    assert found.remarks[0] == "The study has no Built-in text of this setting."
    lone = outcome(write(GPTQ, {"perplexity": losses(9.0)}))
    assert lone.remarks[0] == "The study has this setting, but not this task."


def test_a_difference_to_fp16_is_paired_and_has_a_colour_where_it_is_more_than_chance(results):
    write(FP16, {"wikitext2": losses(6.1)})
    found = outcome(write(GPTQ, {"wikitext2": losses(6.5)}))
    pair = found.numbers[0].fp16
    assert (pair.a, pair.b) == (pytest.approx(6.1, rel=0.01), pytest.approx(6.5, rel=0.01))
    assert pair.separable
    assert pair.high - pair.low < found.numbers[0].interval[1] - found.numbers[0].interval[0], "pairs say more"
    html = outcome_html(found)
    assert 'class="lost"' in html
    assert "worse, more than chance" in html
    assert not any("No FP16" in remark for remark in found.remarks)


def test_what_may_be_chance_is_said_and_has_no_colour(results):
    write(FP16, {"piqa": [RIGHT] * 8 + [WRONG]}, limit=9)
    found = outcome(write(GPTQ, {"piqa": [WRONG, WRONG] + [RIGHT] * 6 + [WRONG]}, limit=9))
    assert not found.numbers[0].fp16.separable
    html = outcome_html(found)
    assert "may be chance" in html
    assert 'class="lost"' not in html
    assert "PIQA, by length" in html
    assert "0.0 to 0.0, no item differs" in html


def test_where_a_few_flips_leave_out_zero_and_are_chance_all_the_same_p_says_why(results):
    write(FP16, {"piqa": [RIGHT] * 8}, limit=8)
    html = outcome_html(outcome(write(GPTQ, {"piqa": [WRONG] * 4 + [RIGHT] * 4}, limit=8)))
    assert "may be chance (p 0.12)" in html


def test_a_gain_is_not_called_a_loss(results):
    write(FP16, {"piqa": [WRONG] * 20})
    html = outcome_html(outcome(write(GPTQ, {"piqa": [RIGHT] * 20})))
    assert 'class="gained"' in html
    assert "better, more than chance" in html


def test_an_fp16_run_with_more_items_serves_and_one_with_the_same_comes_first(results):
    write(FP16, {"wikitext2": losses(6.1, 40)})
    few = write(GPTQ, {"wikitext2": losses(6.5, 8)}, limit=8)
    assert outcome(few).numbers[0].fp16.units == 8
    same = write(FP16, {"wikitext2": losses(6.0, 8)}, limit=8)
    frame = Store().snapshot().frame
    row = frame[frame["run_id"] == few.run_id].iloc[0].to_dict()
    assert run_outcome.fp16_run(frame, row) == same.run_id


def test_windows_are_known_by_their_index_whatever_of_their_text_was_written(results):
    write(FP16, {"wikitext2": losses(6.1)}, prompt="a whole window of text")
    assert outcome(write(GPTQ, {"wikitext2": losses(6.5)}, prompt="a whole")).numbers[0].fp16 is not None


@pytest.mark.parametrize("other", [{"window": 512}, {"data": "rows 2"}, {"model": "llama3-70b"}])
def test_without_an_fp16_run_of_these_items_there_is_a_hint(results, other):
    write(FP16, {"wikitext2": losses(6.1)}, **other)
    found = outcome(write(GPTQ, {"wikitext2": losses(6.5)}))
    assert found.numbers[0].fp16 is None
    assert found.remarks[-1].startswith(
        "No FP16 run with the same items is on this machine. Start one, with method FP16"
    )
    assert "Difference to FP16" not in outcome_html(found)


def test_an_fp16_run_is_not_compared_with_itself(results):
    found = outcome(write(FP16, {"wikitext2": losses(6.1)}))
    assert found.numbers[0].fp16 is None
    assert found.numbers[0].study.where == "inside"
    assert found.remarks == ()


def test_a_distance_to_fp16_needs_no_fp16_run(results):
    found = outcome(write(GPTQ, {"divergence": [0.001, 0.002, 0.003]}, model="demo-llm"))
    assert not any("FP16" in remark for remark in found.remarks)
    assert "0.002" in outcome_html(found)


def test_a_collapsed_model_is_shown_as_collapsed(results):
    write(FP16, {"wikitext2": losses(6.1)})
    setting = QuantSetting(method="rtn", w_bits=2)
    found = outcome(write(setting, {"wikitext2": losses(2.7e6)}, status="collapsed"))
    assert (found.numbers[0].collapsed, found.numbers[0].interval) == (True, None)
    html = text_of(outcome_html(found))
    assert html.count('class="collapsed"') == 2
    assert "collapsed | 2.7×10⁶, 40 windows" in html
    assert ">FP16 here<" in html
    assert "6.10" in html
    assert "more than chance" not in html


def test_a_model_without_numbers_is_shown_as_collapsed(results):
    write(FP16, {"wikitext2": losses(6.1)})
    found = outcome(write(GPTQ, {"wikitext2": [math.nan] * 4}))
    html = text_of(outcome_html(found))
    assert "collapsed | 4 windows" in html
    assert "nan" not in html


def finished(spec: RunSpec) -> QueuedRun:
    return QueuedRun(
        run_id=spec.run_id, spec=spec, state="done", progress=Progress(stage="finished", fraction=1), error=None,
        attempts=1, created=0.0, started=1.0, ended=2.0, cancelling=False, owner=None,
    )  # fmt: skip


def test_the_page_shows_it_when_it_is_found_and_waits_for_no_comparison(results, monkeypatch):
    spec = write(GPTQ, {"wikitext2": losses(6.5)})
    go_on = threading.Event()
    real = run_outcome.outcome
    monkeypatch.setattr(run_outcome, "outcome", lambda *given: go_on.wait(30) and real(*given))
    detail = RunDetail(Store())
    assert "Comparing item by item" in detail.html(finished(spec))
    go_on.set()
    detail._outcomes._patience = 30
    assert "What the numbers say" in detail.html(finished(spec))


def test_an_fp16_run_that_is_finished_later_is_taken_up(results):
    spec = write(GPTQ, {"wikitext2": losses(6.5)})
    outcomes = Outcomes(Store(), patience=30)
    assert outcomes.of(spec.run_id).numbers[0].fp16 is None
    write(FP16, {"wikitext2": losses(6.1)})
    assert outcomes.of(spec.run_id).numbers[0].fp16 is not None


def test_a_run_whose_folder_is_gone_is_a_sentence(results):
    spec = RunSpec(weights=WeightSpec(model="demo-llm", setting=GPTQ), tasks=("perplexity",))
    with pytest.raises(UserError, match="is incomplete"):
        Outcomes(Store(), patience=30).of(spec.run_id)
    monitored = RunDetail(Store())
    monitored._outcomes._patience = 30
    assert "is incomplete" in monitored.html(finished(spec))


def test_what_goes_wrong_takes_the_page_down_not_with_it(results, monkeypatch):
    spec = write(GPTQ, {"wikitext2": losses(6.5)})

    def broken(*given):
        raise ZeroDivisionError

    monkeypatch.setattr(run_outcome, "outcome", broken)
    detail = run_detail.RunDetail(Store())
    detail._outcomes._patience = 30
    assert "could not be compared" in detail.html(finished(spec))
