"""Answers on a Space with ZeroGPU, with a stand-in for its package that raises where CUDA is touched too early."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leaderboard import lab
from quant_engine import folders
from quant_engine.answers import zero_gpu
from quant_engine.answers.client import AnswerService
from quant_engine.spec import UserError

PAGE = Path(__file__).with_name("zero_gpu") / "page.py"


def test_questions_are_answered_in_calls_that_have_a_gpu_and_nothing_else_touches_it(tmp_path, tiny_models):
    environment = os.environ | {"SPACES_ZERO_GPU": "true", "LOWBIT_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{folders.PROJECT}{os.pathsep}{PAGE.parent}"
    done = subprocess.run(
        [sys.executable, str(PAGE), str(tiny_models / "llava")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == ["cpu", "cuda"]
    assert found["outside"] == "CUDA was touched outside of a decorated call."
    assert found["seconds"] == [70, 50, 50]
    by_side = [[event for event in found["answers"] if event["side"] == side] for side in range(3)]
    assert [events[-1]["kind"] for events in by_side] == ["done", "done", "error"]
    assert by_side[0][-1]["stats"]["tokens"] == 3
    assert 4 < by_side[1][-1]["stats"]["stored_bits"] < 6
    assert "no method" in by_side[2][-1]["message"]
    messages = [event["message"] for event in by_side[1]]
    assert messages.index("Waiting for a GPU") < messages.index("Reading")
    assert any("quantizing" in message.lower() for message in messages[: messages.index("Waiting for a GPU")])
    assert found["stopped"][-2:] == ["Reading", "Stopped."]
    assert found["refused"][-1] == "ZeroGPU client error: No GPU was available."


def test_a_space_without_the_package_says_so_and_elsewhere_nobody_asks_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spaces", None)
    assert type(lab.answering()) is AnswerService
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    with pytest.raises(UserError, match=r"needs the package spaces: name it in requirements\.txt\.$"):
        zero_gpu.ZeroGpuAnswers()
