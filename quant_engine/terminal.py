"""What the command line shows: lists, results, and progress while something runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from quant_engine import notation
from quant_engine.evaluate import TASKS, reads_windows
from quant_engine.evaluate.interim import number_text
from quant_engine.methods import METHODS
from quant_engine.models import catalog
from quant_engine.models.releases import RELEASES
from quant_engine.progress import Progress
from quant_engine.runs import folder
from quant_engine.spec import UserError

if TYPE_CHECKING:
    from quant_engine.answers.compare import SideAnswer
    from quant_engine.runs.paired import Comparison

Rows = tuple[list[str], list[list[str]]]


def _methods() -> Rows:
    rows = []
    for method in METHODS.values():
        card = method.card
        options = ", ".join(f"{name}={field.default}" for name, field in method.Options.model_fields.items())
        rows.append(
            [card.name, _widths(card.bits), card.headline, "yes" if card.calibrated else "no", card.idea, options]
        )
    return ["method", "bits", "headline bits", "calibrated", "idea", "options"], rows


def _widths(bits: tuple[float, ...]) -> str:
    """1-8 for whole runs, else one by one."""
    if len(bits) > 2 and list(bits) == list(range(int(bits[0]), int(bits[-1]) + 1)):
        return f"{bits[0]}-{bits[-1]}"
    return ", ".join(f"{width:g}" for width in bits)


def _models() -> Rows:
    rows = [
        [card.id, card.title, card.family, "here" if catalog.available(card) else card.origin, card.note]
        for card in catalog.MODELS.values()
    ]
    return ["model", "title", "type", "files", "note"], rows


def _releases() -> Rows:
    rows = [[release.repository, release.method, f"{release.w_bits:g}", release.taken_as] for release in RELEASES]
    return ["on the hub", "method", "bits", "taken as"], rows


def _tasks() -> Rows:
    rows = [[task.name, task.metric, "yes" if task.pictures else "no", task.help] for task in TASKS.values()]
    rows.append(["perplexity:FILE", "perplexity", "no", "Perplexity on a text file of your own; divergence:FILE too."])
    rows.append(["divergence:TASK", "KL divergence", "yes", "Divergence along the answers to a picture task."])
    rows.append(["TASK:bos", "accuracy", "no", "A multiple-choice task with a beginning-of-text token first."])
    return ["task", "metric", "pictures", "what it measures"], rows


def _runs() -> Rows:
    rows = []
    for path in folder.run_folders():
        try:
            run = folder.read(path)
        except UserError as error:
            rows.append([path.name, "", "", str(error)])
            continue
        numbers = ", ".join(f"{result.task} {notation.number(result.value)}" for result in run.results)
        rows.append([path.name, run.results[0].model, run.spec.weights.setting.label, numbers])
    return ["run", "model", "setting", "results"], rows


LISTS = {"methods": _methods, "models": _models, "checkpoints": _releases, "tasks": _tasks, "runs": _runs}


def results_table(run: folder.RunFolder) -> Table:
    """A run's numbers, one a row, under the model and its setting."""
    first = run.results[0]
    title = f"{first.model}, {run.spec.weights.setting.label}, {first.stored_bits:.4g} stored bits per weight"
    if reads_windows(run.spec.tasks):
        title += f", windows of {run.spec.window:,} tokens"
    table = Table("task", "metric", "value", "± error", "items", "status", title=title, title_justify="left")
    for result in run.results:
        error = "" if result.standard_error is None else notation.standard_error(result.standard_error)
        table.add_row(
            escape(result.task), result.metric, notation.number(result.value), error, str(result.items), result.status
        )
    return table


def answer_lines(answers: Sequence[SideAnswer]) -> Iterator[str]:
    """The answers of several settings, each under its setting and what it cost, with where it parts from FP16's."""
    for answer in answers:
        yield f"[bold]{escape(answer.setting.label)}[/bold] [dim]{escape(_costs(answer))}[/dim]"
        if answer.text or not answer.problem:
            yield f"  {escape(answer.text.strip())}"
        if answer.problem:
            yield f"  [red]{escape(answer.problem)}[/red]"
        if answer.parted:
            yield f"  [dim]{escape(answer.parted)}[/dim]"
        for number, shift in enumerate(answer.shifts, 1):
            choice = "" if shift.agrees else f"  first choice {_token(shift.choice)} {shift.choice_q:.1%}"
            numbers = f"{shift.p:6.1%} → {shift.q:6.1%}  KL {shift.divergence:.4f}"
            yield f"[dim]{escape(f'  {number:4} {_token(shift.text):16} {numbers}{choice}')}[/dim]"


def _costs(answer: SideAnswer) -> str:
    stats = answer.stats
    if stats is None:
        return ""
    rate = "" if stats.tokens_per_s is None else f", {stats.tokens_per_s:.1f} tokens/s"
    weights = f"weights {notation.size(stats.weight_bytes)}, {stats.describe_weights(answer.setting)}"
    return f"first token after {stats.ttft_s:.2f} s{rate}, {weights}"


def _token(text: str | None) -> str:
    return "(end)" if text is None else repr(text)


def comparison_table(a: folder.RunFolder, b: folder.RunFolder, rows: Sequence[Comparison]) -> Table:
    """Two runs side by side, one number a row."""
    title = f"{_title(a)} against {_title(b)}"
    table = Table(
        "task", "A", "B", "B - A", "95%", "p", "lost", "gained", "changed", "agree", "n", title=title,
        title_justify="left",
    )  # fmt: skip
    for row in rows:
        flips = row.flips
        table.add_row(
            escape(row.name),
            notation.number(row.a),
            notation.number(row.b),
            f"{row.difference:+.3g}{'*' if row.separable else ''}",
            f"{row.low:+.3g} to {row.high:+.3g}",
            "" if row.p is None else f"{row.p:.2g}",
            *(("", "", "") if flips is None else (str(flips.lost), str(flips.gained), str(flips.changed))),
            "" if row.agreement is None else f"{row.agreement:.1%}",
            str(row.units),
        )
    return table


def _title(run: folder.RunFolder) -> str:
    return f"{run.results[0].model}, {run.spec.weights.setting.label} ({run.path.name[:6]})"


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with stage, block and linear; the function it yields takes progress.Progress."""
    with progress_bars(console) as begin, begin("") as show:
        yield show


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str], AbstractContextManager[Callable[[Progress], None]]]]:
    """Progress bars one below the other: the function it yields begins one with a label, for as long as its context
    lasts. Any thread may call it."""
    bars = Bar(
        TextColumn("{task.fields[label]}"),
        TextColumn("[bold]{task.fields[stage]:<12}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )

    @contextmanager
    def begin(label: str) -> Iterator[Callable[[Progress], None]]:
        bar = bars.add_task("", total=1.0, stage="waiting", label=label)

        def show(progress: Progress) -> None:
            bars.update(bar, completed=progress.fraction, stage=progress.stage, description=_where(progress))

        try:
            yield show
        finally:
            bars.remove_task(bar)

    with Live(bars, console=console, transient=True, refresh_per_second=8):
        yield begin


def _where(progress: Progress) -> str:
    parts = []
    if progress.block:
        parts.append(f"block {progress.block}/{progress.blocks} {progress.linear or ''}".rstrip())
    if progress.output_error is not None:
        parts.append(f"output error {progress.output_error:.2%}")
    if progress.task:
        parts.append(progress.task + (f" {progress.item}/{progress.items}" if progress.items else ""))
    parts += [number_text(number) for number in progress.interims if number.title == progress.task]
    if progress.items_per_s:
        parts.append(f"{notation.number(progress.items_per_s)} items/s")
    return ", ".join([*parts, progress.message] if progress.message else parts)
