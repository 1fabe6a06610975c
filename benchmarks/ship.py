"""Takes measured runs into the project, or those of all sweeps that are done.

    python benchmarks/ship.py [RUN …]

Copies run folders from LOWBIT_RESULTS to assets/runs; without RUN those of assets/sweeps. What a data set's authors
wrote stays away: of published questions the words are left out (`ItemOutput.without_text`), of texts their beginnings;
numbers, log-probabilities and what the project made itself are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine import disk, folders
from quant_engine.evaluate import parse_result_name, reads_windows
from quant_engine.failures import exits_plainly
from quant_engine.runs import folder
from quant_engine.runs.sweep import plan, read_sweep

OWN = "demo-"
"""Tasks whose questions the project draws itself."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN")
    given = parser.parse_args()
    with exits_plainly("shipping", "start it again"):
        for run_id in given.runs or done():
            print(ship(folders.results() / run_id))


def done() -> list[str]:
    """The runs of all sweeps that were made here."""
    sweeps = sorted((folders.ASSETS / "sweeps").glob("*.yaml"))
    specs = [spec for file in sweeps for spec in plan(read_sweep(file)).specs]
    return [spec.run_id for spec in specs if folder.exists(spec.run_id)]


def ship(path: Path) -> Path:
    """Copies a run without the words of others. Raises UserError if it is damaged."""
    run = folder.read(path)
    target = folders.ASSETS / "runs" / path.name
    with disk.replacing_folder(target) as aside:
        for name in ("run.json", "results.parquet", "layers.parquet", "log.txt"):
            shutil.copyfile(path / name, aside / name)
        (aside / "items").mkdir()
        for task in run.spec.tasks:
            outputs = folder.read_items(path, task)
            if not parse_result_name(task)[0].name.startswith(OWN) or reads_windows((task,)):
                outputs = [output.without_text() for output in outputs]
            folder.write_items(aside, task, outputs)
    return target


if __name__ == "__main__":
    main()
