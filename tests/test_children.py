"""Child processes."""

import os
import subprocess
from pathlib import Path

from quant_engine.children import start_child


def test_a_child_steps_back_from_the_processor_with_its_whole_session():
    child = start_child(["sleep", "60"], None, subprocess.DEVNULL, None, nice=7)
    try:
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 7
        assert os.getsid(child.pid) == child.pid
        of_session = Path(f"/proc/{child.pid}/autogroup")  # where this Linux shares the processor out by sessions
        assert not of_session.exists() or of_session.read_text().endswith("nice 7\n")
    finally:
        child.kill()
        child.wait()
