"""The model card's table of what quantization costs, from run folders that `python -m quant_engine run` would make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from quant_engine import disk
from quant_engine.data.drawn import suite
from quant_engine.demo import fetch
from quant_engine.evaluate import TASKS
from quant_engine.models.device import default_device, default_dtype
from quant_engine.progress import Hooks
from quant_engine.results import Result
from quant_engine.runs import folder as run_folder
from quant_engine.runs.command import command
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

SETTINGS = (
    QuantSetting(),
    *(QuantSetting(method=method, w_bits=bits, group_size=64) for bits in (8, 4, 3, 2) for method in ("rtn", "gptq")),
)
FILE = "quantized.json"


def specs(items: int, windows: int) -> Iterator[tuple[RunSpec, RunSpec]]:
    """For each setting the run on the picture suite and the run on text."""
    device = default_device()
    common = {"device": device, "dtype": default_dtype(device), "window": 1024}
    for setting in SETTINGS:
        weights = WeightSpec(model="demo", setting=setting)
        yield (
            resolve(RunSpec(weights=weights, tasks=suite.TASKS, limit=items, **common)).spec,
            resolve(RunSpec(weights=weights, tasks=("perplexity",), limit=windows, **common)).spec,
        )


def measure(folder: Path, items: int, windows: int = 8) -> None:
    """Run all settings on the composed demo model, those that were run before excepted; leave `quantized.json`."""
    fetch.get_demo()
    rows = []
    for pair in specs(items, windows):
        results: list[Result] = []
        for spec in pair:
            print(command(spec), flush=True)
            run_dir = execute(spec, Hooks(log=print))
            results += run_folder.read(run_dir).results
        rows.append({"results": [r.model_dump(mode="json") for r in results], "command": command(pair[0])})
        disk.write_json(folder / FILE, rows)


def table(folder: Path) -> str:
    """The section of the card, in Markdown."""
    if not (folder / FILE).exists():
        return "Not measured yet for these weights; the stage `quantized` does it."
    rows = json.loads((folder / FILE).read_text(encoding="utf-8"))
    names = ["perplexity", *suite.TASKS]
    lines = [
        "| method | weight bits | stored bits | " + " | ".join(TASKS[name].title for name in names) + " |",
        "| --- | --- | --- |" + " --- |" * len(names),
    ]
    for row in rows:
        by_task = {result["task"]: result for result in row["results"]}
        first = by_task["perplexity"]
        name = "FP16" if first["method"] == "fp16" else f"{first['method'].upper()} g{first['group_size']}"
        cells = [_cell(by_task[task]) for task in names]
        bits = f"{first['stored_bits'] or 16:.2f}"
        lines.append(f"| {name} | {first['w_bits']:g} | {bits} | " + " | ".join(cells) + " |")
    items = ", ".join(
        f"{task} {r['items']}" for task, r in {x["task"]: x for x in rows[0]["results"]}.items() if task in names
    )
    return "\n".join(lines) + (
        f"\n\nItems (windows of 1024 tokens for perplexity): {items}. One row is one run, for example\n\n"
        f"    {rows[2]['command']}\n"
    )


def _cell(result: dict) -> str:
    if result["value"] is None:
        return result["status"]
    error = (
        ""
        if result["standard_error"] is None or result["task"] == "perplexity"
        else f" ± {result['standard_error']:.0f}"
    )
    status = "" if result["status"] == "ok" else f" ({result['status']})"
    return f"{result['value']:.{2 if result['task'] == 'perplexity' else 0}f}{error}{status}"
