"""What lm-eval measures of a task, for benchmarks/evaluation.py: run by the Python of lm-eval's own environment.

    PYTHON -I benchmarks/lm_eval_peer.py MODEL TASK ROWS [--limit 200] [--batch-size 16] [--threads 2]

MODEL is the folder of a model, read in float32, and ROWS a file of the task's split, plain or compressed. Prints a line
of JSON: acc, acc_norm where there is one, whether each item is right, and the seconds without those of loading.
With -I no file of this folder is taken for a library of its name.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from lm_eval import evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ARC_ROWS = {"doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
"""The local ARC files hold ready prompts; lm-eval's task has to read those fields."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("task")
    parser.add_argument("rows")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(given.model),
        batch_size=given.batch_size,
        max_length=2048,
        add_bos_token=False,
    )
    task = local_task(given.task, given.rows)
    evaluate(model, {given.task: task}, limit=2, bootstrap_iters=0)  # warms up
    started = time.perf_counter()
    result = evaluate(model, {given.task: task}, limit=given.limit, bootstrap_iters=0, log_samples=True)
    seconds = time.perf_counter() - started
    numbers = {key.partition(",")[0]: value for key, value in result["results"][given.task].items()}
    samples = sorted(result["samples"][given.task], key=lambda sample: sample["doc_id"])
    shown = {name: numbers[name] for name in ("acc", "acc_norm") if name in numbers}
    print(json.dumps(shown | {"right": [sample["acc"] for sample in samples], "seconds": seconds}))


def local_task(name: str, rows: str) -> Any:
    """lm-eval's own task, with the rows of a local file."""
    split = "test" if name.startswith("arc") else "validation"
    config = load_yaml(TaskManager().task_index[name].yaml_path)
    config |= {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: rows}},
        "training_split": None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
    }
    return ConfigurableTask(config=config | (ARC_ROWS if name.startswith("arc") else {}))


if __name__ == "__main__":
    main()
