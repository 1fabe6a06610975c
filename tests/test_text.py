"""Text from outside: what is replaced, what is refused, and that nothing on the way can fail on it."""

import os
import subprocess
import sys
from types import SimpleNamespace

import orjson
import pytest
from pydantic import ValidationError

from quant_engine import folders
from quant_engine.answers.messages import AnswerEvent, AskRequest, ToWorker
from quant_engine.progress import Progress
from quant_engine.runs import worker
from quant_engine.runs.queue import Queue
from quant_engine.spec import Calibration, QuantSetting, RunSpec, UserError, WeightSpec, clean_text, quoted, sentence

RTN = QuantSetting(method="rtn", w_bits=4)
NO_NAMES = ["a\x00b", "a\nb", "a\x1b[31mb", "a\x85b", "a\u2028b", "a\u202eb", "a\u2066b", "a\udcffb"]


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("What is\r\nthis?\rHere", "What is\nthis?\nHere"),
        ("tabs\tand\nlines", "tabs\tand\nlines"),
        ("a\x00b\x1bc\x7fd\x9be", "a\ufffdb\ufffdc\ufffdd\ufffde"),
        ("half \ud83d of one, and \U0001f600", "half \ufffd of one, and \U0001f600"),
        ("e\u0301 stays, as \u0627\u200f\u202b and \u200d do", "e\u0301 stays, as \u0627\u200f\u202b and \u200d do"),
    ],
)
def test_a_question_is_text_that_any_file_can_hold(typed, text):
    assert clean_text(typed) == text
    request = AskRequest(model="demo", question=typed, sides=(RTN,))
    assert request.question == text
    assert ToWorker.model_validate_json(ToWorker(ask=request).model_dump_json().encode()).ask.question == text


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda name: WeightSpec(model=name),
        lambda name: WeightSpec(model="demo", revision=name),
        lambda name: RunSpec(weights=WeightSpec(model="demo"), tasks=("perplexity", name)),
        lambda name: Calibration(source=name),
        lambda name: QuantSetting(method=name, w_bits=4),
        lambda name: QuantSetting(method="qlora", w_bits=4, options={"data": name}),
        lambda name: QuantSetting(method="qlora", w_bits=4, options={name: 1}),
    ],
)
def test_a_name_with_what_no_name_may_have_is_refused_in_a_sentence(make, name):
    with pytest.raises(ValidationError) as caught:
        make(name)
    words = sentence(caught.value)
    assert words == f"The name {name!r} has the character U+{ord(name[1]):04X}, which no name may have."
    orjson.dumps(words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2**63, 10**400])
def test_an_option_that_is_no_number_is_refused(value):
    with pytest.raises(ValidationError) as caught:
        QuantSetting(method="awq", w_bits=4, options={"search_samples": value})
    assert sentence(caught.value).startswith("Option search_samples must be a number of at most 64 bits, not ")


def test_a_sentence_quotes_no_more_than_a_line():
    assert quoted("x" * 10_000).endswith(" …")
    with pytest.raises(ValidationError) as caught:
        Calibration(samples="9" * 10_000)
    assert len(sentence(caught.value)) < 250


def test_what_an_error_or_a_progress_says_can_be_written_anywhere(tmp_path):
    error = UserError("The file b\udcff\n.png is damaged.")
    assert str(error) == "The file b\ufffd .png is damaged."
    queue = Queue(tmp_path / "queue.sqlite")
    run_id = queue.submit(RunSpec(weights=WeightSpec(model="demo"), tasks=("perplexity",)))
    queue.claim(run_id, "somebody:1")
    queue.report(run_id, "somebody:1", Progress(message="reading b\udcff"))
    queue.fail(run_id, "somebody:1", "The file b\udcff can't be read.")
    run = queue.get(run_id)
    assert (run.error, run.progress.message) == ("The file b\ufffd can't be read.", "reading b\ufffd")
    orjson.dumps(run.model_dump(mode="json"))
    event = AnswerEvent(request_id="1", side=0, kind="error", message="b\udcff")
    assert AnswerEvent.model_validate_json(event.model_dump_json()).message == "b\ufffd"


def test_a_run_that_fails_on_a_file_of_any_name_says_so_and_keeps_its_log(tmp_path, monkeypatch):
    def execute(spec, hooks):
        raise OSError(5, "Input/output error", os.fsdecode(b"/tmp/\xff.bin"))

    monkeypatch.setitem(sys.modules, "quant_engine.runs.execute", SimpleNamespace(execute=execute))
    queue = Queue(tmp_path / "queue.sqlite")
    run_id = queue.submit(RunSpec(weights=WeightSpec(model="demo"), tasks=("perplexity",)))
    assert worker.run_claimed(queue, run_id, lambda progress: None).state == "failed"
    assert r"/tmp/\udcff.bin" in queue.log_tail(run_id)


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-at-all/x"])
def test_what_no_path_can_be_is_refused_in_a_sentence(path):
    with pytest.raises(UserError, match=r"can't be read as a path: .*\.$"):
        folders.named(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--model", b"/tmp/\xff", "--tasks", "perplexity"], "has the character U+DCFF"),
        (["run", "--model", "demo-llm", "--tasks", b"perplexity:/tmp/\xff.txt"], "has the character U+DCFF"),
        (
            ["quantize", "--model", "~nobody-at-all/x", "--method", "rtn", "--bits", "4"],
            "can't be read as a path",
        ),
        (["ask", b" \t "], "The question is empty"),
        (["list", b"\xff"], "There is no list of"),
    ],
)
def test_arguments_of_any_bytes_end_in_a_sentence(arguments, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "quant_engine", *arguments],
        cwd=folders.PROJECT,
        env=os.environ | {"LOWBIT_HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "TERM": "dumb"},
        capture_output=True,
        timeout=120,
    )
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert words in text
    assert "Traceback" not in text
