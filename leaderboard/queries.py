"""What a program asks of the table: the parameters of an address, every name and number checked.

The page ignores what it can't understand, so that an old link still opens. A program is refused in one sentence, with
the nearest name: it would take the answer to another question for its own. Names are read in any case, with blanks
around them, and by an engine's id as well as by the title that the table shows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from pydantic import ValidationError

from leaderboard import analysis, search
from leaderboard.analysis import MODES, STATUSES, TRACKS, Board, Choices, Query, Range
from leaderboard.store import method_name
from leaderboard.view import EVERY_MODEL, FIRST_MODEL, LISTS, PARTS, find_row, finite, part_of, row_key
from quant_engine.methods import METHODS
from quant_engine.models.catalog import MODELS
from quant_engine.spec import UserError, clean_text, quoted, sentence

ROW_FIELDS = {"model": "model", "method": "method", "source": "source", "w_bits": "w_bits", "bits": "w_bits",
              "group_size": "group_size", "group": "group_size"}  # fmt: skip
"""Fields of a row that a table can be sorted by, by the names that they have in addresses and answers."""
MOST_NAMES = 40
_PARAMETERS = (
    "model",
    "track",
    "show",
    *(name for name, *_ in LISTS),
    "stored",
    "size",
    "q",
    "sort",
    "pin",
    "row",
    "tab",
)
_PARTS = {f"{prefix}.": kind for prefix, (_, kind) in PARTS.items()}


def choose(what: str, given: str, names: Mapping[str, str] | Iterable[str], where: str = "") -> str:
    """The name that was meant, in any case, with blanks, hyphens and underscores left out or not.

    Args:
        what: What is named, such as "method".
        given: The name as it was written.
        names: The names that there are; or what each of them means, by name.
        where: A part of the sentence that says among what.

    Raises UserError with the nearest name for one that is not there.
    """
    meanings = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
    given = clean_text(given).strip()
    if given in meanings:
        return meanings[given]
    by_key = {_key(name): meaning for name, meaning in reversed(meanings.items())}
    if _key(given) in by_key:
        return by_key[_key(given)]
    close = difflib.get_close_matches(_key(given)[:200], by_key, n=1)
    hint = f" (did you mean {by_key[close[0]]}?)" if close else ""
    there = list(dict.fromkeys(meanings.values()))
    some = f"choose from: {', '.join(there)}" if 0 < len(there) <= MOST_NAMES else f"there are {len(there)} others"
    raise UserError(f"There is no {what} {quoted(given)}{where}{hint}; {some}.")


def choose_model(board: Board, model: str) -> str:
    """The model of the board that is meant, by its title or the engine's id. Raises UserError."""
    titles = analysis.models(board)
    ids = {name: card.title for name, card in MODELS.items() if card.title in titles}
    return choose("model", model, {title: title for title in titles} | ids)


def choose_row(board: Board, key: str) -> int:
    """The index of the row with a key. Raises UserError if there is none."""
    key = clean_text(key).strip()
    index = find_row(board, key)
    if index is None:
        keys = [row_key(row) for row in board.rows.to_dict("records")]
        index = find_row(board, choose("row", key, keys))
    return index


def parse_address(address: str) -> dict[str, str]:
    """The parameters of a link to the page, or of its query part. Raises UserError for names that mean nothing there,
    for those that are given twice, and for values that belong to other parts of the page and are none."""
    head, _, query = address.strip().partition("?")
    parameters = parse_qs(query if "://" in head or not head else address.strip(), keep_blank_values=True)
    known = [*_PARAMETERS, *(f"{prefix}{field}" for prefix, part in _PARTS.items() for field in part.model_fields)]
    for name, values in parameters.items():
        if name not in known and not name.startswith("__"):  # Gradio's own begin so
            choose("parameter", name, known, " in an address")
            raise UserError(f"Parameters of an address are written in small letters, not {quoted(name)}.")
        if len(values) > 1 and name != "pin":
            raise UserError(f"The address gives {name} {len(values)} times; give it once.")
    last = {name: values[-1] for name, values in parameters.items()}
    for prefix, part in _PARTS.items():
        try:
            part(**part_of(last, prefix))
        except ValidationError as error:
            raise UserError(prefix + sentence(error)) from None
    return last


def read_query(board: Board, parameters: Mapping[str, str]) -> Query:
    """The query of an address's parameters; an empty value is as if it were left out, and the track is then the model's
    first. Raises UserError, one sentence, for a name or number that the board does not have."""
    given = {name: text for name, text in parameters.items() if text.strip()}
    model, track = _model_and_track(board, given)
    there = analysis.choices(board, model, track)
    where = f" of {model or 'any model'} in track {track}"
    fields = {field: _read_list(name, given[name], there, where) for name, field, _ in LISTS if name in given}
    sort = given.get("sort", "").strip()
    if sort:
        columns = analysis.view(board, Query(model=model, track=track)).columns
        names = {name: column.task for column in columns for name in (column.task, column.title)} | ROW_FIELDS
        fields |= {"sort": choose("column", sort.removeprefix("-"), names, where), "reverse": sort.startswith("-")}
    if "show" in given:
        fields["mode"] = choose("way to show numbers", given["show"], MODES)
    if "q" in given:
        check_search(board, given["q"])
    try:
        return Query(
            model=model,
            track=track,
            search=given.get("q", ""),
            **{name: _read_range(name, given[name]) for name in ("stored", "size") if name in given},
            **fields,
        )
    except ValidationError as error:
        raise UserError(sentence(error)) from None


def check_search(board: Board, text: str) -> None:
    """Raises UserError for a term of a search that could find nothing: an unknown field, or a value that is none."""
    if len(text) > search.MOST_CHARACTERS:
        raise UserError(f"The search has {len(text):,} characters; shorten it to {search.MOST_CHARACTERS:,}.")
    tasks = {name.lower() for column in board.columns for name in (column.task, column.title)}
    fields = [*search.TEXT_FIELDS, *search.NUMBER_FIELDS, "status", *sorted(tasks)]
    for term in search.terms(clean_text(text)):
        if term.field and term.field not in fields:
            _refuse("field", term.field, fields)
        if term.field in search.TEXT_FIELDS:
            names = board.rows[search.TEXT_FIELDS[term.field]].dropna().astype(str).unique()
            for value in term.value.split(","):
                if not any(name.lower().startswith(value) for name in names):
                    _refuse(term.field, value, names)
        elif term.field == "status" and term.value not in STATUSES:
            _refuse("status", term.value, STATUSES)
        elif term.field and term.field != "status" and not search.is_condition(term):
            examples = f"{term.field}:4, {term.field}:<=4 or {term.field}:2-4"
            raise UserError(f"The search can't compare {term.field} with {quoted(term.value)}; write {examples}.")


def _refuse(what: str, word: str, names: Iterable[str]) -> None:
    """Raises UserError for a word of a search, in which names stand as the table writes them."""
    meant = choose(what, word, names, " to search for")
    raise UserError(f"There is no {what} {quoted(word)} to search for (did you mean {meant}?).")


def _model_and_track(board: Board, given: Mapping[str, str]) -> tuple[str | None, str]:
    model = given.get("model", FIRST_MODEL)
    model = None if _key(model) == EVERY_MODEL else choose_model(board, model)
    tracks = analysis.choices(board, model, "").tracks
    names = {track: track for track in tracks} | {TRACKS[track]: track for track in tracks}
    where = f" of {model or 'any model'}"
    return model, choose("track", given["track"], names, where) if "track" in given else next(iter(tracks), "")


def _read_list(name: str, text: str, there: Choices, where: str) -> tuple:
    """The values of a parameter with commas that narrows the table, each of them there."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if name in ("bits", "abits", "group"):
        numbers = {"bits": there.bits, "abits": there.a_bits, "group": there.groups}[name]
        return tuple(_choose_number(name, part, numbers, where) for part in parts)
    if name == "method":
        ids = {method: method_name(method) for method in METHODS if method_name(method) in there.methods}
        return tuple(choose("method", part, {title: title for title in there.methods} | ids, where) for part in parts)
    names = {"source": there.sources, "status": STATUSES, "columns": there.columns}[name]
    return tuple(choose({"columns": "group of columns"}.get(name, name), part, names, where) for part in parts)


def _choose_number(name: str, text: str, numbers: Iterable[float], where: str) -> float:
    per_row = name == "group" and _key(text) in map(_key, search.PER_ROW_WORDS)
    try:
        number = 0 if per_row else finite(text)
    except ValueError:
        raise UserError(f"{name} takes numbers with commas between them, not {quoted(text)}.") from None
    if number not in numbers:
        listed = ", ".join(f"{other:g}" for other in numbers)
        raise UserError(f"There is no row with {name} {number:g}{where}; choose from: {listed}.")
    return int(number) if name == "group" else number


def _read_range(name: str, text: str) -> Range:
    least, dots, most = text.partition("..")
    try:
        bounds = tuple(finite(bound) if bound.strip() else None for bound in (least, most))
    except ValueError:
        dots = ""
    if not dots:
        raise UserError(f"{name} takes a range such as 2.5..4, 3.. or ..6, not {quoted(text)}.")
    return bounds


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())
