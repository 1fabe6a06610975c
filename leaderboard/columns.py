"""The table's columns: which task stands where, what it is called, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quant_engine import notation
from quant_engine.evaluate import parse_result_name

Group = Literal["Perplexity", "CommonSenseQA", "MMLU", "Pictures", "Blind votes", "Cost"]
GROUPS: tuple[Group, ...] = ("Perplexity", "CommonSenseQA", "MMLU", "Pictures", "Blind votes", "Cost")
COMMONSENSE = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")


@dataclass(frozen=True)
class Column:
    """One column of numbers. `task` is the result's task; costs and blind votes have no FP16 side to compare with.
    `digits` is the number of decimals; None keeps those that the source gives."""

    task: str
    title: str
    group: Group
    better: Literal["higher", "lower"]
    help: str
    digits: int | None = None

    @property
    def compared(self) -> bool:
        """Whether its numbers are compared with FP16's."""
        return self.group not in ("Cost", "Blind votes")

    @property
    def arrow(self) -> str:
        return "↑" if self.better == "higher" else "↓"

    def text(self, value: float, *, measured: bool) -> str:
        """How a number of the column is written. Measured perplexities have more digits than the study prints."""
        if not self.compared:
            return notation.cost(value, self.digits)
        precise = self.group == "Perplexity" or self.better == "lower"
        return notation.perplexity(value, measured=measured) if precise else notation.score(value)


def _perplexity(task: str, title: str, text: str = "") -> Column:
    return Column(task, title, "Perplexity", "lower", f"Perplexity on {text or title}. Lower is better.")


def _percent(task: str, title: str, group: Group, text: str) -> Column:
    return Column(task, title, group, "higher", f"{text} Higher is better.")


_KNOWN: tuple[Column, ...] = (
    _perplexity("wikitext2", "WikiText2"),
    _perplexity("c4", "C4"),
    _perplexity("c4-old", "C4 old", "C4, windows drawn from its validation file (GPTQ's first form)"),
    _perplexity("c4-new", "C4 new", "C4, the start of its validation file (the later form)"),
    _perplexity("ptb", "PTB", "Penn Treebank"),
    _perplexity("ptb-old", "PTB old", "Penn Treebank, validation split (GPTQ's first form)"),
    _perplexity("ptb-new", "PTB new", "Penn Treebank, test split (the later form)"),
    _perplexity("perplexity", "Built-in text", "the text that ships with the project"),
    _percent("piqa", "PIQA", "CommonSenseQA", "Accuracy in percent, zero-shot."),
    _percent("arc_easy", "ARC-e", "CommonSenseQA", "Accuracy in percent, zero-shot."),
    _percent("arc_challenge", "ARC-c", "CommonSenseQA", "Accuracy in percent, zero-shot."),
    _percent("hellaswag", "HellaSwag", "CommonSenseQA", "Accuracy in percent, zero-shot."),
    _percent("winogrande", "WinoGrande", "CommonSenseQA", "Accuracy in percent, zero-shot."),
    _percent("commonsense_avg", "Average", "CommonSenseQA", "Mean of the five tasks as the study prints it."),
    _percent("mmlu_humanities", "Humanities", "MMLU", "Accuracy in percent, 5-shot."),
    _percent("mmlu_stem", "STEM", "MMLU", "Accuracy in percent, 5-shot."),
    _percent("mmlu_social_sciences", "Social", "MMLU", "Social sciences: accuracy in percent, 5-shot."),
    _percent("mmlu_other", "Other", "MMLU", "Accuracy in percent, 5-shot."),
    _percent("mmlu", "All", "MMLU", "Accuracy in percent over all questions, 5-shot."),
    _percent("ai2d", "AI2D", "Pictures", "Diagrams: accuracy in percent."),
    _percent("chartqa", "ChartQA", "Pictures", "Charts: relaxed accuracy in percent (a number may be 5% off)."),
    _percent("docvqa", "DocVQA", "Pictures", "Documents: ANLS in percent."),
    _percent("mmbench_en", "MMBench", "Pictures", "Accuracy in percent, every rotation of the options right."),
    _percent("mme_cognition", "MME-C", "Pictures", "MME cognition: score out of 800."),
    _percent("mme_perception", "MME-P", "Pictures", "MME perception: score out of 2000."),
    Column(
        "told_apart",
        "Told apart",
        "Blind votes",
        "lower",
        "Share of blind votes on this machine that named the quantized answer, of answers that differ from FP16's; "
        "can't tell counts as half a right vote. 50% is chance. Shaded where the 95% interval leaves that out.",
        1,
    ),
    Column("stored_bits", "Bits stored", "Cost", "lower", "Bits per quantized weight, all side data counted.", 2),
    Column("quantization_memory_gb", "Quantize GB", "Cost", "lower", "Memory to quantize the model, in GB."),
    Column("quantization_time_min", "Quantize min", "Cost", "lower", "Time to quantize the model, in minutes."),
    Column("finetuning_memory_gb", "Tune GB", "Cost", "lower", "Memory to fine-tune the model, in GB."),
    Column("finetuning_time_hour", "Tune h", "Cost", "lower", "Time to fine-tune the model, in hours."),
    Column("decode_tokens_per_s", "Tokens/s", "Cost", "higher", "Decoding speed in tokens per second."),
    Column("peak_memory", "Peak GB", "Cost", "lower", "Highest memory of the run's process, in GB.", 2),
    Column("duration", "Measure min", "Cost", "lower", "Time to measure all the run's tasks, in minutes.", 1),
)
KNOWN: dict[str, Column] = {column.task: column for column in _KNOWN}
HEADLINES = ("mmbench_en", "wikitext2", "perplexity", "mmlu")
_ORDER = {column.task: index for index, column in enumerate(_KNOWN)}


def column_of(task: str) -> Column:
    """The column of a task: the study's, else one made from what the engine's task says of itself."""
    if task in KNOWN:
        return KNOWN[task]
    if task.startswith("perplexity:"):
        name = Path(task.removeprefix("perplexity:").rpartition("@")[0] or task).name
        return _perplexity(task, name)
    engine_task = parse_result_name(task)
    if engine_task:
        measure, suffix = engine_task
        group: Group = "Pictures" if measure.pictures else "CommonSenseQA"
        if not measure.pictures and not measure.higher_is_better:
            group = "Perplexity"
        title = f"{measure.title}, {measure.parts[suffix].title}" if suffix else measure.title
        return Column(task, title, group, "higher" if measure.higher(suffix) else "lower", measure.help)
    return Column(task, task, "CommonSenseQA", "higher", "")


def headline(columns: Sequence[Column], filled: Sequence[int], task: str | None = None) -> Column | None:
    """The score that ranks settings: that of `task` if there is one, else the one that says most and is not rare; None
    if there is no score. `filled` [columns] is how many settings have each; half of the most is not rare.

    Not the mean of tasks: the study's has rows that were scored otherwise.
    """
    scores = {column.task: (column, count) for column, count in zip(columns, filled, strict=True) if column.compared}
    if task in scores:
        return scores[task][0]
    candidates = [scores[name] for name in HEADLINES if name in scores] or list(scores.values())
    most = max((count for _, count in candidates), default=0)
    return next((column for column, count in candidates if 2 * count >= most), None)


def ordered(tasks: list[str]) -> list[Column]:
    """The columns of some tasks as they stand in the table: by group, the study's order first, then by name."""
    columns = [column_of(task) for task in dict.fromkeys(tasks)]
    return sorted(
        columns, key=lambda column: (GROUPS.index(column.group), _ORDER.get(column.task, len(_ORDER)), column.title)
    )
