"""The answering service from the page's side: several visitors, visitors who leave, and what can't be answered."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from answers.asking import (
    AWQ,
    FP16,
    GPTQ,
    OTHER,
    REFUSED,
    RTN,
    SLOW,
    STAND_IN,
    ended,
    last,
    request,
    until,
    until_message,
    wait_until,
)
from pydantic import ValidationError

from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AnswerEvent, Turn
from quant_engine.spec import sentence


def test_both_sides_stream_at_the_same_time_and_end_with_their_figures(shared):
    list(shared.ask(request(sides=(FP16, RTN), max_new_tokens=1)))  # both models are loaded
    events = list(shared.ask(request(sides=(FP16, RTN), max_new_tokens=12)))
    order = [event.side for event in events if event.kind == "token"]
    assert order == [0, 1] * 11
    for side, end in last(events).items():
        texts = [event.text for event in events if event.side == side and event.kind == "token"]
        assert end.kind == "done"
        assert end.text.startswith(texts[-1])
        assert len(texts[-1]) > len(texts[0])
        assert end.stats.tokens == 12
        assert end.stats.tokens_per_s > 0 < end.stats.ttft_s
        assert end.stats.weight_bytes > 1000
    assert last(events)[0].text == last(events)[1].text


def test_a_picture_is_looked_at(shared, tmp_path):
    from PIL import Image

    def tokens_read(image):
        return last(shared.ask(request("pictures", image=image, max_new_tokens=2)))[0].stats.prompt_tokens

    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    assert tokens_read(tmp_path / "red.png") > tokens_read(None)


@pytest.mark.parametrize(
    ("model", "sides", "image", "said"),
    [
        ("text", (FP16,), "notes.txt", "'notes.txt' is not a picture: give a PNG"),
        ("text", (FP16,), "missing.png", "There is no picture 'missing.png'"),
        ("text", (REFUSED,), None, "Method refused has no 4 bits: choose rtn."),
        ("bug", (FP16,), None, "The answer failed inside the engine (ZeroDivisionError): the log has the details."),
        ("memory", (FP16,), None, "Memory ran out: choose a smaller model"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(shared, tmp_path, model, sides, image, said):
    (tmp_path / "notes.txt").write_text("no picture")
    end = last(shared.ask(request(model, sides, image=image and tmp_path / image)))[0]
    assert end.kind == "error"
    assert said in end.message


def test_a_side_that_cannot_be_answered_leaves_the_others_alone(shared):
    ends = last(shared.ask(request(sides=(REFUSED, FP16), max_new_tokens=3)))
    assert (ends[0].kind, ends[1].kind) == ("error", "done")


def test_loading_tells_what_it_does(shared):
    messages = [event.message for event in shared.ask(request("load=0.2", max_new_tokens=1))]
    assert "Loading FP16" in messages
    assert "Loading block 7 of 30" in messages


def test_fp16_answers_while_the_other_side_is_quantized(shared, tmp_path):
    events = []
    for event in shared.ask(request(f"quantize-by={tmp_path}", (FP16, RTN), max_new_tokens=4)):
        events.append(event)
        if (event.side, event.kind) == (0, "done"):
            (tmp_path / "rtn").touch()
    assert {side: end.kind for side, end in last(events).items()} == {0: "done", 1: "done"}
    assert [event.side for event in events if event.kind in ("token", "done")] == [0, 0, 0, 0, 1, 1, 1, 1]
    messages = [event.message for event in events if event.side == 1]
    assert "Quantizing block 7 of 30" in messages
    assert messages.index("RTN W4A16 g32 is ready") < messages.index("Reading")


def test_what_one_visitor_has_quantized_keeps_no_other_waiting_and_stops_when_the_visitor_leaves(shared, tmp_path):
    waiting = shared.ask(request(f"quantize-by={tmp_path}", (RTN,)))
    until_message(waiting, "Quantizing block 7 of 30")
    events = list(shared.ask(request(max_new_tokens=2)))
    assert last(events)[0].kind == "done"
    assert not any("line" in event.message for event in events)
    assert not ended(tmp_path, "rtn")
    waiting.close()
    wait_until(lambda: ended(tmp_path, "rtn"))


def test_rounding_does_not_wait_for_methods_that_take_long(shared, tmp_path):
    model = f"quantize-by={tmp_path}"
    slow, next_slow = shared.ask(request(model, (GPTQ,))), shared.ask(request(model, (AWQ,), max_new_tokens=1))
    until_message(slow, "block 7")
    until_message(next_slow, "In line: 1 other setting is quantized first")
    (tmp_path / "rtn").touch()
    assert last(shared.ask(request(model, (RTN,), max_new_tokens=1)))[0].kind == "done"
    slow.close()
    (tmp_path / "awq").touch()
    assert last(next_slow)[0].kind == "done"


def test_settings_in_line_are_quantized_by_one_process(shared, tmp_path):
    visitors = [shared.ask(request(f"quantize-by={tmp_path}", (side,), max_new_tokens=1)) for side in (GPTQ, AWQ)]
    until_message(visitors[0], "block 7")
    until_message(visitors[1], "In line")
    for method in ("gptq", "awq"):
        (tmp_path / method).touch()
    assert [last(events)[0].kind for events in visitors] == ["done", "done"]
    assert len({file.suffix for file in tmp_path.glob("*.*")}) == 1


def test_what_two_visitors_wait_for_is_quantized_once_and_goes_on_when_one_of_them_leaves(shared, tmp_path):
    visitors = [shared.ask(request(f"quantize-by={tmp_path}", (RTN,), max_new_tokens=1)) for _ in range(2)]
    for events in visitors:
        until_message(events, "Quantizing block 7 of 30")
    visitors[0].close()
    assert last(shared.ask(request(max_new_tokens=1)))[0].kind == "done"
    assert not ended(tmp_path, "rtn")
    (tmp_path / "rtn").touch()
    assert last(visitors[1])[0].kind == "done"
    assert len([*tmp_path.glob("rtn.*")]) == 1


@pytest.mark.parametrize(("how", "said"), [("fail", "The disk is full"), ("die", "memory ran out; choose a smaller")])
def test_weights_that_cannot_be_quantized_are_one_sentence_and_the_other_side_is_answered(shared, how, said):
    ends = last(shared.ask(request(f"quantize={how}", (FP16, RTN), max_new_tokens=3)))
    assert (ends[0].kind, ends[1].kind) == ("done", "error")
    assert said in ends[1].message


def test_a_stop_while_a_side_is_quantized_ends_both_and_quantizing_begins_anew_for_the_next(shared, tmp_path):
    asked = request(f"quantize-by={tmp_path}", (SLOW, RTN), max_new_tokens=400)
    (tmp_path / "slow").touch()
    events = shared.ask(asked)
    until(events, "token")
    shared.cancel(asked.request_id)
    ends = last(events)
    assert {end.message for end in ends.values()} == {"Stopped."}
    assert ends[0].text
    (tmp_path / "rtn").touch()
    assert last(shared.ask(request(asked.model, (RTN,), max_new_tokens=1)))[0].kind == "done"


def test_the_same_question_to_the_same_setting_is_answered_at_once_and_says_so(shared, tmp_path):
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "other.png")
    asked = {"question": "Which colour?", "image": tmp_path / "red.png", "max_new_tokens": 3}
    first = last(shared.ask(request("pictures", **asked)))[0]
    assert first.message == ""

    again = list(shared.ask(request("pictures", (FP16, RTN), **asked)))
    assert [(event.kind, event.text, event.stats) for event in again if event.side == 0] == [
        ("done", first.text, first.stats)
    ]
    assert "Answered before" in again[0].message
    assert last(again)[1].message == ""
    for change in ({"question": "Which shape?"}, {"image": tmp_path / "other.png"}, {"max_new_tokens": 2}):
        assert last(shared.ask(request("pictures", **asked | change)))[0].message == ""
    (tmp_path / "other.png").replace(tmp_path / "moved.png")
    assert (
        "Answered before" in last(shared.ask(request("pictures", **asked | {"image": tmp_path / "red.png"})))[0].message
    )


def test_each_side_goes_on_from_its_own_answers(shared):
    turn = Turn(question="What?", answers=("A cat.", "A dog."))
    asked = {"question": "Where?", "max_new_tokens": 6}
    ends = last(shared.ask(request(sides=(FP16, RTN), earlier=(turn,), **asked)))
    assert ends[0].text != ends[1].text  # both stand for the same weights
    swapped = turn.model_copy(update={"answers": turn.answers[::-1]})
    again = last(shared.ask(request(sides=(FP16, RTN), earlier=(swapped,), **asked)))
    assert (again[0].text, again[1].text) == (ends[1].text, ends[0].text)
    assert last(shared.ask(request(**asked)))[0].text not in (ends[0].text, ends[1].text)


def test_an_answer_is_held_against_each_quantized_model_and_each_goes_on_from_its_tokens(shared):
    asked = {"question": "Which way?", "max_new_tokens": 8}
    answer = last(shared.ask(request(**asked)))[0]
    assert len(answer.tokens) == 8
    assert last(shared.ask(request(**asked)))[0].tokens == answer.tokens  # answered before
    ends = last(shared.ask(request(sides=(FP16, RTN, OTHER), along=answer.tokens, **asked)))
    assert [end.kind for end in ends.values()] == ["done"] * 3
    assert [len(end.shifts) for end in ends.values()] == [8] * 3
    assert all(shift.agrees for shift in (*ends[0].shifts, *ends[1].shifts))
    assert "".join(shift.text for shift in ends[2].shifts) == answer.text
    fork = [shift.agrees for shift in ends[2].shifts].index(False)
    own = last(shared.ask(request(sides=(OTHER,), **asked)))[0]
    assert own.tokens[:fork] == answer.tokens[:fork]
    assert own.tokens[fork] != answer.tokens[fork]

    onward = last(shared.ask(request(sides=(OTHER,), prefix=answer.tokens[: fork + 1], **asked)))[0]
    assert onward.tokens[: fork + 1] == answer.tokens[: fork + 1]
    assert onward.text.startswith(ends[2].shifts[0].text)
    assert onward.stats.tokens == 8


def test_without_fp16_no_side_can_be_held_against_it(shared):
    ends = last(shared.ask(request("bug", sides=(FP16, RTN), along=(1, 2))))
    assert [end.kind for end in ends.values()] == ["error", "error"]
    assert "failed inside the engine" in ends[1].message


def test_a_stopped_answer_is_computed_anew(shared):
    asked = request(sides=(SLOW,), max_new_tokens=20)
    events = shared.ask(asked)
    until(events, "token")
    events.close()
    end = last(shared.ask(request(sides=(SLOW,), max_new_tokens=20, question=asked.question)))[0]
    assert (end.kind, end.message, end.stats.tokens) == ("done", "", 20)


def visit_at_once(service, requests):
    """The events of each request, all asked at the same time, in the order in which they came."""
    events, arrived = [[] for _ in requests], []

    def visit(index):
        for event in service.ask(requests[index]):
            events[index].append(event)
            arrived.append((index, event.kind))

    visitors = [threading.Thread(target=visit, args=(index,)) for index in range(len(requests))]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(60)
    return events, arrived


def test_visitors_who_ask_at_once_read_their_own_answers_at_the_same_time(shared):
    requests = [request(sides=(SLOW,), max_new_tokens=8, question=name) for name in ("Anna?", "Ben?", "Cleo?")]
    events, arrived = visit_at_once(shared, requests)
    first_done = next(i for i, (_, kind) in enumerate(arrived) if kind == "done")
    assert {index for index, kind in arrived[:first_done] if kind == "token"} == {0, 1, 2}
    for asked, seen in zip(requests, events, strict=True):
        alone = asked.model_copy(update={"sides": (FP16,), "request_id": asked.question})
        assert last(seen)[0].text == last(shared.ask(alone))[0].text


def test_twenty_visitors_at_once_each_get_an_answer_and_those_in_line_know_their_place(shared):
    events, _ = visit_at_once(shared, [request(sides=(SLOW,), max_new_tokens=4) for _ in range(20)])
    assert [last(seen)[0].kind for seen in events] == ["done"] * 20
    messages = {event.message for seen in events for event in seen}
    assert {"Next in line", "In line: 1 question comes first", "In line: 3 questions come first"} <= messages


def test_a_visitor_in_line_begins_as_soon_as_another_leaves(shared):
    open_answers = [shared.ask(request(sides=(SLOW,), max_new_tokens=400)) for _ in range(16)]
    for events in open_answers:
        until(events, "token")
    late = shared.ask(request(sides=(SLOW,), max_new_tokens=2))
    until_message(late, "Next in line")
    open_answers[7].close()
    assert last(late)[0].kind == "done"
    for events in open_answers:
        events.close()


def test_a_model_that_is_loaded_holds_up_no_open_answer(shared, tmp_path):
    streaming = shared.ask(request(sides=(SLOW,), max_new_tokens=400))
    until(streaming, "token")
    loading = shared.ask(request(f"load-when={tmp_path}", max_new_tokens=2))
    next(loading)
    wait_until(lambda: [*tmp_path.glob("loading-*")])
    for _ in range(3):
        until(streaming, "token")
    assert last(shared.ask(request(max_new_tokens=2)))[0].kind == "done"
    (tmp_path / "go").touch()
    assert last(loading)[0].kind == "done"
    streaming.close()


def test_a_model_without_room_waits_for_open_answers_and_whoever_came_later_waits_behind_it():
    service = AnswerService((*STAND_IN, "1"))
    first = service.ask(request(sides=(SLOW,), max_new_tokens=400))
    until(first, "token")
    second = service.ask(request("other", max_new_tokens=2))
    until_message(second, "Waiting until other models' answers leave memory for this one")
    third = service.ask(request(sides=(SLOW,), max_new_tokens=2))
    until_message(third, "Waiting for another model that comes first")
    until(first, "token")
    first.close()
    assert last(second)[0].kind == "done"
    assert last(third)[0].kind == "done"
    service.close()


def test_a_visitor_who_asks_again_after_an_answer_is_not_told_to_wait_for_it(shared):
    for _ in range(20):
        messages = [event.message for event in shared.ask(request(max_new_tokens=1))]
        assert not any("line" in message for message in messages)


def test_a_cancelled_answer_stops_within_a_token_and_keeps_its_text(shared):
    asked = request(sides=(SLOW,), max_new_tokens=200)
    events = shared.ask(asked)
    until(events, "token")
    started = time.monotonic()
    shared.cancel(asked.request_id)
    end = last(events)[0]
    assert (end.kind, end.message) == ("error", "Stopped.")
    assert end.text
    assert time.monotonic() - started < 1


def test_a_visitor_who_leaves_makes_room_for_the_next(shared):
    events = shared.ask(request(sides=(SLOW,), max_new_tokens=400))
    until(events, "token")
    events.close()
    started = time.monotonic()
    assert last(shared.ask(request(max_new_tokens=2)))[0].kind == "done"
    assert time.monotonic() - started < 2


def test_a_visitor_may_leave_while_the_model_is_loaded(shared):
    loading = shared.ask(request("load=30"))
    until_message(loading, "block")
    loading.close()
    started = time.monotonic()
    assert last(shared.ask(request("other", max_new_tokens=2)))[0].kind == "done"
    assert time.monotonic() - started < 10


def test_a_side_that_can_not_be_answered_here_says_why_and_the_others_are_answered():
    def settled(request):
        event = AnswerEvent(request_id=request.request_id, side=0, kind="error", message="Too large.")
        return {0: event} if request.model == "text" else {}

    service = AnswerService(STAND_IN, settled=settled)
    assert [event.message for event in service.ask(request())] == ["Too large."]
    assert service._worker is None
    turn = Turn(question="Before?", answers=("", "Because."))
    events = list(service.ask(request(sides=(FP16, RTN), earlier=(turn,), max_new_tokens=2)))
    service.close()
    assert [event.message for event in events if event.side == 0] == ["Too large."]
    assert last(events)[1].kind == "done"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"question": "  "}, "Type a question."),
        ({"question": "x" * 5000}, "5,000 characters; shorten it to 4,000"),
        ({"sides": ()}, "Choose from 1 to 8 settings"),
        ({"earlier": (Turn(question="Why?", answers=("a", "b")),)}, "not those of the conversation so far"),
        ({"earlier": (Turn(question="Why?", answers=("a",)),) * 17}, "at most 17 questions"),
        ({"sides": (RTN,), "along": (1,)}, "name it first"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_sentence(wrong, said):
    with pytest.raises(ValidationError) as caught:
        request(**wrong)
    assert said in sentence(caught.value)


def test_the_page_side_imports_no_torch():
    code = (
        "import sys, quant_engine.answers.client, quant_engine.data.open_picture\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
