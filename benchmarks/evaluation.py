"""Do our zero-shot scores agree with lm-eval's, and which is faster? And how fast are questions about pictures?

    python benchmarks/evaluation.py FOLDER [--limit 200] [--batch-size 16]
    python benchmarks/evaluation.py --suite 12 [--bits 4]

FOLDER holds the sets' files as LOWBIT_DATA does (piqa_val.jsonl.gz, arc_easy_test.jsonl.gz, …). Both sides get the same
model in memory (SmolLM2-135M-Instruct, float32), the same rows and the same prompts; tasks take turns, ours first and
second by turns. Needs the demo models (python -m quant_engine get demo) and lm-eval (pip install -e '.[peers]').

What makes the two comparable: no beginning-of-text token (add_bos_token=False; ours by default), acc from sums of
log-probabilities, the first rows of each file. What stays different: lm-eval tokenizes context and continuation
together, ours apart as the study did, and it normalizes acc_norm the same way. lm-eval gets `--batch-size` texts at a
time, sorted by length; ours has its own batches. Reading the rows is in neither time.

--suite asks the first questions of each demo task (pairs for MME, all rotations for MMBench) of the demo model, rounded
to nearest with --bits or unquantized without: in batches as runs do, and one by one as a visitor gets them, a picture's
questions in a row; by turns, and their answers must be the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data import sources
from quant_engine.data.drawn import suite
from quant_engine.evaluate import Outcome, Watch, parse_task
from quant_engine.evaluate.vqa import by_picture
from quant_engine.models import batch, decode
from quant_engine.models.load import Loaded
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

MODEL = WeightSpec(model="demo-llm")
TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")
ARC_ROWS = {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
"""The local ARC files hold ready prompts; lm-eval's task has to read those fields."""

PERPLEXITY_WINDOWS, WINDOW = 16, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--suite", type=int)
    parser.add_argument("--bits", type=int)
    arguments = parser.parse_args()
    if arguments.suite:
        measure_suite(arguments.suite, arguments.bits)
    if arguments.folder:
        os.environ["LOWBIT_DATA"] = str(arguments.folder.resolve())
        measure_likelihood(arguments.folder, arguments.limit, arguments.batch_size)


def measure_likelihood(folder: Path, limit: int, batch_size: int) -> None:
    """Zero-shot tasks beside lm-eval, and a perplexity."""
    loaded = weights.load(resolve_weights(MODEL), "float32", "cpu", Hooks())
    peer = Peer(loaded, folder, batch_size)
    for name in TASKS:
        parse_task(name).prepare()
    table = Table("task", *(Column(name, justify="right") for name in ("n", "acc", "acc_norm", "differ", "s", "ratio")))
    table.title = title(loaded)
    total, peer_total = 0.0, 0.0
    measure(loaded, "piqa", 2)  # warms up
    for index, name in enumerate(TASKS):
        if index % 2:
            outcome, seconds = measure(loaded, name, limit)
            peer_outcome, peer_seconds = peer.measure(name, limit)
        else:
            peer_outcome, peer_seconds = peer.measure(name, limit)
            outcome, seconds = measure(loaded, name, limit)
        total, peer_total = total + seconds, peer_total + peer_seconds
        (acc, norm), (peer_acc, peer_norm), differing = scores(outcome, peer_outcome)
        table.add_row(name, str(len(outcome.outputs)), acc, norm, "", f"{seconds:.1f}", "")
        ratio = f"{peer_seconds / seconds:.2f}"
        table.add_row("  lm-eval", "", peer_acc, peer_norm, str(differing), f"{peer_seconds:.1f}", ratio)
    table.add_row("all", "", "", "", "", f"{total:.1f}", "")
    table.add_row("  lm-eval", "", "", "", "", f"{peer_total:.1f}", f"{peer_total / total:.2f}")
    console = Console()
    console.print(table)
    windows = min(PERPLEXITY_WINDOWS, limit)
    outcome, seconds = measure(loaded, "wikitext2", windows)
    console.print(
        f"WikiText2 perplexity, first {windows} windows of {WINDOW}: {outcome.value:.4f} in {seconds:.1f} s "
        f"({outcome.data_revision})"
    )


def title(loaded: Loaded) -> str:
    return f"{hardware('cpu')}, {loaded.card.title}, float32"


def measure_suite(limit: int, bits: int | None) -> None:
    """Questions about drawn pictures, in batches and one by one."""
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64) if bits else QuantSetting()
    loaded = weights.load(resolve_weights(WeightSpec(model="demo", setting=setting)), "float32", "cpu", Hooks())
    columns = ("pictures", "items", "s", "one by one", "ratio", "items/s")
    table = Table("task", *(Column(name, justify="right") for name in columns))
    table.title = f"{title(loaded)}, {setting.label}"
    rows = []
    for index, name in enumerate(suite.TASKS):
        task = parse_task(name)
        asked = by_picture(task.questions(2 * limit if name == "demo-mme" else limit), ())
        sides = (in_batches, alone) if index % 2 else (alone, in_batches)
        results = {side: timed(lambda side=side: side(loaded, asked, task.most_tokens)) for side in sides}  # noqa: B023
        (answers, seconds), (answers_alone, seconds_alone) = results[in_batches], results[alone]
        if answers != answers_alone:
            raise SystemExit(f"{name}: the answers of a batch are not those of each question alone.")
        rows.append((name, len(asked), len(answers), seconds, seconds_alone))
    rows.append(("all", *(sum(row[column] for row in rows) for column in range(1, 5))))
    for name, pictures, items, seconds, seconds_alone in rows:
        times = (f"{seconds:.1f}", f"{seconds_alone:.1f}", f"{seconds_alone / seconds:.2f}", f"{items / seconds:.2f}")
        table.add_row(name, str(pictures), str(items), *times)
    Console().print(table)


def in_batches(loaded: Loaded, asked: list[batch.Asked], most_tokens: int) -> dict[int, str]:
    return {answered.index: answered.text for answered in batch.answers(loaded, asked, most_tokens)}


def alone(loaded: Loaded, asked: list[batch.Asked], most_tokens: int) -> dict[int, str]:
    texts = {}
    for group in asked:
        picture, cache = group.picture(), decode.PromptCache()
        for index, question in zip(group.indices, group.questions, strict=True):
            texts[index] = decode.answer_text(loaded, picture, question, most_tokens, cache)
    return texts


def timed(work: Callable[[], dict[int, str]]) -> tuple[dict[int, str], float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def scores(outcome: Outcome, peer_outcome: dict[str, Any]) -> tuple[tuple[str, str], tuple[str, str], int]:
    """acc and acc_norm of each side, and how many items only one of them has right."""
    norm = next((f"{part.value:.2f}" for part in outcome.parts), "")
    peer_norm = f"{100 * peer_outcome['acc_norm']:.2f}" if "acc_norm" in peer_outcome else ""
    differing = sum(output.score != right for output, right in zip(outcome.outputs, peer_outcome["right"], strict=True))
    return (f"{outcome.value:.2f}", norm), (f"{100 * peer_outcome['acc']:.2f}", peer_norm), differing


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
