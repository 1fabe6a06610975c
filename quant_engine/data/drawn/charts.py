"""Charts: bars, grouped bars, lines and pies with labels and values, and questions as ChartQA asks them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from quant_engine.data.drawn.drawing import COLOURS, LARGEST, SMALLEST, Canvas, Drawing
from quant_engine.data.drawn.questions import Question, yes_no_pair
from quant_engine.data.drawn.words import DAYS, HEADS, MONTHS, SHORT_CITIES, SHORT_ITEMS, TITLES, listed, other_numbers


@dataclass(frozen=True)
class Series:
    """What a chart shows: one value and one colour for each label. `mark` is "bar", "point" or "slice"."""

    mark: str
    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[str, ...]
    unit: str = ""

    def value(self, index: int) -> str:
        return f"{self.values[index]}{self.unit}"

    def other_values(self, index: int) -> tuple[str, ...]:
        return tuple(self.value(i) for i in range(len(self.labels)) if i != index)

    def other_labels(self, index: int) -> tuple[str, ...]:
        return tuple(label for i, label in enumerate(self.labels) if i != index)


@dataclass(frozen=True)
class Groups:
    """Two or three bars for each label, one of each series: `values[series][label]`."""

    title: str
    labels: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    colours: tuple[str, ...]


def draw(rng: random.Random, shifted: bool = False) -> tuple[Drawing, list[Question]]:
    """A bar chart (upright, lying or grouped), a line chart or a pie chart with two to six labels."""
    kind = rng.choices(("bars", "lying bars", "grouped bars", "line", "pie"), (35, 20, 10, 15, 20))[0]
    wide = (rng.random() < 0.1 and kind != "pie") or kind == "grouped bars"
    canvas = Canvas(rng, 576 if wide else 288, 288, shifted)
    if kind == "grouped bars":
        groups = _groups(rng)
        _grouped_bars(canvas, groups)
        canvas.count = len(groups.labels)
        return canvas.finish(), _ask_groups(rng, groups)
    count = rng.randint(3, 6 if wide else 5)
    labels = _labels(rng, count, ordered=kind == "line")
    if kind == "pie":
        values = _shares(rng, count)
    else:
        top = rng.choice((20, 50, 100, 100, 200, 900))
        values = rng.sample(range(max(1, top // 12), top), count)
    single_colour = rng.random() < 0.2 or kind == "line"
    if single_colour and kind != "pie":
        colours = [rng.choice(list(COLOURS))] * count
    else:
        colours = rng.sample(list(COLOURS), count)
    mark = {"line": "point", "pie": "slice"}.get(kind, "bar")
    series = Series(mark, rng.choice(TITLES), labels, tuple(values), tuple(colours), "%" if kind == "pie" else "")
    {"bars": _bars, "lying bars": _lying_bars, "line": _line, "pie": _pie}[kind](canvas, series)
    canvas.count = count
    return canvas.finish(), ask(rng, series)


def _labels(rng: random.Random, count: int, *, ordered: bool) -> tuple[str, ...]:
    if ordered or rng.random() < 0.35:
        if rng.random() < 0.5:
            start = rng.randint(1990, 2025 - count)
            return tuple(str(start + i) for i in range(count))
        names = rng.choice((MONTHS, DAYS))
        start = rng.randint(0, len(names) - count)
        return names[start : start + count]
    if rng.random() < 0.15:
        return tuple(rng.sample("ABCDEFGHKLMNPRSTXYZ", count))
    return tuple(rng.sample(rng.choice((SHORT_CITIES, SHORT_ITEMS)), count))


def _shares(rng: random.Random, count: int) -> list[int]:
    """Different whole percentages that add up to 100, none under 8."""
    while True:
        cuts = sorted(rng.sample(range(1, 100), count - 1))
        shares = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(shares) >= 8 and len(set(shares)) == count:
            return shares


# ------------------------------------------------------------------------------------------------------- drawing


def _heading(canvas: Canvas, series: Series) -> float:
    """Draw the title; returns the y from which the plot may start."""
    size = canvas.rng.randint(17, 21)
    if canvas.rng.random() < 0.7:
        canvas.text(canvas.width / 2, 8 + size / 2, series.title, size, anchor="m", name=canvas.second_font)
        return 14 + size
    return 10.0


def _fitting(canvas: Canvas, texts: tuple[str, ...], room: float) -> int:
    """A font size at which each text is narrower than `room` pixels: 20 or less, not under 13."""
    size = canvas.rng.randint(15, 19)
    while size > 13 and max(canvas.text_width(t, size) for t in texts) > room:
        size -= 1
    return size


def _tie(canvas: Canvas, series: Series, value: int, label: int, number: int) -> None:
    """A label leads to its number; the largest's and the smallest's are linked to those roles."""
    canvas.link(label, number)
    for role, extreme in ((LARGEST, max(series.values)), (SMALLEST, min(series.values))):
        if value == extreme:
            canvas.link(role, label)


def _bars(canvas: Canvas, series: Series) -> None:
    rng, top = canvas.rng, _heading(canvas, series) + 22
    left, right, base = 18, canvas.width - 8, canvas.height - 32
    slot = (right - left) / len(series.labels)
    bar = slot * rng.uniform(0.45, 0.8)
    size = _fitting(canvas, series.labels, slot - 3)
    value_size = _fitting(canvas, tuple(map(str, series.values)), slot - 3)
    if rng.random() < 0.4:
        for y in range(int(top), base, 32):
            canvas.draw.line([(left, y), (right, y)], fill=canvas.faint)
    canvas.draw.line([(left, top - 10), (left, base), (right, base)], fill=canvas.ink, width=rng.randint(1, 2))
    for i, (label, value, colour) in enumerate(zip(series.labels, series.values, series.colours, strict=True)):
        x = left + (i + 0.5) * slot
        y = base - (base - top) * value / max(series.values)
        canvas.rectangle((x - bar / 2, y, x + bar / 2, base - 1), colour)
        number = canvas.text(x, y - 10, str(value), value_size, anchor="m")
        _tie(canvas, series, value, canvas.text(x, base + 15, label, size, anchor="m"), number)


def _lying_bars(canvas: Canvas, series: Series) -> None:
    rng, top = canvas.rng, _heading(canvas, series) + 4
    size = _fitting(canvas, series.labels, 72)
    left = 12 + max(canvas.text_width(t, size) for t in series.labels)
    right, bottom = canvas.width - 44, canvas.height - 8
    slot = (bottom - top) / len(series.labels)
    bar = min(34.0, slot * rng.uniform(0.45, 0.75))
    canvas.draw.line([(left, top), (left, bottom)], fill=canvas.ink, width=rng.randint(1, 2))
    for i, (label, value, colour) in enumerate(zip(series.labels, series.values, series.colours, strict=True)):
        y = top + (i + 0.5) * slot
        x = left + (right - left) * value / max(series.values)
        canvas.rectangle((left + 1, y - bar / 2, x, y + bar / 2), colour)
        number = canvas.text(x + 5, y, str(value), size)
        _tie(canvas, series, value, canvas.text(left - 6, y, label, size, anchor="r"), number)


def _line(canvas: Canvas, series: Series) -> None:
    rng, top = canvas.rng, _heading(canvas, series) + 24
    left, right, base = 16, canvas.width - 8, canvas.height - 32
    slot = (right - left) / len(series.labels)
    size = _fitting(canvas, series.labels, slot - 2)
    canvas.draw.line([(left, top - 10), (left, base), (right, base)], fill=canvas.ink, width=rng.randint(1, 2))
    points = [
        (left + (i + 0.5) * slot, base - 12 - (base - 12 - top) * value / max(series.values))
        for i, value in enumerate(series.values)
    ]
    canvas.stroke(points, series.colours[0], 3)
    for (x, y), label, value in zip(points, series.labels, series.values, strict=True):
        canvas.ellipse((x - 5, y - 5, x + 5, y + 5), series.colours[0])
        number = canvas.text(x, y - 16, str(value), size, anchor="m")
        _tie(canvas, series, value, canvas.text(x, base + 15, label, size, anchor="m"), number)


def _pie(canvas: Canvas, series: Series) -> None:
    """Shares are written in the slices, labels in a legend with the slices' colours."""
    top = _heading(canvas, series)
    size = _fitting(canvas, series.labels, 72)
    radius = min(82.0, (canvas.height - top) / 2 - 8)
    x, y = 10 + radius, top + (canvas.height - top) / 2
    angle, numbers = float(canvas.rng.randint(0, 359)), []
    for share, colour in zip(series.values, series.colours, strict=True):
        end = angle + 3.6 * share
        canvas.slice((x - radius, y - radius, x + radius, y + radius), angle, end, colour)
        middle = math.radians((angle + end) / 2)
        red, green, blue = canvas.palette[colour]
        ink = (0, 0, 0) if red + green + blue > 380 else (255, 255, 255)
        cx, cy = x + 0.66 * radius * math.cos(middle), y + 0.66 * radius * math.sin(middle)
        numbers.append(canvas.text(cx, cy, f"{share}%", min(size, 17), anchor="m", ink=ink))
        angle = end
    step = min(30.0, (canvas.height - top - 20) / len(series.labels))
    first = y - step * (len(series.labels) - 1) / 2
    for i, (label, colour) in enumerate(zip(series.labels, series.colours, strict=True)):
        row = first + i * step
        canvas.rectangle((188, row - 7, 202, row + 7), colour)
        _tie(canvas, series, series.values[i], canvas.text(208, row, label, size), numbers[i])


def _groups(rng: random.Random) -> Groups:
    series = tuple(rng.sample(HEADS, 2))
    labels = tuple(rng.sample(rng.choice((SHORT_CITIES, SHORT_ITEMS)), rng.randint(2, 3)))
    top = rng.choice((20, 100, 100, 900))
    values = rng.sample(range(max(1, top // 12), top), len(series) * len(labels))
    rows = tuple(tuple(values[i * len(labels) : (i + 1) * len(labels)]) for i in range(len(series)))
    return Groups(rng.choice(TITLES), labels, series, rows, tuple(rng.sample(list(COLOURS), len(series))))


def _grouped_bars(canvas: Canvas, groups: Groups) -> None:
    """Values stand over the bars, labels under the groups, and a legend with the series' colours at the right."""
    rng, size = canvas.rng, canvas.rng.randint(15, 18)
    canvas.text(canvas.width / 2, 16, groups.title, rng.randint(17, 21), anchor="m", name=canvas.second_font)
    top, base, left, right = 60, canvas.height - 32, 14, canvas.width - 84
    slot = (right - left) / len(groups.labels)
    bar = slot * rng.uniform(0.34, 0.42)
    highest = max(max(row) for row in groups.values)
    canvas.draw.line([(left, top - 16), (left, base), (right, base)], fill=canvas.ink, width=rng.randint(1, 2))
    for i, label in enumerate(groups.labels):
        middle = left + (i + 0.5) * slot
        below = canvas.text(middle, base + 15, label, size, anchor="m")
        for j, (row, colour) in enumerate(zip(groups.values, groups.colours, strict=True)):
            x = middle + (j - (len(groups.series) - 1) / 2) * bar * 1.08
            y = base - (base - top) * row[i] / highest
            canvas.rectangle((x - bar / 2, y, x + bar / 2, base - 1), colour)
            canvas.link(below, canvas.text(x, y - 10, str(row[i]), size, anchor="m"))
    for j, (name, colour) in enumerate(zip(groups.series, groups.colours, strict=True)):
        y = 90 + 32 * j
        canvas.rectangle((right + 12, y - 7, right + 26, y + 7), colour)
        canvas.text(right + 32, y, name, size)


# ----------------------------------------------------------------------------------------------------- questions


def _ask_groups(rng: random.Random, groups: Groups) -> list[Question]:
    text = rng.choice(("Describe the chart.", "Describe the picture.", "What does the chart show?"))
    caption = f"The bar chart shows {listed(list(groups.series))} for {listed(list(groups.labels))}."
    questions = [Question("caption", text, caption), *_group_values(rng, groups)]
    i = rng.randrange(len(groups.series))
    colour, wrong = groups.colours[i], tuple(c for c in COLOURS if c != groups.colours[i])
    text = rng.choice((f"What color are the bars of {groups.series[i]}?", f"What is the color of {groups.series[i]}?"))
    questions.append(Question("color", text, colour, f"The bars of {groups.series[i]} are {colour}.", wrong))
    count = len(groups.labels)
    sentence, wrong = f"There are {count} groups.", other_numbers(rng, count)
    questions.append(Question("count", "How many groups of bars are there?", str(count), sentence, wrong))
    label, row = rng.randrange(count), rng.randrange(len(groups.series))
    true, false = groups.values[row][label], groups.values[1 - row][label]
    template = f"Is the value of {groups.series[row]} for {groups.labels[label]} {{}}?"
    return questions + yes_no_pair(rng, "text", template, str(true), str(false))


def _group_values(rng: random.Random, groups: Groups) -> list[Question]:
    questions = []
    values = [str(value) for row in groups.values for value in row]
    for name, row in zip(groups.series, groups.values, strict=True):
        for label, number in zip(groups.labels, row, strict=True):
            value = str(number)
            text = rng.choice((f"What is the value of {name} for {label}?", f"What is {name} for {label}?"))
            sentence = f"The value of {name} for {label} is {value}."
            wrong = tuple(other for other in values if other != value)
            questions.append(Question("value", text, value, sentence, wrong))
    return questions


def ask(rng: random.Random, series: Series) -> list[Question]:
    """All questions about a chart of one series; the order in which they draw from `rng` is part of the suite."""
    order = sorted(range(len(series.labels)), key=lambda i: series.values[i])
    lowest, highest = order[0], order[-1]
    questions = [_caption(rng, series, lowest, highest), *_values(rng, series)]
    questions += _extremes(rng, series, highest, ("highest", "largest", "greatest"), "largest")
    questions += _extremes(rng, series, lowest, ("lowest", "smallest", "least"), "smallest")
    a, b = rng.sample(range(len(series.labels)), 2)
    larger, smaller = (a, b) if series.values[a] > series.values[b] else (b, a)
    questions += _comparisons(rng, series, larger, smaller, lowest)
    questions += yes_no_pair(rng, "text", f"Is the value of {series.labels[a]} {{}}?", series.value(a), series.value(b))
    mark, count = series.mark, len(series.labels)
    text = rng.choice((f"How many {mark}s are there?", f"How many {mark}s does the chart have?"))
    questions.append(Question("count", text, str(count), f"There are {count} {mark}s.", other_numbers(rng, count)))
    if mark != "point":
        questions += _colour_questions(rng, series)
    if series.unit == "":
        difference = series.values[larger] - series.values[smaller]
        text = f"What is the difference between {series.labels[larger]} and {series.labels[smaller]}?"
        questions.append(Question("difference", text, str(difference), None, other_numbers(rng, difference)))
    return questions


def _values(rng: random.Random, series: Series) -> list[Question]:
    questions = []
    for i, label in enumerate(series.labels):
        text = rng.choice((
            "What is the value of {}?", "What value does {} have?", "What is the value for {}?", "How much is {}?",
        ))  # fmt: skip
        value = series.value(i)
        sentence = f"The value of {label} is {value}."
        questions.append(Question("value", text.format(label), value, sentence, series.other_values(i)))
    return questions


def _extremes(rng: random.Random, series: Series, index: int, words: tuple[str, ...], adjective: str) -> list[Question]:
    """Which label has the largest (or smallest) value, the one at `index`, and what that value is."""
    label, value, word = series.labels[index], series.value(index), rng.choice(words)
    text = rng.choice((
        f"Which one has the {word} value?",
        f"Which label has the {word} value?",
        f"What is the label of the {word} {series.mark}?",
    ))  # fmt: skip
    sentence = f"{label} has the {adjective} value, {value}."
    value_sentence = f"The {word} value is {value}."
    return [
        Question("extreme", text, label, sentence, series.other_labels(index)),
        Question("extreme value", f"What is the {word} value?", value, value_sentence, series.other_values(index)),
    ]


def _comparisons(rng: random.Random, series: Series, larger: int, smaller: int, lowest: int) -> list[Question]:
    """Which of two labels has more; `larger`, `smaller` and `lowest` (of all) are indices of labels."""
    template = f"Is the value of {{}} greater than {series.value(smaller)}?"
    false = lowest if lowest != smaller else smaller
    questions = yes_no_pair(rng, "comparison", template, series.labels[larger], series.labels[false])
    template = f"Is {series.labels[larger]} {{}} than {series.labels[smaller]}?"
    return questions + yes_no_pair(rng, "comparison", template, "greater", "smaller")


def _colour_questions(rng: random.Random, series: Series) -> list[Question]:
    i = rng.randrange(len(series.labels))
    mark, label, colour = series.mark, series.labels[i], series.colours[i]
    wrong = tuple(c for c in COLOURS if c != colour)
    text = rng.choice((f"What color is the {mark} of {label}?", f"What is the color of {label}?"))
    questions = [Question("color", text, colour, f"The {mark} of {label} is {colour}.", wrong)]
    questions += yes_no_pair(rng, "color", f"Is the {mark} of {label} {{}}?", colour, rng.choice(wrong))
    if len(set(series.colours)) == len(series.colours):
        text = rng.choice((f"What is the value of the {colour} {mark}?", f"What value does the {colour} {mark} show?"))
        sentence = f"The {colour} {mark} shows {series.value(i)}."
        questions.append(Question("value by color", text, series.value(i), sentence, series.other_values(i)))
        text, sentence = f"Which label does the {colour} {mark} have?", f"The {colour} {mark} is {label}."
        questions.append(Question("label by color", text, label, sentence, series.other_labels(i)))
    return questions


def _caption(rng: random.Random, series: Series, lowest: int, highest: int) -> Question:
    text = rng.choice(
        ("Describe the chart.", "Describe the picture.", "What does the chart show?", "Summarize the chart.")
    )
    chart = {"bar": "bar chart", "point": "line chart", "slice": "pie chart"}[series.mark]
    most = f"{series.labels[highest]} is the largest at {series.value(highest)}"
    least = f"{series.labels[lowest]} is the smallest at {series.value(lowest)}"
    caption = f"The {chart} shows values for {listed(list(series.labels))}. {most} and {least}."
    return Question("caption", text, caption)
