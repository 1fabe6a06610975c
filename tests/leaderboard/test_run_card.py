from typing import get_args

import gradio as gr
import pytest
from pydantic import BaseModel

from leaderboard.ui import run_card
from leaderboard.ui.answer_pane import Side, pane
from leaderboard.ui.run_form import TASK_GROUPS, option_control, options_of, task_choices
from leaderboard.ui.run_tab import run_to_show
from quant_engine.answers.messages import AnswerEvent
from quant_engine.evaluate import TASKS
from quant_engine.methods import METHODS
from quant_engine.progress import Interim, Progress
from quant_engine.results import AnswerStats
from quant_engine.runs.queue import Queue, QueuedRun
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec


def run(**given) -> QueuedRun:
    spec = RunSpec(
        weights=WeightSpec(model="demo-llm", setting=QuantSetting(method="rtn", w_bits=4, group_size=64)),
        tasks=("perplexity",),
    )
    fields = {
        "run_id": spec.run_id,
        "spec": spec,
        "state": "running",
        "progress": Progress(),
        "error": None,
        "attempts": 1,
        "created": 0.0,
        "started": 10.0,
        "ended": None,
        "cancelling": False,
        "owner": None,
    }
    return QueuedRun(**{**fields, **given})


def test_a_running_run_names_block_linear_and_time_left():
    progress = Progress(stage="quantizing", fraction=0.4, block=12, blocks=30, linear="self_attn.q_proj", eta_s=65)
    html = run_card.card(run(progress=progress))
    assert "Quantizing · block 12 of 30 · self_attn.q_proj · about 1 min 05 s left in this step" in html
    assert 'aria-valuenow="40"' in html
    evaluating = Progress(stage="evaluating", task="perplexity", item=3, items=8)
    assert "Evaluating · Built-in text · item 3 of 8" in run_card.card(run(progress=evaluating))


def test_numbers_so_far_are_shown_with_their_intervals_while_a_run_measures():
    numbers = (
        Interim(title="Demo <AI2D>", unit="%", value=75.0, low=30.1, high=95.4, done=4, total=4),
        Interim(title="WikiText2", unit="PPL", value=12.3, low=11.9, high=12.8, done=8, total=32, counted="windows"),
    )
    progress = Progress(stage="evaluating", task="WikiText2", item=8, items=32, interims=numbers)
    html = run_card.card(run(progress=progress))
    assert "<dt>Demo &lt;AI2D&gt;</dt><dd>75%, 95% interval 30.1 to 95.4, <small>all 4 items</small>" in html
    assert "<dt>WikiText2</dt><dd>12.3 PPL, 95% interval 11.9 to 12.8, <small>after 8 of 32 windows</small>" in html
    assert "interims" not in run_card.card(run(progress=progress, state="failed", ended=12.0))
    assert "interims" not in run_card.card(run())


def test_a_run_says_the_windows_that_its_texts_are_read_in():
    assert "all items, windows of 2,048 tokens" in run_card.card(run())
    spec = run().spec.model_copy(update={"tasks": ("piqa",)})
    assert "windows" not in run_card.card(run(spec=spec))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state": "queued", "started": None}, "Waiting for its turn."),
        ({"state": "done", "ended": 100.0}, "Finished in 1 min 30 s."),
        ({"state": "failed", "ended": 12.0, "error": "Memory ran out."}, "Memory ran out."),
        ({"state": "cancelled", "started": None, "ended": 5.0}, "Cancelled before it started."),
        ({"state": "paused", "ended": 12.0}, "Paused after 2.0 s"),
        ({"state": "paused", "started": None, "ended": 5.0}, "until you resume it"),
        ({"cancelling": True}, "stopping"),
        ({"pausing": True}, "pausing"),
    ],
)
def test_every_state_is_said(given, said):
    assert said in run_card.card(run(**given))


def test_no_run_is_said():
    assert "No run yet" in run_card.card(None)


def test_errors_are_escaped():
    assert "<b>x" not in run_card.card(run(state="failed", error="<b>x")).replace("<b>RTN", "")


def test_the_run_looked_at_is_the_chosen_else_the_running_else_the_newest(tmp_path):
    queue = Queue(tmp_path / "queue.sqlite")
    newest, running = run(run_id="b" * 16, state="done"), run(run_id="a" * 16)
    assert run_to_show(queue, None, []) is None
    assert run_to_show(queue, None, [newest, running]) is running
    assert run_to_show(queue, "b" * 16, [newest, running]) is newest
    assert run_to_show(queue, "c" * 16, [newest]) is newest
    assert run_to_show(queue, None, [newest]) is newest


def test_options_are_those_of_the_chosen_method():
    names = {"rtn": ["symmetric"], "gptq": ["act_order", "groups"]}
    assert options_of("gptq", names, (True, False, "static")) == {"act_order": False, "groups": "static"}
    assert options_of("gptq", names, (True, False, None)) == {"act_order": False}
    assert options_of("qlora", {"qlora": ["data", "rank"]}, ("", 8)) == {"rank": 8}
    assert options_of("fp16", names, (True, False, 0.1)) == {}


def test_a_text_model_is_offered_no_picture_tasks():
    names = [name for group in TASK_GROUPS for _, name in task_choices("demo-llm", group)]
    assert names[0] == "perplexity"
    assert {"wikitext2", "piqa", "mmlu"} <= set(names)
    assert not any(TASKS[name].pictures for name in names)


def test_every_task_is_in_one_group():
    names = [name for group in TASK_GROUPS for _, name in task_choices("demo", group)]
    assert sorted(names) == sorted(TASKS)


RTN = QuantSetting(method="rtn", w_bits=4, group_size=64)
STATS = {
    "ttft_s": 0.42,
    "tokens_per_s": 12.34,
    "tokens": 5,
    "prompt_tokens": 9,
    "weight_bytes": 94_700_000,
    "stored_bits": 4.31,
    "dtype": "float32",
}


def event(kind: str, **fields) -> AnswerEvent:
    return AnswerEvent(request_id="r", side=0, kind=kind, **fields)


def test_a_side_grows_with_its_events_and_keeps_its_text_when_stopped():
    side = Side(RTN).after(event("status", message="Loading RTN"))
    assert "Loading RTN" in pane(side)
    side = side.after(event("token", text="A <red> circle", stats=AnswerStats(**STATS)))
    html = pane(side)
    assert "A &lt;red&gt; circle" in html
    for shown in ("0.42 s", "12.3", "95 MB", "<dd>4.31</dd>", "computed in float32"):
        assert shown in html
    stopped = pane(side.after(event("error", message="Stopped.")))
    assert "A &lt;red&gt; circle" in stopped
    assert "Stopped." in stopped
    assert "without a word" in pane(Side(QuantSetting()).after(event("done")))
    assert "Answered before" in pane(side.after(event("done", text="A circle", message="Answered before.")))


def test_the_unquantized_side_says_what_type_its_weights_have_in_memory():
    stats = AnswerStats(**STATS | {"stored_bits": 16.0, "dtype": "bfloat16"})
    html = pane(Side(QuantSetting()).after(event("token", text="A", stats=stats)))
    assert "<span>computed in bfloat16</span>" in html
    assert "bits stored" not in html


def test_a_side_says_when_its_prompt_was_read_in_another_type():
    stats = AnswerStats(**STATS | {"dtype": "float32", "prompt_dtype": "bfloat16"})
    html = pane(Side(QuantSetting()).after(event("token", text="A", stats=stats)))
    assert "<span>computed in float32, the prompt in bfloat16</span>" in html


@pytest.mark.parametrize("name", METHODS)
def test_every_option_has_a_control_of_its_type(name):
    for option, field in METHODS[name].Options.model_fields.items():
        control = option_control(option, field)
        assert control.value == field.default
        choices = [choice for choice, _ in control.choices] if isinstance(control, gr.Dropdown) else None
        kind = {bool: gr.Checkbox, int: gr.Number, float: gr.Number, str: gr.Textbox}.get(field.annotation, gr.Dropdown)
        assert type(control) is kind, option
        assert (field.annotation is int) == (getattr(control, "precision", None) == 0)
        assert choices is None or tuple(choices) == tuple(map(str, get_args(field.annotation)))


def test_an_option_of_a_type_without_a_control_is_refused():
    class Options(BaseModel):
        shape: tuple[int, int] = (1, 2)

    with pytest.raises(TypeError, match="option shape"):
        option_control("shape", Options.model_fields["shape"])
