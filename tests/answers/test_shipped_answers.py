"""Answers of another machine: written by a command, found for the same question, and else not."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from answers.asking import FP16, RTN
from typer.testing import CliRunner

from leaderboard import room
from quant_engine import cli
from quant_engine.answers import shipped
from quant_engine.answers.compare import SideAnswer
from quant_engine.answers.examples import read_examples
from quant_engine.answers.messages import AskRequest, Turn
from quant_engine.results import AnswerStats

EXAMPLE = read_examples()[0]
LARGE = "llava-next-8b"
STATS = AnswerStats(
    ttft_s=0.5, tokens_per_s=9.0, tokens=3, prompt_tokens=2000, weight_bytes=1, stored_bits=16, dtype="bfloat16"
)
ANSWER = SideAnswer(setting=FP16, text="Fish.", tokens=(5, 6, 2), stats=STATS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the answers that the command wrote, in whose process no model is loaded."""
    folder = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "compare_answers", lambda service, request, **_: [ANSWER])
        plan = SimpleNamespace(spec=SimpleNamespace(revision="main"))
        patch.setattr(cli, "resolve_weights", lambda weights: plan)
        done = CliRunner().invoke(cli.app, ["answer-examples", LARGE, "--into", str(folder)])
    assert done.exit_code == 0, done.output
    assert str(folder / f"{LARGE}.json") in done.output
    return folder


def asked(**changes):
    about = {"model": LARGE, "image": EXAMPLE.picture, "question": EXAMPLE.question, "sides": (FP16, RTN)}
    return AskRequest(**about | {"max_new_tokens": 64} | changes)


def test_the_same_question_gets_the_answer_with_how_it_was_computed(folder):
    event = shipped.find(asked(), 0, folder)
    assert (event.kind, event.side) == ("done", 0)
    assert (event.text, event.tokens, event.stats) == ("Fish.", (5, 6, 2), STATS)
    assert event.message.startswith("Computed before, on ")
    assert event.message.endswith("python -m quant_engine answer-examples llava-next-8b")


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "What else?"},
        {"image": read_examples()[1].picture},
        {"image": Path("gone.png")},
        {"image": None},
        {"earlier": (Turn(question="Before?", answers=("a", "b")),)},
        {"prefix": (1,)},
        {"sides": (RTN,)},
        {"max_new_tokens": 1},
        {"model": "demo"},
        {"model": f"/folder/{LARGE}"},
    ],
)
def test_another_question_gets_none(folder, changes):
    assert shipped.find(asked(**changes), 0, folder) is None


def test_a_file_that_cannot_be_read_is_none(tmp_path, caplog):
    (tmp_path / f"{LARGE}.json").write_text("{")
    assert shipped.find(asked(), 0, tmp_path) is None
    assert f"{LARGE}.json: it can't be read" in caplog.text


def test_a_model_that_is_too_large_shows_it_and_nothing_is_held_against_it(folder, monkeypatch):
    find = shipped.find
    monkeypatch.setattr(room.shipped, "find", lambda request, side: find(request, side, folder))
    monkeypatch.setattr(room, "lack", lambda card, setting: "Too large." if setting == FP16 else "")
    assert [event.kind for event in room.settled(asked()).values()] == ["done"]
    assert [event.message for event in room.settled(asked(question="What else?")).values()] == ["Too large."]
    along = room.settled(asked(along=(1, 2)))
    assert {(side, event.kind) for side, event in along.items()} == {(0, "error"), (1, "error")}
    assert "FP16 was not computed here" in along[1].message
    monkeypatch.setattr(room, "lack", lambda card, setting: "")
    assert room.settled(asked()) == {}


def test_answers_of_a_model_folder_stand_where_they_were_asked_for(tmp_path):
    packed = shipped.pack(f"/somewhere/{LARGE}", "main", "a GPU", None, [(EXAMPLE, ANSWER)])
    assert shipped.write(packed, tmp_path) == tmp_path / f"{LARGE}.json"
    assert shipped.find(asked(model=f"/somewhere/{LARGE}"), 0, tmp_path).text == "Fish."
    assert shipped.find(asked(), 0, tmp_path) is None


def test_an_answer_that_was_cut_off_is_left_out():
    whole, cut = (ANSWER.model_copy(update={"tokens": (1,) * count}) for count in (511, 512))
    packed = shipped.pack(LARGE, "main", "a GPU", None, [(EXAMPLE, whole), (EXAMPLE, cut)])
    assert [len(answer.tokens) for answer in packed.answers] == [511]
