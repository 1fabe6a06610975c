import json
import socket
import subprocess
import sys

import pytest

from quant_engine.folders import PROJECT

SCRIPT = """
import json, sys
from leaderboard.lab import Lab
from leaderboard.ui import page
page.build(Lab())
print(json.dumps([name for name in ("torch", "transformers", "plotly", "accelerate") if name in sys.modules]))
"""
RUN = """
import json, sys
from leaderboard import requests
spec = requests.run(sys.argv[1], requests.FP16, ["demo-ai2d", "perplexity", "piqa"], window="9999")
print(json.dumps([spec.window, sorted(spec.data), [n for n in ("torch", "datasets") if n in sys.modules]]))
"""


def test_the_page_loads_no_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "LOWBIT_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_what_a_run_is_measured_on_is_found_without_torch_and_without_reading_rows(tmp_path, tiny_models):
    (tmp_path / "piqa_val.jsonl").write_text('{"goal": "a row that is not looked at yet"}\n')
    folders_here = {"LOWBIT_HOME": str(tmp_path), "HOME": str(tmp_path), "LOWBIT_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_models / "llava")],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", **folders_here},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [512, ["demo-ai2d", "perplexity", "piqa"], []]


@pytest.mark.parametrize("port", ["many", "0", "70000"])
def test_a_port_that_is_none_is_a_sentence(port):
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=PROJECT, env={"PORT": port}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == f"PORT must be a number from 1 to 65535, not '{port}'.\n"


def test_a_port_in_use_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "app.py"], cwd=PROJECT, env={"PORT": port}, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Port {port} is in use")
