"""What the Run tab does when its controls are used: sweeps, stopping, notes, deleting, and the history."""

import gradio as gr
import pytest

from leaderboard.lab import Lab
from leaderboard.ui import run_history, sweep_form
from leaderboard.ui.run_form import SINGLE, SWEEP
from leaderboard.ui.run_tab import RunTab, View
from quant_engine.runs.queue import Queue
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

RTN, FP16 = (
    RunSpec(weights=WeightSpec(model="demo-llm", setting=setting), tasks=("perplexity",))
    for setting in (QuantSetting(method="rtn", w_bits=4, group_size=64), QuantSetting())
)


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    monkeypatch.setenv("LOWBIT_RESULTS", str(tmp_path / "results"))
    return Lab(queue=Queue(tmp_path / "queue.sqlite"))


@pytest.fixture
def tab(lab) -> RunTab:
    with gr.Blocks():
        return RunTab(lab)


def view(run_id=None, mode=SINGLE, **changes) -> View:
    usual = {"asking": None, "sweep_id": None, "task": None, "search": "", "state": run_history.ANY, "rows": 12}
    return View(run_id=run_id, mode=mode, **usual | changes)


def values(tab: RunTab, **changes) -> list:
    """The values of the form's controls, those named by a label changed."""
    controls = [*tab.form.controls, *tab.form.sweep.controls]
    labels = [control.label for control in controls]
    assert set(changes) <= set(labels)
    return [changes.get(control.label, control.value) for control in controls]


def test_the_form_of_a_sweep_says_how_many_runs_what_they_take_and_what_is_left_out(tab):
    form = tab.form
    count = len(form.options)
    chosen = values(tab, Models=["demo-llm"], Methods=["rtn", "db_llm"], **{"Weight bits": ["2", "3"]})
    # both the setting and the sweep have weight bits: that of one setting is not read
    without_options = [*chosen[: len(form.controls) - count], *chosen[len(form.controls) :]]
    words, button = form._preview(SWEEP, *without_options)
    assert words.startswith("<p>3 runs. ")
    assert "1 setting left out" in words
    assert "DB-LLM is defined for 2 weight bits, not 3." in words
    assert button["value"] == "Start 3 runs"
    words, button = form._preview(SWEEP, *without_options[:-4], [], ["rtn"], ["2"], ["64"])
    assert "at least one model" in words
    assert button["value"] == "Start sweep"


def test_a_sweep_is_queued_as_one_and_shown(tab, lab):
    chosen = values(tab, Models=["demo-llm"], Methods=["rtn", "fp16"], **{"Weight bits": ["4"]})
    answer = tab._start(None, *view(mode=SWEEP), *chosen)
    (sweep,) = lab.queue.sweeps()
    assert [lab.queue.get(run).spec.weights.setting.label for run in sweep.runs] == ["FP16", "RTN W4A16 g64"]
    assert answer[:2] == ["", sweep.runs[0]]


def test_a_hosted_page_does_nothing_to_runs_without_the_owners_token(tab, lab):
    lab.hosted, lab.owner_token = True, "secret"
    run_id = lab.queue.submit(RTN)
    seen = view(run_id)
    for answer in (
        tab._start("", *view(mode=SWEEP), *values(tab)),
        tab._act(lab.queue.pause, "", *seen),
        tab._act_on_sweep(lab.queue.cancel, tab.grid.runs, "", *seen),
        tab._annotate("mine", "", *seen),
        tab._prioritize("high", "", *seen),
        tab._delete("", *view(run_id, asking=run_id)),
    ):
        assert "needs the owner" in answer[0]
    run = lab.queue.get(run_id)
    assert (run.state, run.note, run.priority) == ("queued", "", 0)
    assert not lab.queue.sweeps()
    tab._act(lab.queue.pause, "secret", *seen)
    assert lab.queue.get(run_id).state == "paused"


def test_a_sweep_goes_on_with_what_was_paused_and_then_with_what_failed(tab, lab):
    sweep = lab.queue.submit_sweep([RTN, FP16])
    rtn, fp16 = sweep.runs
    lab.queue.claim(rtn, "me")
    lab.queue.fail(rtn, "me", "Memory ran out.")
    lab.queue.pause(fp16)

    def resume() -> str:
        button = dict(zip(tab.outputs, tab._look(*view(mode=SWEEP)), strict=True))[tab.grid.resume]
        tab._act_on_sweep(lab.queue.resume, tab.grid.runs_to_resume, None, *view(mode=SWEEP))
        return button["value"]

    assert resume() == "Resume all"
    assert [lab.queue.get(run).state for run in sweep.runs] == ["failed", "queued"]
    assert resume() == "Retry failed"
    assert [lab.queue.get(run).state for run in sweep.runs] == ["queued", "queued"]


def test_deleting_takes_a_second_press_for_the_same_run(tab, lab):
    run_id, other = lab.queue.submit(RTN), lab.queue.submit(FP16)
    lab.queue.cancel(run_id)
    tab._delete(None, *view(run_id))
    tab._delete(None, *view(run_id, asking=other))
    assert lab.queue.get(run_id)
    asked = dict(zip(tab.outputs, tab._ask(*view(run_id)), strict=True))
    assert asked[tab.actions.asking] == run_id
    assert asked[tab.actions.question]["visible"]
    answer = tab._delete(None, *view(run_id, asking=run_id))
    assert answer[1] == other
    assert set(lab.queue.several([run_id, other])) == {other}


def test_a_waiting_run_is_not_deleted(tab, lab):
    run_id = lab.queue.submit(RTN)
    assert "cancel it before" in tab._delete(None, *view(run_id, asking=run_id))[0]


@pytest.mark.parametrize(
    ("state", "buttons"),
    [
        ("queued", {"pause", "cancel", "priority"}),
        ("running", {"pause", "cancel"}),
        ("paused", {"Resume", "cancel", "delete", "priority"}),
        ("failed", {"Retry", "delete"}),
        ("cancelled", {"Retry", "delete"}),
        ("done", {"see", "delete"}),
    ],
)
def test_the_buttons_fit_the_state(tab, lab, state, buttons):
    run = lab.queue.get(lab.queue.submit(RTN)).model_copy(update={"state": state})
    shown = dict(zip(tab.actions.outputs, tab.actions.show(run, None, None), strict=True))
    actions = tab.actions
    names = {name: getattr(actions, name) for name in ("pause", "resume", "cancel", "see", "delete", "priority")}
    visible = {shown[control].get("value") if name == "resume" else name
               for name, control in names.items() if shown[control]["visible"]}  # fmt: skip
    assert visible == buttons


def test_what_is_being_written_stays_while_the_run_is_shown(tab, lab):
    run_id = lab.queue.submit(RTN)
    lab.queue.annotate(run_id, "an older note")
    note = tab.outputs.index(tab.actions.note)
    assert tab._look(*view(None))[note]["value"] == "an older note"
    assert "value" not in tab._look(*view(run_id))[note]


def test_a_tick_writes_only_what_has_changed(tab, lab):
    run_id = lab.queue.submit(RTN)
    *_, last = tab._look(*view(run_id))
    assert all(isinstance(value, dict) and "value" not in value for value in tab._tick(last, *view(run_id)))
    lab.queue.pause(run_id)
    changed = dict(zip(tab.outputs, tab._tick(last, *view(run_id)), strict=True))
    assert "paused" in changed[tab.history.list]
    assert changed[tab.run_id] == gr.skip()
    assert changed[tab.grid.grid] == gr.skip()


def test_the_history_finds_runs_by_words_and_state(lab):
    rtn, fp16 = lab.queue.submit(RTN), lab.queue.submit(FP16)
    lab.queue.annotate(rtn, "before <the> change")
    lab.queue.cancel(fp16)
    with gr.Blocks():
        history = run_history.RunHistory(lab.queue)

    def found(search="", state=run_history.ANY):
        listed = history.show(search, state, 12, None)[0]
        return {run for run in (rtn, fp16) if run in listed}

    assert found() == {rtn, fp16}
    assert found("smollm2 RTN g64") == {rtn}
    assert found("CHANGE") == {rtn}
    assert found("", "cancelled") == {fp16}
    assert found("fp16", "waiting") == set()
    assert found(fp16) == {fp16}
    assert "No run fits" in history.show("nothing", run_history.ANY, 12, None)[0]
    assert "before &lt;the&gt; change" in history.show("", run_history.ANY, 12, None)[0]


def test_the_history_shows_more_when_asked(lab):
    for limit in range(1, 20):
        lab.queue.submit(RTN.model_copy(update={"limit": limit}))
    with gr.Blocks():
        history = run_history.RunHistory(lab.queue)
    listed, more = history.show("", run_history.ANY, 12, None)
    assert (listed.count("<li>"), more["visible"]) == (12, True)
    listed, more = history.show("rtn", run_history.ANY, 62, None)
    assert (listed.count("<li>"), more["visible"]) == (19, False)


def test_an_empty_history_says_so():
    assert "listed here" in run_history.list_html([], None)
    assert [run_history.ago(seconds) for seconds in (1, 300, 7200, 200000)] == [
        "just now", "5 min ago", "2 h ago", "2 d ago",
    ]  # fmt: skip


def test_reasons_that_differ_in_a_number_are_one_sentence():
    reasons = ["X is for 2 bits, not 3.", "X is for 2 bits, not 3.", "X is for 2 bits, not 4.", "Y is no method."]
    assert sweep_form.merged(reasons) == ["X is for 2 bits, not 3 or 4.", "Y is no method."]
    many = sweep_form.left_out_html([f"{letter} is <not> defined." for letter in "abc"])
    assert "3 settings left out" in many
    assert '<details class="left-out"><summary>' in many
    assert "a is &lt;not&gt; defined." in many


def test_a_sweep_offers_what_its_methods_and_models_have_in_use():
    assert sweep_form.widths_of(["db_llm", "billm"]) == ["1.1", "2"]
    assert [part["visible"] for part in sweep_form.fit_methods(["fp16"], ["4"])] == [False, False]
    bits, groups = sweep_form.fit_methods(["db_llm"], ["2", "4"])
    assert (bits["value"], groups["visible"]) == (["2"], True)
    assert sweep_form.narrowest(["demo", "demo-llm"]) == "demo-llm"
    assert sweep_form.narrowest([])
