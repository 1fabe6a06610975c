import json
import subprocess
import sys

from quant_engine.folders import PROJECT

SCRIPT = """
import json, sys
from leaderboard.lab import Lab
from leaderboard.ui import page
page.build(Lab())
print(json.dumps([name for name in ("torch", "transformers", "plotly", "accelerate") if name in sys.modules]))
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
