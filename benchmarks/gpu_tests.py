"""Stage "tests" of benchmarks/gpu.py: the tests that need a GPU, every kernel against the CPU, and the registers of the
kernels as the assembler counts them, which needs no card.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from gpu_report import Report

PROJECT = Path(__file__).resolve().parent.parent
FILES = ("tests/kernels/test_gpu_kernels.py", "tests/test_gpu.py")
DRY_WORDS = "kernels_do_what and (symmetric or rotated)"
"""Of the kernels' tests; those of a GPU skip themselves."""
PREDICTED_GB = 1.0
"""The largest weight of a test is 32768 x 1024."""
_OUTCOME = re.compile(r"(?P<file>tests/\S+?)::(?P<test>\w+)(?P<case>\S.*?)? (?P<outcome>PASSED|FAILED|SKIPPED|ERROR)")


def run(report: Report, dry: bool) -> None:
    report.add(predicted="peak memory", GB=PREDICTED_GB)
    report.case("registers of the kernels", partial(registers, report, dry))
    for file in FILES:
        report.case(file, partial(run_file, report, file, dry))


def registers(report: Report, dry: bool) -> None:
    """A row for each kernel, form and kind of card."""
    script = PROJECT / "tests" / "kernels" / "compile_for_gpu.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"}
    command = [sys.executable, str(script), *(["--forms", "3 bits"] if dry else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=report.seconds_left)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    for line in done.stdout.splitlines():
        report.add(**json.loads(line))


def run_file(report: Report, file: str, dry: bool) -> None:
    """A row for each test function with how many of its cases passed; failed cases are rows of their own."""
    words = ["-k", DRY_WORDS] if dry else []
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-p", "gpu_versions", file]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [*command, *words],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    counts: dict[str, Counter[str]] = {}
    whole = False
    try:
        for line in process.stdout:
            found = _OUTCOME.search(line)
            if found is None:
                continue
            counts.setdefault(found["test"], Counter())[found["outcome"].lower()] += 1
            if found["outcome"] in ("FAILED", "ERROR"):
                report.add(failed=f"{found['test']}{found['case'] or ''}", of=file)
        whole = True
    finally:
        process.kill()
        process.wait()
        for test, outcomes in counts.items():
            names = ("passed", "failed", "error", "skipped")
            report.add(test=test, **{name: outcomes[name] for name in names}, whole=whole)
    if not counts and process.returncode not in (0, 5):
        raise RuntimeError(f"pytest ended with {process.returncode}")
