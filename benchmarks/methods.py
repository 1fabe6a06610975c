"""What does each method lose on one model, at what stored size and in how much time?

    python benchmarks/methods.py [--model demo-llm] [--tasks wikitext2] [--limit 16] [--only quip slim_llm-2] [--found]

Each row shows runs that `python -m quant_engine run` makes, in processes of their own, with 32 x 512 tokens of the
built-in calibration text; runs that were made before on any device, or came with the project, are found. Each word
behind --tasks is one run, of tasks with commas between. The table, in Markdown, shows each task's number with its
standard error, all stored bits of a weight, the output error of the linears (mean over linears), minutes of
quantization and tasks, and where they were spent. What trains or searches by default takes minutes on a GPU and hours
on a CPU, where `--only` leaves it out.
wikitext2 takes its text from the Hub or from LOWBIT_DATA; runs of another source are others. A run that is cut off goes
on when the command is given again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine import folders, notation
from quant_engine.evaluate import split_tasks
from quant_engine.models.catalog import model_card
from quant_engine.models.device import default_device, default_dtype
from quant_engine.results import Result
from quant_engine.runs import folder
from quant_engine.runs.command import command
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec, UserError, WeightSpec

GROUPED = (4, 3, 2)
ORDERED = {"act_order": True, "groups": "static"}
# What two CPU cores can do within an hour.
SEARCHED = {"search_samples": 8}
DISTILLED = {"init": "gptq", "steps": 60, "batch": 4}
SHORT = {
    "steps": 60,
    "batch": 4,
    "source_length": 192,
    "target_length": 64,
    "held_out": 32,
    "gradient_checkpointing": False,
}
SETTINGS = (
    QuantSetting(),
    *(QuantSetting(method=m, w_bits=b, group_size=64) for m in ("rtn", "gptq", "slim_llm") for b in GROUPED),
    *(QuantSetting(method="awq", w_bits=b, group_size=64, options=SEARCHED) for b in GROUPED),
    *(QuantSetting(method="gptq", w_bits=b, group_size=64, options=ORDERED) for b in GROUPED),
    *(QuantSetting(method=method, w_bits=2) for method in ("rtn", "gptq")),
    *(QuantSetting(method=method, w_bits=bits) for method in ("quip", "normal_float") for bits in GROUPED),
    *(QuantSetting(method="smoothquant", w_bits=bits, a_bits=bits) for bits in (8, 6, 4)),
    *(QuantSetting(method="pb_llm", w_bits=bits, group_size=128) for bits in (2, 1.7)),
    QuantSetting(method="billm", w_bits=1.1, group_size=128),
)
TUNERS = ("qlora", "ir_qlora")
FOR_TEXTS = (
    *(QuantSetting(method="awq", w_bits=b, group_size=64) for b in (4, 3)),
    *(QuantSetting(method="db_llm", w_bits=2, group_size=64, options=o) for o in ({"init": "gptq"}, DISTILLED)),
    *(QuantSetting(method=m, w_bits=4, options=SHORT) for m in TUNERS),
)
FOR_PICTURES = (
    QuantSetting(method="db_llm", w_bits=2, group_size=64, options=DISTILLED | {"steps": 20}),
    *(QuantSetting(method=m, w_bits=4, options=SHORT | {"steps": 30, "data": "demo"}) for m in TUNERS),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-llm")
    parser.add_argument("--tasks", nargs="+", default=["wikitext2"], help="a run each, of tasks with commas between")
    parser.add_argument("--limit", type=int, default=16, help="items or windows of each task")
    parser.add_argument("--only", nargs="*", help="these methods alone (gptq), or these bits of them (gptq-4)")
    parser.add_argument("--found", action="store_true", help="make no run: show those that are there")
    given = parser.parse_args()

    made: list[tuple[str, list[RunSpec]]] = []
    for setting in SETTINGS + (FOR_PICTURES if model_card(given.model).pictures else FOR_TEXTS):
        if given.only and not {setting.method, f"{setting.method}-{setting.w_bits:g}"} & set(given.only):
            continue
        try:
            specs = [wanted(given.model, setting, split_tasks(tasks), given.limit) for tasks in given.tasks]
            missing = [spec for spec in specs if not folder.run_path(spec.run_id).is_dir()]
            if missing and given.found:
                continue
            for spec in missing:
                subprocess.run([sys.executable, *shlex.split(command(spec))[1:]], check=True, cwd=folders.PROJECT)
            options = ", ".join(f"{name}={value}" for name, value in setting.options.items())
            made.append((f"{setting.label} {options}".strip(), specs))
        except (UserError, subprocess.CalledProcessError) as error:
            print(f"{setting.method} {setting.w_bits:g} bits: {error}", file=sys.stderr)
    if made:
        show(made)


def wanted(model: str, setting: QuantSetting, tasks: tuple[str, ...], limit: int) -> RunSpec:
    """The run as it was made on any device, in float32 as on a CPU; else as it would be made here."""
    weights, here = WeightSpec(model=model, setting=setting), default_device()
    on = ((here, default_dtype(here)), ("cpu", "float32"), ("cuda", "float32"))
    specs = [
        resolve(RunSpec(weights=weights, tasks=tasks, limit=limit, window=1024, device=device, dtype=dtype)).spec
        for device, dtype in on
    ]
    return next((spec for spec in specs if folder.run_path(spec.run_id).is_dir()), specs[0])


def show(made: list[tuple[str, list[RunSpec]]]) -> None:
    runs = [[folder.read(folder.run_path(spec.run_id)) for spec in specs] for _, specs in made]
    every = [result for row in runs for run in row for result in run.results]
    numbers = list(dict.fromkeys((result.task, result.metric) for result in every))
    columns = ("setting", "stored bits", *(f"{task} {metric}" for task, metric in numbers), "error", "minutes", "on")
    table = Table(*columns, box=box.MARKDOWN)
    for (label, specs), row in zip(made, runs, strict=True):
        results = [result for run in row for result in run.results]
        by_number = {(result.task, result.metric): result for result in results}
        layers = folder.read_layers(folder.run_path(specs[0].run_id))
        errors = [layer.output_error for layer in layers if layer.output_error is not None]
        table.add_row(
            label,
            f"{results[0].stored_bits or 16:.2f}",
            *(cell(by_number.get(one)) for one in numbers),
            f"{sum(errors) / len(errors):.4f}" if errors else "",
            f"{sum(run.about['duration_s'] for run in row) / 60:.1f}",
            row[0].about["hardware"],
        )
    Console(width=1000).print(table)  # a wrapped cell would be a row of its own in Markdown


def cell(row: Result | None) -> str:
    if row is None:
        return ""
    error = "" if row.standard_error is None else f" ± {notation.number(row.standard_error)}"
    return f"{notation.number(row.value)}{error}" + ("" if row.status == "ok" else f" ({row.status})")


if __name__ == "__main__":
    main()
