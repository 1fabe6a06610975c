"""What does each method lose on one model, at what stored size and in how much time?

    python benchmarks/methods.py [--model demo-llm] [--tasks wikitext2] [--limit 16] [--only quip slim_llm]

Each row is a run that `python -m quant_engine run` makes, in a process of its own, with 32 x 512 tokens of the built-in
calibration text; runs that were made before are found. The table shows each task's number with its standard error, all
stored bits of a weight, the output error of the linears (mean over linears, where a method measures it), and minutes
(quantization and tasks). wikitext2 takes its text from the Hub or from LOWBIT_DATA. A run that is cut off goes on
when the command is given again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine import folders
from quant_engine.runs import folder
from quant_engine.runs.command import command
from quant_engine.runs.resolve import default_device, default_dtype, resolve
from quant_engine.spec import QuantSetting, Result, RunSpec, UserError
from quant_engine.terminal import number

GROUPED = (4, 3, 2)
SETTINGS = (
    QuantSetting(),
    *(QuantSetting(method=m, w_bits=b, group_size=64) for m in ("rtn", "gptq", "awq", "slim_llm") for b in GROUPED),
    *(QuantSetting(method=method, w_bits=2) for method in ("rtn", "gptq")),
    *(QuantSetting(method=method, w_bits=bits) for method in ("quip", "normal_float") for bits in GROUPED),
    *(QuantSetting(method="smoothquant", w_bits=bits, a_bits=bits) for bits in (8, 6, 4)),
    *(QuantSetting(method="pb_llm", w_bits=bits, group_size=128) for bits in (2, 1.7)),
    QuantSetting(method="billm", w_bits=1.1, group_size=128),
    QuantSetting(method="db_llm", w_bits=2, group_size=64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-llm")
    parser.add_argument("--tasks", default="wikitext2", help="tasks with commas between")
    parser.add_argument("--limit", type=int, default=16, help="items or windows of each task")
    parser.add_argument("--only", nargs="*", help="these methods alone")
    given = parser.parse_args()

    made: list[tuple[RunSpec, list[Result]]] = []
    for setting in SETTINGS:
        if given.only and setting.method not in given.only:
            continue
        try:
            spec = wanted(given.model, setting, tuple(given.tasks.split(",")), given.limit)
            if not folder.exists(spec.run_id):
                subprocess.run([sys.executable, *shlex.split(command(spec))[1:]], check=True, cwd=folders.PROJECT)
            made.append((spec, folder.read(folder.place(spec.run_id)).results))
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{setting.method} {setting.w_bits:g} bits: {error}", file=sys.stderr)
    if made:
        show(made)


def wanted(model: str, setting: QuantSetting, tasks: tuple[str, ...], limit: int) -> RunSpec:
    device = default_device()
    return resolve(
        RunSpec(
            model=model,
            setting=setting,
            tasks=tasks,
            limit=limit,
            window=1024,
            device=device,
            dtype=default_dtype(device),
        )
    )


def show(made: list[tuple[RunSpec, list[Result]]]) -> None:
    numbers = list(dict.fromkeys((row.task, row.metric) for _, results in made for row in results))
    table = Table("setting", "stored bits", *(f"{task} {metric}" for task, metric in numbers), "error", "minutes")
    for spec, results in made:
        by_number = {(row.task, row.metric): row for row in results}
        place = folder.place(spec.run_id)
        errors = [r.output_error for r in folder.read_layers(place) if r.output_error is not None]
        seconds = folder.read(place).about["duration_s"]
        table.add_row(
            spec.setting.label,
            f"{results[0].stored_bits or 16:.2f}",
            *(cell(by_number.get(one)) for one in numbers),
            f"{sum(errors) / len(errors):.4f}" if errors else "",
            f"{seconds / 60:.1f}",
        )
    Console().print(table)


def cell(row: Result | None) -> str:
    if row is None:
        return ""
    error = "" if row.standard_error is None else f" ± {number(row.standard_error)}"
    return f"{number(row.value)}{error}" + ("" if row.status == "ok" else f" ({row.status})")


if __name__ == "__main__":
    main()
