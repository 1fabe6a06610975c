"""Do our zero-shot scores agree with lm-eval's, and which is faster?

    python benchmarks/evaluation.py FOLDER [--limit 200] [--batch-size 16]

FOLDER holds the sets' files as LOWBIT_DATA does (piqa_val.jsonl.gz, arc_easy_test.jsonl.gz, …). Both sides get the same
model in memory (SmolLM2-135M-Instruct, float32), the same rows and the same prompts; tasks take turns, ours first and
second by turns. Needs the demo models (python -m quant_engine get demo) and lm-eval (pip install -e '.[peers]').

What makes the two comparable: no beginning-of-text token (add_bos_token=False; ours by default), acc from sums of
log-probabilities, the first rows of each file. What stays different: lm-eval tokenizes context and continuation
together, ours apart as the study did, and it normalizes acc_norm the same way. lm-eval gets `--batch-size` texts at a
time, sorted by length; ours has its own batches. Reading the rows is in neither time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data import sources
from quant_engine.evaluate import Outcome, Watch, parse_task
from quant_engine.models.load import Loaded
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import RunSpec, WeightSpec

MODEL = WeightSpec(model="demo-llm")
TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")
ARC_ROWS = {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
"""The local ARC files hold ready prompts; lm-eval's task has to read those fields."""

PERPLEXITY_WINDOWS, WINDOW = 16, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    os.environ["LOWBIT_DATA"] = str(arguments.folder.resolve())

    loaded = weights.load(resolve_weights(MODEL), "float32", "cpu", Hooks())
    peer = Peer(loaded, arguments.folder, arguments.batch_size)
    for name in TASKS:
        parse_task(name).prepare()
    table = Table("task", "n", "acc", "lm-eval", "acc_norm", "lm-eval", "other answers", "s", "lm-eval s", "ratio")
    table.title = f"{hardware('cpu')}, {loaded.card.title}, float32"
    total, peer_total = 0.0, 0.0
    measure(loaded, "piqa", 2)  # warms up
    for index, name in enumerate(TASKS):
        if index % 2:
            outcome, seconds = measure(loaded, name, arguments.limit)
            peer_outcome, peer_seconds = peer.measure(name, arguments.limit)
        else:
            peer_outcome, peer_seconds = peer.measure(name, arguments.limit)
            outcome, seconds = measure(loaded, name, arguments.limit)
        total, peer_total = total + seconds, peer_total + peer_seconds
        times = [f"{seconds:.1f}", f"{peer_seconds:.1f}", f"{peer_seconds / seconds:.2f}"]
        table.add_row(name, str(len(outcome.outputs)), *scores(outcome, peer_outcome), *times)
    table.add_row("all", "", "", "", "", "", "", f"{total:.1f}", f"{peer_total:.1f}", f"{peer_total / total:.2f}")
    console = Console()
    console.print(table)
    windows = min(PERPLEXITY_WINDOWS, arguments.limit)
    outcome, seconds = measure(loaded, "wikitext2", windows)
    console.print(
        f"WikiText2 perplexity, first {windows} windows of {WINDOW}: {outcome.value:.4f} in {seconds:.1f} s "
        f"({outcome.data_revision})"
    )


def scores(outcome: Outcome, peer_outcome: dict[str, Any]) -> list[str]:
    """acc and acc_norm of both sides, and how many items only one of them has right."""
    norm = next((f"{part.value:.2f}" for part in outcome.parts), "")
    peer_norm = f"{100 * peer_outcome['acc_norm']:.2f}" if "acc_norm" in peer_outcome else ""
    differing = sum(output.score != right for output, right in zip(outcome.outputs, peer_outcome["right"], strict=True))
    return [f"{outcome.value:.2f}", f"{100 * peer_outcome['acc']:.2f}", norm, peer_norm, str(differing)]


def measure(loaded: Loaded, name: str, limit: int) -> tuple[Outcome, float]:
    """Our outcome, and the seconds it took."""
    spec = RunSpec(weights=MODEL, tasks=(name,), limit=limit, window=WINDOW)
    started = time.perf_counter()
    outcome = parse_task(name).measure(loaded, spec, Watch())
    return outcome, time.perf_counter() - started


class Peer:
    """lm-eval around the same model and rows."""

    def __init__(self, loaded: Loaded, folder: Path, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        self._model = HFLM(
            pretrained=loaded.model,
            tokenizer=loaded.tokenizer,
            batch_size=batch_size,
            max_length=2048,
            add_bos_token=False,
        )
        self._manager, self._folder = TaskManager(), folder

    def measure(self, name: str, limit: int) -> tuple[dict[str, Any], float]:
        """acc, acc_norm where there is one, and whether each item is right; and the seconds it took."""
        from lm_eval import evaluate

        task = self._task(name)
        started = time.perf_counter()
        result = evaluate(self._model, {name: task}, limit=limit, bootstrap_iters=0, log_samples=True)
        seconds = time.perf_counter() - started
        numbers = {key.partition(",")[0]: value for key, value in result["results"][name].items()}
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        return numbers | {"right": [sample["acc"] for sample in samples]}, seconds

    def _task(self, name: str) -> Any:
        """lm-eval's own task, with the rows of the local file."""
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

        (path,) = sources.local_files(parse_task(name).source, self._folder)
        split = "test" if name.startswith("arc") else "validation"
        config = load_yaml(self._manager.task_index[name].yaml_path)
        config |= {
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path)}},
            "training_split": None,
            "validation_split": split if split == "validation" else None,
            "test_split": split if split == "test" else None,
        }
        return ConfigurableTask(config=config | (ARC_ROWS if name.startswith("arc") else {}))


if __name__ == "__main__":
    main()
