"""Do our zero-shot scores agree with lm-eval's, and which is faster? And how fast are questions about pictures?

    python benchmarks/evaluation.py FOLDER [--peer PYTHON] [--limit 200] [--only piqa …] [--batch-size 16]
    python benchmarks/evaluation.py --suite 8 [--bits 4]

FOLDER holds the sets' files as LOWBIT_DATA does (piqa_val.jsonl.gz, arc_easy_test.jsonl.gz, …). PYTHON is that of an
environment which has lm-eval: `make peers`, then peers/bin/python.
Both sides get the same model (SmolLM2-135M-Instruct, float32), rows, prompts and number of threads, each
in a process of its own; tasks take turns, ours first and second by turns. Loading and reading rows are in neither time.
Needs the demo models (python -m quant_engine get demo).

What makes the two comparable: no beginning-of-text token (add_bos_token=False; ours by default), acc from sums of
log-probabilities, the first rows of each file. What stays different: lm-eval tokenizes context and continuation
together, ours apart as the study did, and it normalizes acc_norm the same way. lm-eval gets `--batch-size` texts at a
time, sorted by length; ours has its own batches.

--suite asks the first questions of each demo task (as many as a run with this limit) of the demo model, rounded to
nearest with --bits or unquantized without, in three ways: each question by itself with nothing shared; a picture's
questions in a row, as a visitor gets them, task by task; and as runs do, all tasks together and in batches. A few
pictures take turns, and all three must give the same answers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quant_engine.data import sources
from quant_engine.data.drawn import suite
from quant_engine.evaluate import Outcome, Watch, parse_task
from quant_engine.evaluate.vqa import by_picture
from quant_engine.failures import exits_plainly
from quant_engine.models import batch, decode
from quant_engine.models.load import Loaded
from quant_engine.progress import Hooks
from quant_engine.runs import weights
from quant_engine.runs.about import hardware
from quant_engine.runs.resolve import resolve_weights
from quant_engine.spec import QuantSetting, RunSpec, WeightSpec

MODEL = WeightSpec(model="demo-llm")
TASKS = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")
PEER = Path(__file__).with_name("lm_eval_peer.py")
TEXT, PERPLEXITY_WINDOWS, WINDOW = "wikitext2", 16, 1024
PICTURES_IN_TURN = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--peer", default="", help="the Python of an environment with lm-eval")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=(*TASKS, TEXT), default=(*TASKS, TEXT))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--suite", type=int)
    parser.add_argument("--bits", type=int)
    given = parser.parse_args()
    with exits_plainly("benchmark", "start it again"):
        if given.suite:
            measure_suite(given.suite, given.bits)
        if given.folder:
            os.environ["LOWBIT_DATA"] = str(given.folder.resolve())
            measure_likelihood(given)


def measure_likelihood(given: argparse.Namespace) -> None:
    """Zero-shot tasks beside lm-eval, and a perplexity."""
    for name in given.only:
        parse_task(name).prepare()
    loaded = weights.load(resolve_weights(MODEL), "float32", "cpu", Hooks())
    names = [name for name in given.only if name != TEXT]
    if names:
        measure_choices(loaded, names, given)
    if TEXT in given.only:
        windows = min(PERPLEXITY_WINDOWS, given.limit)
        outcome, seconds = measure(loaded, TEXT, windows)
        Console().print(
            f"WikiText2 perplexity, first {windows} windows of {WINDOW}: {outcome.value:.4f} in {seconds:.1f} s "
            f"({outcome.data_revision})"
        )


def measure_choices(loaded: Loaded, names: Sequence[str], given: argparse.Namespace) -> None:
    """A table of multiple-choice tasks, beside lm-eval's where that is asked for."""
    table = Table("task", *(Column(name, justify="right") for name in ("n", "acc", "acc_norm", "differ", "s", "ratio")))
    table.title = title(loaded)
    total, peer_total = 0.0, 0.0
    measure(loaded, names[0], 2)  # warms up
    for index, name in enumerate(names):
        sides: dict[str, Callable[[], Any]] = {"ours": lambda name=name: measure(loaded, name, given.limit)}
        if given.peer:
            sides["peer"] = lambda name=name: measure_peer(given, loaded.folder, name)
        results = {side: sides[side]() for side in sorted(sides, reverse=bool(index % 2))}
        outcome, seconds = results["ours"]
        total += seconds
        norm = next((f"{part.value:.2f}" for part in outcome.parts), "")
        table.add_row(name, str(len(outcome.outputs)), f"{outcome.value:.2f}", norm, "", f"{seconds:.1f}", "")
        if given.peer:
            peer = results["peer"]
            peer_total += peer["seconds"]
            table.add_row("  lm-eval", "", *peer_cells(outcome, peer), *times(seconds, peer["seconds"]))
    table.add_row("all", "", "", "", "", f"{total:.1f}", "")
    if given.peer:
        table.add_row("  lm-eval", "", "", "", "", *times(total, peer_total))
    Console().print(table)


def title(loaded: Loaded) -> str:
    return f"{hardware('cpu')}, {loaded.card.title}, float32"


def times(seconds: float, peer_seconds: float) -> tuple[str, str]:
    return f"{peer_seconds:.1f}", f"{peer_seconds / seconds:.2f}"


def peer_cells(outcome: Outcome, peer: dict[str, Any]) -> tuple[str, str, str]:
    """acc and acc_norm of lm-eval, and how many items only one side has right."""
    norm = f"{100 * peer['acc_norm']:.2f}" if outcome.parts else ""
    differing = sum(output.score != right for output, right in zip(outcome.outputs, peer["right"], strict=True))
    return f"{100 * peer['acc']:.2f}", norm, str(differing)


def measure(loaded: Loaded, name: str, limit: int) -> tuple[Outcome, float]:
    """Our outcome, and the seconds it took."""
    spec = RunSpec(weights=MODEL, tasks=(name,), limit=limit, window=WINDOW)
    started = time.perf_counter()
    outcome = parse_task(name).measure(loaded, spec, Watch())
    return outcome, time.perf_counter() - started


def measure_peer(given: argparse.Namespace, model: Path, name: str) -> dict[str, Any]:
    """lm-eval's acc, acc_norm, whether each item is right, and the seconds it took."""
    (rows,) = sources.local_files(parse_task(name).source, given.folder.resolve())
    options = {"--limit": given.limit, "--batch-size": given.batch_size, "--threads": torch.get_num_threads()}
    words = [str(word) for pair in options.items() for word in pair]
    command = [given.peer, "-I", str(PEER), str(model), name, str(rows), *words]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def measure_suite(limit: int, bits: int | None) -> None:
    """Questions about drawn pictures, in three ways."""
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64) if bits else QuantSetting()
    plan = resolve_weights(WeightSpec(model="demo", setting=setting))
    if bits:
        weights.quantize(plan, "cpu", Hooks())
    loaded = weights.load(plan, "float32", "cpu", Hooks())
    asked = [(task, question) for task in map(parse_task, suite.TASKS) for question in task.questions(limit)]
    groups = by_picture([question for _, question in asked], [task.most_tokens for task, _ in asked])
    task_of = [task.name for task, _ in asked]
    ways = {"each by itself": by_itself, "a picture's in a row": in_a_row, "as runs do": as_runs_do}
    seconds, read = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    list(batch.answers(loaded, groups[:1]))  # warms up
    for turn, start in enumerate(range(0, len(groups), PICTURES_IN_TURN)):
        some = groups[start : start + PICTURES_IN_TURN]
        found = {}
        for name in sorted(ways, reverse=bool(turn % 2)):
            started = time.perf_counter()
            found[name], pictures = ways[name](loaded, some, task_of)
            seconds[name] += time.perf_counter() - started
            read[name] += pictures
        if not all(answers == found["each by itself"] for answers in found.values()):
            raise SystemExit("The answers of one way are not those of another.")
    columns = ("pictures read", "items", "s", "items/s", "ratio")
    table = Table("asked", *(Column(name, justify="right") for name in columns))
    table.title = f"{title(loaded)}, {setting.label}"
    for name in ways:
        ratio = seconds["each by itself"] / seconds[name]
        rate = len(asked) / seconds[name]
        table.add_row(name, str(read[name]), str(len(asked)), f"{seconds[name]:.1f}", f"{rate:.2f}", f"{ratio:.2f}")
    Console().print(table)


Answers = tuple[dict[int, str], int]
"""Answers by the index of their question, and how many pictures were read for them."""


def by_itself(loaded: Loaded, groups: Sequence[batch.Asked], task_of: Sequence[str]) -> Answers:
    texts = {
        index: decode.answer_text(loaded, group.picture(), question, most)
        for group in groups
        for index, question, most in group.each
    }
    return texts, len(texts)


def in_a_row(loaded: Loaded, groups: Sequence[batch.Asked], task_of: Sequence[str]) -> Answers:
    texts, pictures = {}, 0
    for group in groups:
        for _, of_task in groupby(group.each, lambda each: task_of[each[0]]):
            picture, cache = group.picture(), decode.PromptCache()
            pictures += 1
            for index, question, most in of_task:
                texts[index] = decode.answer_text(loaded, picture, question, most, cache)
    return texts, pictures


def as_runs_do(loaded: Loaded, groups: Sequence[batch.Asked], task_of: Sequence[str]) -> Answers:
    return {answered.index: answered.text for answered in batch.answers(loaded, groups)}, len(groups)


if __name__ == "__main__":
    main()
