"""Forms, receipts and small tables: lines of text, and questions as DocVQA asks them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from quant_engine.data.drawn.drawing import COLOURS, LARGEST, SIZES, Canvas, Drawing
from quant_engine.data.drawn.questions import Question, yes_no_pair
from quant_engine.data.drawn.words import (
    CITIES,
    DAYS,
    DEPARTMENTS,
    FORM_TITLES,
    HEADS,
    ITEMS,
    SHOPS,
    SHORT_CITIES,
    SHORT_ITEMS,
    STATES,
    code,
    date,
    digits,
    invented,
    listed,
    name,
    price,
)

Maker = Callable[[random.Random], str]

FIELDS: dict[str, Maker] = {
    "Name": name,
    "Client": name,
    "Owner": name,
    "Teacher": name,
    "City": lambda r: invented(r) if r.random() < 0.4 else r.choice(CITIES),
    "Origin": lambda r: r.choice(CITIES),
    "Branch": lambda r: r.choice(CITIES),
    "Street": lambda r: f"{invented(r)} {digits(r, 1, 2)}",
    "Date": date,
    "Deadline": date,
    "Code": code,
    "Order": lambda r: digits(r, 3, 6),
    "Room": lambda r: digits(r, 2, 3),
    "Phone": lambda r: f"{digits(r, 3, 3)}-{digits(r, 4, 4)}",
    "Age": lambda r: digits(r, 2, 2),
    "Seat": lambda r: digits(r, 1, 2) + r.choice("ABCDEF"),
    "Item": lambda r: invented(r) if r.random() < 0.4 else r.choice(ITEMS),
    "Amount": lambda r: digits(r, 1, 3),
    "Price": price,
    "Weight": lambda r: f"{digits(r, 1, 2)} kg",
    "Dept": lambda r: r.choice(DEPARTMENTS),
    "Brand": invented,
    "Day": lambda r: r.choice(DAYS),
    "Status": lambda r: r.choice(STATES),
}


@dataclass(frozen=True)
class Entry:
    """One thing that the page says: `value` stands beside `key`."""

    key: str
    value: str


def draw(rng: random.Random, shifted: bool = False) -> tuple[Drawing, list[Question]]:
    """A form (keys and values), a receipt (items and prices) or a table (rows and columns)."""
    kind = rng.choices(("form", "receipt", "table"), (55, 30, 15))[0]
    canvas = Canvas(rng, *rng.choice(SIZES), shifted)
    return {"form": _form, "receipt": _receipt, "table": _table}[kind](canvas)


# --------------------------------------------------------------------------------------------------------- forms


def _form(canvas: Canvas) -> tuple[Drawing, list[Question]]:
    rng = canvas.rng
    title, y = _title(canvas, FORM_TITLES)
    step = rng.uniform(32, 44)
    room = int((canvas.height - y - 6) / step)
    keys = rng.sample(list(FIELDS), rng.randint(2, min(room, 7)))
    entries = [Entry(key, FIELDS[key](rng)) for key in keys]
    in_columns, colon = rng.random() < 0.4, rng.choice((":", ":", ""))
    size = rng.randint(16, 20)
    left = rng.randint(8, 18)
    while size > 14 and max(canvas.text_width(f"{e.key}: {e.value}", size) for e in entries) > canvas.width - left - 12:
        size -= 1
    column = left + 12 + max(canvas.text_width(e.key + colon, size) for e in entries)
    boxed, value_font = rng.random() < 0.25, canvas.second_font
    for entry in entries:
        y += step / 2
        key = canvas.text(left, y, entry.key + colon, size)
        x = column if in_columns else left + canvas.text_width(entry.key + colon + "  ", size)
        if x + canvas.text_width(entry.value, size, value_font) > canvas.width - 4:
            value_font = canvas.font
        if boxed:
            canvas.draw.rectangle((x - 4, y - step * 0.4, canvas.width - 6, y + step * 0.4), outline=canvas.faint)
        value = canvas.text(x, y, entry.value, size, name=value_font)
        if " " not in entry.value:
            canvas.link(key, value)
        y += step / 2
    canvas.count = len(entries)
    return canvas.finish(), _ask_form(rng, title, entries)


def _ask_form(rng: random.Random, title: str | None, entries: list[Entry]) -> list[Question]:
    caption = listed([f"{e.key.lower()} {e.value}" for e in entries])
    document = title.lower() if title else "form"
    text = rng.choice(("Describe the picture.", "What does the document say?", "What is written here?"))
    questions = [Question("caption", text, f"The {document} says: {caption}.")]
    questions += _title_question(rng, title)
    for entry in entries:
        key = entry.key.lower()
        text = rng.choice((
            "What is the {}?", "What is the {} in the document?", "What does the {} field say?", "Which {} is given?",
        ))  # fmt: skip
        wrong = tuple(sorted({FIELDS[entry.key](rng) for _ in range(6)} - {entry.value}))
        questions.append(Question("field", text.format(key), entry.value, f"The {key} is {entry.value}.", wrong))
    entry = rng.choice(entries)
    false = next(v for v in iter(lambda: FIELDS[entry.key](rng), "") if v != entry.value)
    questions += yes_no_pair(rng, "text", f"Is the {entry.key.lower()} {{}}?", entry.value, false)
    absent = rng.choice([k for k in FIELDS if k not in {e.key for e in entries}])
    template = "Does the document have a field called {}?"
    questions += yes_no_pair(rng, "existence", template, entry.key, absent)
    return questions


# ------------------------------------------------------------------------------------------------------ receipts


def _receipt(canvas: Canvas) -> tuple[Drawing, list[Question]]:
    rng = canvas.rng
    title, y = _title(canvas, SHOPS)
    step = rng.uniform(30, 40)
    room = int((canvas.height - y - 10) / step) - 1
    whole = rng.random() < 0.5
    items = rng.sample(ITEMS, rng.randint(2, min(room, 6)))
    cents = [100 * rng.randint(1, 30) if whole else rng.randint(4, 120) * 25 for _ in items]
    entries = [Entry(i, _money(c, whole)) for i, c in zip(items, cents, strict=True)]
    total = Entry("Total", _money(sum(cents), whole))
    dearest = _dearest(entries)
    size, sign = rng.randint(16, 20), rng.choice(("", "", "$"))
    right = canvas.width - rng.randint(10, 24)
    for entry in (*entries, total):
        y += step / 2
        if entry is total:
            canvas.draw.line([(12, y - step / 2), (right, y - step / 2)], fill=canvas.ink, width=2)
            y += 3
        item = canvas.text(14, y, entry.key, size)
        canvas.link(item, canvas.text(right, y, sign + entry.value, size, anchor="r"))
        if entry is dearest:
            canvas.link(LARGEST, item)
        y += step / 2
    canvas.count = len(items)
    return canvas.finish(), _ask_receipt(rng, title, entries, total)


def _money(cents: int, whole: bool) -> str:
    return str(cents // 100) if whole else f"{cents / 100:.2f}"


def _dearest(entries: list[Entry]) -> Entry | None:
    first, second = sorted(entries, key=lambda e: -float(e.value))[:2]
    return first if first.value != second.value else None


def _ask_receipt(rng: random.Random, title: str | None, entries: list[Entry], total: Entry) -> list[Question]:
    lines = listed([f"{e.key.lower()} for {e.value}" for e in entries])
    text = rng.choice(("Describe the picture.", "What does the receipt list?", "What was bought?"))
    questions = [Question("caption", text, f"The receipt lists {lines}. The total is {total.value}.")]
    questions += _title_question(rng, title)
    prices = tuple(e.value for e in (*entries, total))
    for entry in entries:
        text = rng.choice(("How much is the {}?", "What is the price of the {}?", "How much does the {} cost?"))
        key = entry.key.lower()
        wrong = tuple(p for p in prices if p != entry.value)
        questions.append(Question("price", text.format(key), entry.value, f"The {key} costs {entry.value}.", wrong))
    text = rng.choice(("What is the total?", "What is the total amount?", "How much is the total?"))
    wrong = tuple(p for p in prices if p != total.value)
    questions.append(Question("total", text, total.value, f"The total is {total.value}.", wrong))
    count = len(entries)
    wrong = tuple(str(n) for n in range(1, 9) if n != count)
    questions.append(Question("count", "How many items are listed?", str(count), f"There are {count} items.", wrong))
    if dearest := _dearest(entries):
        wrong = tuple(e.key for e in entries if e is not dearest)
        sentence = f"The {dearest.key.lower()} costs the most, {dearest.value}."
        questions.append(Question("extreme", "Which item is the most expensive?", dearest.key, sentence, wrong))
    absent = rng.choice([i for i in ITEMS if i not in {e.key for e in entries}])
    questions += yes_no_pair(rng, "existence", "Is {} on the receipt?", rng.choice(entries).key, absent)
    false = rng.choice([p for p in prices if p != total.value])
    questions += yes_no_pair(rng, "calculation", "Is the total {}?", total.value, false)
    return questions


# -------------------------------------------------------------------------------------------------------- tables


def _table(canvas: Canvas) -> tuple[Drawing, list[Question]]:
    rng = canvas.rng
    columns = rng.randint(2, 3 if canvas.width > 288 else 2)
    rows = rng.randint(2, 4 if canvas.height == 288 else 6)
    heads = rng.sample(HEADS, columns)
    names = rng.sample(rng.choice((SHORT_ITEMS, SHORT_CITIES)), rows)
    cells = [[digits(rng, 1, 3) for _ in heads] for _ in names]
    size = rng.randint(16, 20)
    first, width = 90.0, (canvas.width - 98) / columns
    step = min(44.0, (canvas.height - 16) / (rows + 1))
    lined = rng.random() < 0.6
    above: list[int] = []
    for r, row in enumerate([heads, *cells]):
        y = 8 + (r + 0.5) * step
        if r:
            canvas.text(10, y, names[r - 1], size)
        for c, cell in enumerate(row):
            name = canvas.font if r else canvas.second_font
            run = canvas.text(first + (c + 0.5) * width, y, cell, size, anchor="m", name=name)
            if r:
                canvas.link(above[c], run)
            else:
                above.append(run)
        if lined:
            canvas.draw.line([(6, y + step / 2), (canvas.width - 6, y + step / 2)], fill=canvas.faint)
    canvas.count = rows
    return canvas.finish(), _ask_table(rng, heads, names, cells)


def _ask_table(rng: random.Random, heads: list[str], names: list[str], cells: list[list[str]]) -> list[Question]:
    text = rng.choice(("Describe the picture.", "What does the table show?"))
    questions = [Question("caption", text, f"The table shows {listed(heads)} for {listed(names)}.")]
    values = [cell for row in cells for cell in row]
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            text = rng.choice(
                (f"What is the value of {names[r]} for {heads[c]}?", f"What is {heads[c]} for {names[r]}?")
            )
            wrong = tuple(v for v in values if v != cell)
            sentence = f"The value of {names[r]} for {heads[c]} is {cell}."
            questions.append(Question("cell", text, cell, sentence, wrong))
    count = len(names)
    text = "How many rows does the table have below its heading?"
    wrong = tuple(str(n) for n in range(1, 9) if n != count)
    questions.append(Question("count", text, str(count), f"The table has {count} rows.", wrong))
    absent = rng.choice([i for i in (*SHORT_ITEMS, *SHORT_CITIES) if i not in names])
    questions += yes_no_pair(rng, "existence", "Does the table have a row called {}?", rng.choice(names), absent)
    return questions


# --------------------------------------------------------------------------------------------------------- titles


def _title(canvas: Canvas, titles: tuple[str, ...]) -> tuple[str | None, float]:
    """Perhaps a title, plain or on a coloured band; returns it and the y below it."""
    rng = canvas.rng
    if rng.random() < 0.25:
        return None, rng.uniform(6, 20)
    title, size = rng.choice(titles), rng.randint(18, 22)
    ink = canvas.ink
    if rng.random() < 0.3:
        colour = rng.choice(list(COLOURS))
        canvas.rectangle((0, 0, canvas.width, 16 + size), colour)
        ink = (0, 0, 0) if sum(canvas.palette[colour]) > 380 else (255, 255, 255)
    x, anchor = (canvas.width / 2, "m") if rng.random() < 0.6 else (12, "l")
    canvas.text(x, 8 + size / 2, title, size, anchor=anchor, ink=ink, name=canvas.second_font)
    return title, 22.0 + size


def _title_question(rng: random.Random, title: str | None) -> list[Question]:
    if title is None:
        return []
    text = rng.choice(("What is the title?", "What is the heading of the document?", "What does the heading say?"))
    wrong = tuple(t for t in (*FORM_TITLES, *SHOPS) if t != title)
    return [Question("title", text, title, f"The title is {title}.", wrong)]
