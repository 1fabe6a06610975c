"""How the answering process begins, dies and ends: nobody waits for a dead one, and nothing is left of it."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from answers.asking import RTN, SLOW, STAND_IN, ended, gone, last, request, until, until_message, wait_until

from quant_engine.answers.client import AnswerService
from quant_engine.kernels import ahead


def test_a_dead_process_ends_every_open_request_with_a_sentence_and_the_next_one_starts_another(service):
    first = service.ask(request(sides=(SLOW, RTN), max_new_tokens=400))
    second = service.ask(request())
    answered = until(first, "token").text
    until(second, "status")
    service._worker._process.kill()
    for ends in (last(first), last(second)):
        assert {end.kind for end in ends.values()} == {"error"}
        assert all("signal 9" in end.message and "memory ran out" in end.message for end in ends.values())
    assert answered
    ends = last(service.ask(request("die=11")))
    assert "crashed (signal 11)" in ends[0].message


@pytest.mark.parametrize("leave", ["by closing", "by cancelling"])
def test_a_visitor_who_leaves_a_dead_process_takes_nobody_along(service, leave):
    asked = request()
    events = service.ask(asked)
    next(events)
    process = service._worker._process
    process.kill()
    process.wait()
    if leave == "by cancelling":
        service.cancel(asked.request_id)
    events.close()
    service.close()
    assert process.stdin.closed
    assert last(service.ask(request(max_new_tokens=2)))[0].kind == "done"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_that_died_while_idle_is_let_go_like_any_other():
    service = AnswerService(STAND_IN, idle_s=0.3)
    events = service.ask(request())
    next(events)
    worker = service._worker
    worker._process.kill()
    worker._process.wait()
    events.close()
    end = time.monotonic() + 10
    while service._worker and time.monotonic() < end:
        time.sleep(0.05)
    service._idle.join(10)
    assert worker._process.stdin.closed
    service.close()


def test_a_process_that_cannot_start_is_a_sentence():
    service = AnswerService((sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(3)"))
    assert "exit code 3" in last(service.ask(request()))[0].message
    service.close()


def test_a_model_is_loaded_once_and_ahead_and_whoever_asks_meanwhile_knows_what_for_they_wait(service, tmp_path):
    model = f"load-when={tmp_path}"
    service.warm_up(model)
    wait_until(lambda: [*tmp_path.glob("loading-*")], 60)
    events = service.ask(request(model, max_new_tokens=1))
    assert next(events).message == "Loading FP16"
    (tmp_path / "go").touch()
    assert last(events)[0].kind == "done"
    service.warm_up(model)
    assert last(service.ask(request(model, max_new_tokens=1)))[0].kind == "done"
    assert len([*tmp_path.glob("loading-*")]) == 1


def test_what_cannot_be_loaded_ahead_is_left_to_whoever_asks(service):
    for model in ("bug", "huge"):
        service.warm_up(model)
    assert last(service.ask(request(max_new_tokens=1)))[0].kind == "done"
    assert "ZeroDivisionError" in last(service.ask(request("bug")))[0].message


def test_an_idle_process_ends():
    service = AnswerService(STAND_IN, idle_s=0.3)
    assert last(service.ask(request(max_new_tokens=2)))[0].kind == "done"
    process = service._worker._process
    process.wait(10)
    assert process.returncode == 0
    assert service._worker is None
    service.close()


def test_the_process_ends_with_its_page():
    code = (
        "import sys, time; from quant_engine.answers.client import AnswerService\n"
        "service = AnswerService(sys.argv[1:]); service.warm_up(); print(service._worker._process.pid, flush=True)\n"
        "time.sleep(60)"
    )
    page = subprocess.Popen(
        [sys.executable, "-c", code, *STAND_IN],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    pid = int(page.stdout.readline())
    page.kill()
    page.wait()
    wait_until(lambda: gone(pid), 120)  # it listens once it has loaded its libraries


def test_a_machine_that_compiled_nothing_does_so_while_a_model_is_loaded(service, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "is_needed", lambda: True)
    monkeypatch.setattr(ahead, "COMMAND", (sys.executable, "-c", f"open({str(tmp_path / 'compiled')!r}, 'w')"))
    service.warm_up()
    wait_until((tmp_path / "compiled").exists)


def test_what_is_still_compiled_ends_with_the_page(service, tmp_path, monkeypatch):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(ahead, "is_needed", lambda: True)
    monkeypatch.setattr(ahead, "COMMAND", (sys.executable, "-c", code))
    service.warm_up()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    service.close()
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_process_killed_at_any_moment_leaves_one_sentence_for_each_side_and_nothing_else(service, tmp_path):
    """A hundred answers, eight at a time, of which one waits for what is quantized."""
    moments, processes, messages = random.Random(0), set(), set()
    for number in range(13):
        folder = tmp_path / str(number)
        folder.mkdir()
        asked = [request(model, (SLOW, RTN), max_new_tokens=8) for model in ("text",) * 3 + (f"quantize-by={folder}",)]
        service.warm_up()
        with ThreadPoolExecutor(len(asked)) as visitors:
            answers = [visitors.submit(list, service.ask(one)) for one in asked]
            time.sleep(moments.uniform(0, 1.5))
            processes.add(service._worker._process.pid)
            service._worker._process.kill()
            (folder / "slow").touch()
            (folder / "rtn").touch()  # whoever asks just after the kill is answered
        for answer in answers:
            ends = [event for event in answer.result() if event.kind in ("done", "error")]
            assert sorted(event.side for event in ends) == [0, 1]
            messages |= {event.message for event in ends if event.kind == "error"}
        assert not service._worker.is_busy()
    (sentence,) = messages
    assert "signal 9" in sentence
    quantizers = {int(file.suffix[1:]) for file in tmp_path.glob("*/*.*")}
    assert quantizers
    assert last(service.ask(request(max_new_tokens=1)))[0].kind == "done"
    service.close()
    wait_until(lambda: all(gone(pid) for pid in processes | quantizers))


def test_what_quantizes_ends_with_the_answering_process(service, tmp_path):
    events = service.ask(request(f"quantize-by={tmp_path}", (RTN,)))
    until_message(events, "Quantizing block 7 of 30")
    service._worker._process.kill()
    assert "signal 9" in last(events)[0].message
    wait_until(lambda: ended(tmp_path, "rtn"))
