"""The command line on the demo language model, from the terminal: killed, repeated, found; and GPTQ against RTN."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from quant_engine import folders
from quant_engine.runs import folder

pytestmark = pytest.mark.demo

MEASURED = ["--tasks", "perplexity", "--limit", "8", "--window", "256", "--json"]
SEEN = ["--samples", "16", "--length", "256"]
GPTQ = ["run", "--model", "demo-llm", "--method", "gptq", "--bits", "3", "--group-size", "64", *SEEN]
RTN = ["run", "--model", "demo-llm", "--method", "rtn", "--bits", "3", "--group-size", "64"]


def start(*words):
    command = [sys.executable, "-m", "quant_engine", *words]
    return subprocess.Popen(command, cwd=folders.PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*words):
    process = start(*words)
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return json.loads(out)[0], errors


def finished_blocks():
    return len(list(folders.checkpoints().glob("*/0*.safetensors")))


def test_a_killed_gptq_run_resumes_is_then_found_and_loses_far_less_than_rtn(lab):
    killed = start(*GPTQ, *MEASURED)
    while finished_blocks() < 3:
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = finished_blocks()
    assert not list(folder.run_folders())

    gptq, _ = finish(*GPTQ, *MEASURED)
    log = (folder.run_path(gptq["run_id"]) / "log.txt").read_text()
    assert f"{kept} of 30 blocks were finished before" in log
    assert f"block {kept - 1}: " not in log
    assert f"block {kept}: " in log

    again, errors = finish(*GPTQ, *MEASURED)
    assert again == gptq
    assert "made before" in errors

    rtn, _ = finish(*RTN, *MEASURED)
    dense, _ = finish("run", "--model", "demo-llm", *MEASURED)
    assert dense["value"] < gptq["value"] < 0.8 * rtn["value"]
    assert gptq["stored_bits"] == rtn["stored_bits"] == pytest.approx(3 + 19 / 64, abs=0.001)
    assert {path.name for path in folder.run_folders()} == {gptq["run_id"], rtn["run_id"], dense["run_id"]}
