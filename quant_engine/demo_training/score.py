"""How well a composed model answers held-out pictures, and the same questions about blank ones.

Prompts and scores are those of the demo tasks that everyone can run; only the split and the blank pictures are extra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from quant_engine.data.drawn import suite
from quant_engine.data.drawn.pictures import Split
from quant_engine.evaluate import TASKS, Watch
from quant_engine.evaluate.task import mean_and_error
from quant_engine.models import catalog, decode
from quant_engine.models.load import Loaded, load_dense
from quant_engine.spec import RunSpec, WeightSpec

WINDOWS = 16
"""The windows of 512 tokens that perplexity is measured on."""


@dataclass(frozen=True)
class Score:
    """One task on one split. `value` and `error` (its standard error, None if not known) are its number, over `items`.

    `right` is the percentage of single questions scored right (partly right ones count in part), over `questions`.
    """

    task: str
    metric: str
    split: str
    pictures: str  # "drawn" or "blank"
    items: int
    value: float
    error: float | None
    questions: int
    right: float
    right_error: float
    kinds: dict[str, tuple[float, int]]  # percentage right and number of questions of each kind


def load(folder: Path, device: torch.device, dtype: str = "float32") -> Loaded:
    """The composed model in `folder`."""
    return load_dense(catalog.model_card(str(folder)), None, dtype, device.type)


def score(loaded: Loaded, name: str, count: int, split: Split = "test", *, blank: bool = False) -> list[Score]:
    """Score about `count` questions: the task's number, then those of its parts. With `blank`, pictures are white."""
    task = TASKS[name]
    count = count // 4 if name == "demo-mmbench" else count  # of which each is asked in all rotations
    outputs = []
    for item in suite.items(name, count, split):
        question = task.question(item)
        image = question.picture()
        if blank:
            image = Image.new("RGB", image.size, "white")
        answer = decode.answer_text(loaded, image, question.prompt, task.most_tokens)
        outputs.append(task.output(question, answer))
    outcome = task.conclude(outputs, suite.revision(name))
    scores = []
    for number in (outcome, *outcome.parts):
        half = getattr(number, "name", name)
        scored = [o for o in outputs if half == name or half.endswith("cognition") == (o.category in suite.COGNITION)]
        mean, error = mean_and_error([100 * o.score for o in scored])
        of_kind: dict[str, list[float]] = {}
        for output in scored:
            of_kind.setdefault(output.category, []).append(100 * output.score)
        scores.append(
            Score(
                half,
                getattr(number, "metric", task.metric),
                split,
                "blank" if blank else "drawn",
                number.items,
                number.value if number.value is not None else math.nan,
                number.standard_error,
                len(scored),
                mean,
                error or 0.0,
                {kind: (sum(values) / len(values), len(values)) for kind, values in sorted(of_kind.items())},
            )
        )
    return scores


def perplexity(loaded: Loaded) -> float:
    """Perplexity of a model's language part on the built-in public-domain prose that training never sees."""
    spec = RunSpec(weights=WeightSpec(model=loaded.card.id), tasks=("perplexity",), limit=WINDOWS, window=512)
    return TASKS["perplexity"].measure(loaded, spec, Watch()).value


def speed(loaded: Loaded) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it, for one picture of 288 x 288."""
    image = suite.items("demo-chartqa", 1)[0].image().resize((288, 288))
    decode.answer_text(loaded, image, "Describe the chart.", 1)
    *_, last = decode.answer(loaded, image, "Describe the chart, and then say all that you know about it.", 33)
    return last.stats.ttft_s, last.stats.tokens_per_s or 0.0
