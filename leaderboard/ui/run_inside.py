"""What the Explore tab shows of measured runs: errors and weights of one, and two of them item by item."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pandas as pd

from leaderboard import run_figures
from leaderboard.pictures import picture_of_item
from leaderboard.ui.chart import chart, table_html
from leaderboard.view import Explored
from quant_engine.evaluate import VisualQuestions, parse_result_name
from quant_engine.results import ItemOutput, LayerRecord
from quant_engine.runs import folder as run_folder
from quant_engine.runs import paired
from quant_engine.spec import UserError, clean_text

MOST_FLIPS = 40
PROMPT_LETTERS = 600
JS = """
lowbit.figures(element);
// A picture is asked for when it comes into view: a list of flips may have many.
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); show(entry.target); }
});
const show = async (frame) => {
  try {
    const picture = await server.item_picture(frame.dataset.run, frame.dataset.task, frame.dataset.item);
    if (picture.address) frame.replaceChildren(Object.assign(new Image(), { src: picture.address, alt: picture.text }));
    else frame.textContent = picture.text;
  } catch { frame.textContent = 'The picture could not be made.'; }
};
const watchPictures = () => { for (const frame of element.querySelectorAll('[data-item]')) observer.observe(frame); };
watchPictures();
watch('value', () => { lowbit.figures(element); watchPictures(); });
"""
CELL_JS = """
lowbit.figures(element);
element.addEventListener('pressed', (event) => trigger('cell', { linear: event.detail.text }));
watch('value', () => lowbit.figures(element));
"""


def layers(explored: Explored, label: str) -> str:
    """The error of each linear of the chosen run."""
    if not explored.run:
        return '<p class="hint">Choose a measured run to see the error of each of its linears.</p>'
    return chart(lambda: run_figures.layer_errors(_records(explored.run), label), "Error by layer")


def weights(explored: Explored) -> str:
    """The weights of the chosen linear, else of the one with the largest error; nothing without a run."""
    if not explored.run:
        return ""
    return chart(lambda: run_figures.weights(_records(explored.run), explored.linear), "Weights before and after")


def linears(run_id: str | None) -> list[tuple[str, str]]:
    """The linears of a run to choose from, as (what it is, key); none where they can't be read."""
    try:
        return run_figures.linears(_records(run_id)) if run_id else []
    except (UserError, OSError, ValueError):
        return []


def _existing_path(run_id: str) -> Path:
    """The folder of a run that is there. Raises UserError if it is not, or if `run_id` is no run id."""
    path = run_folder.run_path(run_id)
    if not path.is_dir():
        raise UserError(f"Run {run_id} is not on this machine (any more).")
    return path


def _records(run_id: str) -> list[LayerRecord]:
    return run_folder.read_layers(_existing_path(run_id))


def comparison(explored: Explored) -> str:
    """Run `against` beside `run`: every number with its interval, and the items whose score changed."""
    if not (explored.run and explored.against):
        return ""
    title = "Two runs, item by item"
    try:
        a, b = (run_folder.read(_existing_path(run_id)) for run_id in (explored.run, explored.against))
        comparisons = paired.compare(a, b)
        items = "".join(_flipped(task, a, b) for task in a.spec.tasks if task in b.spec.tasks)
    except (UserError, OSError, ValueError) as refusal:
        text = str(refusal) if isinstance(refusal, UserError) else "The items of these runs can't be read."
        return (
            f'<section class="figure"><header><h3>{title}</h3></header><p class="absent">{escape(text)}</p></section>'
        )
    clear = sum(comparison.separable for comparison in comparisons)
    finding = (
        f"{clear} of {len(comparisons)} differences {'is' if clear == 1 else 'are'} more than chance: the 95% interval "
        "leaves out zero, and p is below 0.05: McNemar's where items are right or wrong, that of random signs for "
        "other scores of which few differ."
    )
    return (
        f'<section class="figure"><header><h3>{title}</h3></header><p>{escape(finding)}</p>'
        f"{table_html(_table(comparisons))}{items}</section>"
    )


def _table(comparisons: list[paired.Comparison]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "Task": number.title,
                "First": round(number.a, 3),
                "Second": round(number.b, 3),
                "Difference": round(number.difference, 3),
                "95% interval": f"{number.low:.3g} … {number.high:.3g}",
                "p": "" if number.p is None else f"{number.p:.3g}",
                "Items": number.units,
                "Right → wrong": "" if number.flips is None else number.flips.lost,
                "Wrong → right": "" if number.flips is None else number.flips.gained,
                "Same answer": "" if number.agreement is None else f"{100 * number.agreement:.0f}%",
            }
            for number in comparisons
        ]
    )


def _flipped(task: str, a: run_folder.RunFolder, b: run_folder.RunFolder) -> str:
    """A task's items whose score differs, each with its picture, the question, the right answer, and both answers."""
    sides = paired.as_much_text(*(run_folder.read_items(run.path, task) for run in (a, b)))
    firsts = {(output.item, output.prompt): output for output in sides[0]}
    pairs = [(firsts.get((output.item, output.prompt)), output) for output in sides[1]]
    pairs = [(first, second) for first, second in pairs if first and first.score != second.score and second.gold]
    if not pairs:
        return ""
    parsed = parse_result_name(task)
    run_id = a.path.name if parsed and isinstance(parsed[0], VisualQuestions) else None
    items = "".join(_item(first, second, run_id, task) for first, second in pairs[:MOST_FLIPS])
    more = f" The first {MOST_FLIPS} are shown." if len(pairs) > MOST_FLIPS else ""
    count = f"{len(pairs)} item{'s' if len(pairs) > 1 else ''} of {escape(task)} scored otherwise."
    return f"<details><summary>{count}{more}</summary><ul class='flips'>{items}</ul></details>"


def _item(first: ItemOutput, second: ItemOutput, run_id: str | None, task: str) -> str:
    """A flipped item; `run_id` is the run to ask for its picture, None if it has none."""
    prompt = first.prompt if len(first.prompt) <= PROMPT_LETTERS else f"… {first.prompt[-PROMPT_LETTERS:]}"
    frame = (
        f'<figure data-run="{run_id}" data-task="{escape(task)}" data-item="{escape(first.item)}"></figure>'
        if run_id
        else ""
    )
    return (
        f"<li>{frame}<div><p>{escape(prompt)}</p><dl><div><dt>Right</dt><dd>{escape(' / '.join(first.gold))}</dd></div>"
        f"<div><dt>First, {first.score:g}</dt><dd>{escape(first.prediction)}</dd></div>"
        f"<div><dt>Second, {second.score:g}</dt><dd>{escape(second.prediction)}</dd></div></dl></div></li>"
    )


def item_picture(arguments: list[str]) -> dict[str, str]:
    """The picture of an item for the browser: its `address` (data:) and `text`; a sentence alone if there is none.

    `arguments` are run, task and item: several arguments of the browser come as one list.
    """
    try:
        match arguments:
            case [str(run_id), str(task), str(item)]:
                run = run_folder.read(_existing_path(clean_text(run_id)))
                return {
                    "address": picture_of_item(run, task, item),
                    "text": f"Picture of {clean_text(item)}",
                }
        raise UserError("There is no such picture.")
    except UserError as refusal:
        return {"address": "", "text": str(refusal)}
