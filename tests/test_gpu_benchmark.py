"""benchmarks/gpu.py runs from end to end without a GPU, so that the time on one is not lost to its own faults."""

import json
import os
import subprocess
import sys

import pytest

from quant_engine import folders

pytestmark = pytest.mark.timeout(1800)  # seven stages, the kernels in an interpreter
STAGES = ("decode", "quantize")
if "LOWBIT_LARGE_TESTS" in os.environ:
    STAGES = ("tests", "kernels", *STAGES, "answer", "train", "demo")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The folder that a dry run of all stages leaves."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--dry",
        "--out",
        str(folder),
        "--commit",
        "a commit",
        "--stage",
        *STAGES,
    ]
    done = subprocess.run(command, cwd=folders.PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def read(folder, stage):
    return json.loads((folder / f"{stage}.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_measures_all_that_it_is_for(reports, stage):
    report = read(reports, stage)
    assert report["rows"]
    assert report["left_out"] == []
    assert report["environment"]["commit"] == "a commit"
    assert {"card", "driver", "torch", "triton", "transformers"} <= report["environment"].keys()
    table = (reports / f"{stage}.md").read_text()
    assert "a commit" in table
    assert table.count("|") > 10


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_says_what_memory_it_expects(reports, stage):
    assert any("predicted" in name for row in read(reports, stage)["rows"] for name in row)


def test_goals_stand_beside_what_was_measured(reports):
    goals = [goal for stage in STAGES for goal in read(reports, stage)["goals"]]
    assert {"GPTQ of all blocks", "peak memory of GPTQ"} <= {goal["goal"] for goal in goals}
    assert all("another card" in goal["outcome"] for goal in goals)


@pytest.mark.skipif("tests" not in STAGES, reason="LOWBIT_LARGE_TESTS runs all stages")
def test_kernels_passed_their_tests(reports):
    rows = [row for row in read(reports, "tests")["rows"] if "passed" in row]
    assert sum(row["passed"] for row in rows) > 0
    assert all(row["failed"] == row["error"] == 0 and row["whole"] for row in rows)


def test_a_stage_without_time_says_what_it_left_out(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--dry", "--stage", "decode", "--minutes", "0"]
    subprocess.run([*command, "--out", str(tmp_path)], cwd=folders.PROJECT, capture_output=True)
    assert read(tmp_path, "decode")["left_out"]
