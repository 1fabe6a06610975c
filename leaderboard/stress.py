"""A picture made worse step by step, and which setting changes its answer first."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd
from PIL import Image, ImageFilter

from leaderboard.plot import Figure, names_axis
from quant_engine.answers.parting import short_answer

UNTOUCHED = "untouched"
Answers = Mapping[str, Sequence[str | None]]
"""The answers of each setting to the untouched picture and at each strength so far; None where there is none."""


@dataclass(frozen=True)
class Stress:
    """A way to make a picture worse, `apply(picture, strength)`, with its strengths from weak to strong and how they
    are written. `explanation` says what is done."""

    title: str
    explanation: str
    strengths: tuple[float, ...]
    write: Callable[[float], str]
    apply: Callable[[Image.Image, float], Image.Image]

    @property
    def labels(self) -> list[str]:
        """The strengths as they are written, after the untouched picture."""
        return [UNTOUCHED, *map(self.write, self.strengths)]


def _downscale(picture: Image.Image, parts: float) -> Image.Image:
    """Scaled down and up again: the model sees a picture of the same size, with what is left in it."""
    small = [max(1, round(side / parts)) for side in picture.size]
    return picture.resize(small, Image.Resampling.LANCZOS).resize(picture.size, Image.Resampling.BICUBIC)


def _blur(picture: Image.Image, percent: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) * percent / 100))


def _compress(picture: Image.Image, quality: float) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _crop(picture: Image.Image, percent: float) -> Image.Image:
    """The middle of the picture, so many percent of each side."""
    width, height = (max(1, round(side * percent / 100)) for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


STRESSES: dict[str, Stress] = {
    "downscaling": Stress(
        "Downscaling",
        "scaled down and up again",
        (2, 3, 4, 6, 8),
        lambda parts: f"1/{parts:g}",
        _downscale,
    ),
    "blur": Stress(
        "Blur", "blurred, by a share of its longer side", (0.25, 0.5, 1, 2, 4), lambda share: f"{share:g}%", _blur
    ),
    "jpeg": Stress(
        "JPEG quality", "compressed as JPEG", (50, 25, 10, 5, 1), lambda quality: f"quality {quality:g}", _compress
    ),
    "crop": Stress("Crop", "cropped to so much of each side", (95, 85, 70, 55, 40), lambda share: f"{share:g}%", _crop),
}


def first_change(answers: Sequence[str | None]) -> int | None:
    """The index of the first strength at which a setting's short answer is another than to the untouched picture; None
    if it is the same at each, or if that is not known."""
    if not answers or answers[0] is None:
        return None
    own = short_answer(answers[0])
    changed = (index for index, text in enumerate(answers) if text is not None and short_answer(text) != own)
    return next(changed, None)


def finding(stress: Stress, answers: Answers) -> str:
    """Which setting changes its answer first, in a sentence."""
    changes = {setting: change for setting, texts in answers.items() if (change := first_change(texts)) is not None}
    asked = max((len(texts) for texts in answers.values()), default=0)
    if asked < 2:
        return ""
    if not changes:
        return f"{stress.title}: no setting changes its short answer up to {stress.labels[asked - 1]}."
    first = min(changes.values())
    earliest = [setting for setting, change in changes.items() if change == first]
    held = [setting for setting, texts in answers.items() if setting not in changes and texts and texts[0] is not None]
    rest = f"; {_listed(held)} {'keeps its' if len(held) == 1 else 'keep theirs'}" if held else ""
    verb = "changes its" if len(earliest) == 1 else "change their"
    return f"{stress.title}: {_listed(earliest)} {verb} short answer first, at {stress.labels[first]}{rest}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def figure(stress: Stress, answers: Answers) -> Figure:
    """For each setting a line as far as its answer holds, and a point for each answer, filled where it is another."""
    labels, lines = stress.labels, []
    points: dict[bool, list[tuple[str, str, str]]] = {False: [], True: []}
    for setting, texts in answers.items():
        own = short_answer(texts[0]) if texts and texts[0] is not None else None
        for label, text in zip(labels, texts, strict=False):
            if text is not None:
                is_other = own is not None and short_answer(text) != own
                points[is_other].append((label, setting, escape(text.strip()) or "no word"))
        change = first_change(texts)
        end = len(texts) - 1 if change is None else change - 1
        if own is not None:
            lines.append(_line(setting, labels[: end + 1]))
    data = [
        *lines,
        _points("same answer", points[False], {"symbol": "circle", "size": 9, "color": "var(--ink)"}),
        _points("another answer", points[True], {"symbol": "x", "size": 10, "color": "var(--loss)"}),
    ]
    layout = {
        "xaxis": {"type": "category", "categoryarray": labels, "range": [-0.4, len(labels) - 0.6], "fixedrange": True,
                  "title": {"text": f"picture {stress.explanation}"}, "automargin": True},
        "yaxis": names_axis() | {"categoryarray": list(answers), "range": [len(answers) - 0.5, -0.5]},
        "height": 130 + 36 * len(answers),
    }  # fmt: skip
    layout["yaxis"].pop("autorange")
    rows = [
        {"Setting": setting, **dict.fromkeys(labels), **dict(zip(labels, texts, strict=False))}
        for setting, texts in answers.items()
    ]
    title = "Whose answer changes first"
    return Figure("stress", title, finding(stress, answers), data, layout, pd.DataFrame(rows))


def _line(setting: str, labels: Sequence[str]) -> dict:
    return {
        "type": "scatter", "mode": "lines", "x": list(labels), "y": [setting] * len(labels), "hoverinfo": "skip",
        "showlegend": False, "line": {"color": "var(--ink)", "width": 3},
    }  # fmt: skip


def _points(name: str, points: Sequence[tuple[str, str, str]], marker: dict) -> dict:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": [label for label, _, _ in points],
        "y": [setting for _, setting, _ in points], "text": [text for _, _, text in points],
        "hovertemplate": "%{y}, %{x}<br>%{text}<extra></extra>", "marker": marker,
    }  # fmt: skip
