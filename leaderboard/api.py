"""What programs can ask of the page: typed functions, served as API endpoints and, where MCP is installed, as tools.

Each takes and gives plain JSON values, and raises UserError, one sentence, for what it can't answer. What the API page
and a tool's schema say of an argument is what the docstring says.
"""

from __future__ import annotations

import base64
import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, ValidationError, validate_call

from leaderboard import analysis, export, figures, fit, pictures, requests
from leaderboard.analysis import MODES, Board, Mode
from leaderboard.export import Format
from leaderboard.provenance import provenance_of
from leaderboard.queries import choose, choose_model, choose_row, parse_address, read_query
from leaderboard.store import Notes, method_name
from leaderboard.view import Explored, Fitted
from quant_engine.answers.client import AnswerService
from quant_engine.answers.compare import compare, read_settings, sweep_settings
from quant_engine.methods import METHODS
from quant_engine.spec import Text, UserError, sentence

Values = dict[str, Any]
"""A JSON object."""
NO_ROW = "No row matches all of this: leave out a filter or the search."


SLOW = ("ask_picture",)
"""The functions whose answers take longer than a page should wait: they stand in the queue."""


def endpoints(board: Callable[[], Board], notes: Notes, service: AnswerService) -> list[Callable[..., Values]]:
    """The functions, over the results that `board` gives at the time of each call, and the process that answers about
    pictures. They raise UserError alone."""
    answers = _Answers(board, notes, service)
    return [
        checked(function)
        for function in (
            answers.leaderboard,
            answers.export_view,
            answers.where_from,
            answers.what_fits,
            answers.cheapest_setting,
            answers.methods,
            answers.ask_picture,
        )
    ]


def checked(function: Callable[..., Values]) -> Callable[..., Values]:
    """A function of the API with arguments of any type checked: a number is text where text is asked for. Its docstring
    has one line for each argument, as Gradio reads it."""
    names = list(inspect.signature(function).parameters)
    checked = validate_call(function, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))

    @wraps(function)
    def answer(*arguments: Any, **named: Any) -> Values:
        if len(arguments) > len(names):
            raise UserError(f"{function.__name__} takes {len(names)} arguments, not {len(arguments)}.")
        try:
            return checked(**dict(zip(names, arguments, strict=False)) | named)
        except ValidationError as error:
            raise UserError(sentence(error)) from None

    answer.__doc__ = re.sub(r"\n {8,}", " ", inspect.getdoc(function))
    return answer


def _in_any_case(what: str, values: tuple[str, ...]) -> BeforeValidator:
    return BeforeValidator(lambda given: choose(what, given, values) if isinstance(given, str) else given)


class _Answers:
    """The functions with what they read. Their names, arguments and docstrings are what callers see."""

    def __init__(self, board: Callable[[], Board], notes: Notes, service: AnswerService) -> None:
        self._board, self._notes, self._service = board, notes, service

    def leaderboard(
        self,
        model: Text = "LLaMA3-8B",
        track: Text = "",
        methods: Text = "",
        bits: Text = "",
        search: Text = "",
        sort: Text = "",
        show: Annotated[Mode, _in_any_case("way to show numbers", MODES)] = "absolute",
    ) -> Values:
        """The leaderboard's rows with every number, its status and its source.

        Names are read in any case. One that is not there is refused, with those that are.

        Args:
            model: A model such as LLaMA3-8B, LLaMA3-70B, LLaMA2-7B, LLaMA-7B, LLaVA-Next-8B or one that was measured
                here; "all" for every model.
            track: llm_ptq (language), mllm_ptq (pictures and language), lora_ft (fine-tuning) or efficiency; empty for
                the first of these that the model has.
            methods: Method names with commas between them, such as "GPTQ, AWQ"; empty for all. The names are FP16, RTN,
                GPTQ, AWQ, SliM-LLM, QuIP, DB-LLM, PB-LLM, BiLLM, SmoothQuant, OmniQuant, I-LLM, SpinQuant,
                NormalFloat, QLoRA and IR-QLoRA.
            bits: Weight bits with commas between them, such as "4, 3"; empty for all. 16 is the unquantized model.
            search: Words, or terms such as "group:128 wikitext2:<8 source:measured"; at most 1000 characters.
            sort: The id of one of the answer's columns such as wikitext2, best first, or model, method, source, w_bits
                or group_size; with a minus before it, worst first; empty for the study's order.
            show: absolute (values), difference (to FP16), or retained (percent of FP16).

        Returns:
            The query, the columns with their direction, and the rows; with notes on odd printed numbers, or on why
                there is no row.
        """
        board = self._board()
        asked = {"model": model, "track": track, "method": methods, "bits": bits, "q": search, "sort": sort}
        view = analysis.view(board, read_query(board, asked | {"show": show}))
        notes = export.with_notes(view, self._notes) if len(view.rows) else [NO_ROW]
        return export.document(view) | {"notes": notes}

    def export_view(
        self, address: Text = "", format: Annotated[Format, _in_any_case("format", tuple(export.FORMATS))] = "csv"
    ) -> Values:
        """The table of a link to the page as a file.

        Other than the page, which leaves out what it can't understand, this refuses unknown names and values.

        Args:
            address: A link to the page, or its query part such as "model=LLaMA3-8B&bits=4"; empty for the first view.
                Its parameters are model, track, show, method, bits, abits, group, source, status, columns, stored,
                size, q (the search) and sort; those of other parts of the page change nothing.
            format: csv, json, parquet, md (Markdown), tex (LaTeX with booktabs) or bib (BibTeX).

        Returns:
            The format, and the content as text, or in base64 for parquet.
        """
        board = self._board()
        asked = parse_address(address)
        for key in filter(None, (asked.get("row"), asked.get("pin"))):
            choose_row(board, key)
        content = export.FORMATS[format](analysis.view(board, read_query(board, asked)))
        binary = format == "parquet"
        return {"format": format, "content": base64.b64encode(content).decode() if binary else content.decode()}

    def where_from(self, row: Text) -> Values:
        """Where every number of one row comes from, and the command that makes it again.

        Args:
            row: A row's key in links: "run~RUN_ID" or MODEL~TRACK~METHOD~BITS~ACTIVATION_BITS~GROUP (0: per row), with
                "votes~" before it for a setting that has blind votes alone.

        Returns:
            Setting, stored bits, numbers with standard errors, sources and notes, versions, and the command.
        """
        board = self._board()
        card = provenance_of(board, choose_row(board, row), self._notes)
        return vars(card) | {"numbers": [vars(number) for number in card.numbers], "about": dict(card.about)}

    def what_fits(
        self,
        model: Text = "LLaMA3-8B",
        memory_gib: float = 24,
        context: int = 4096,
        batch: int = 1,
        pictures: int = 0,
    ) -> Values:
        """The settings of a model that fit a GPU's memory, best quality first, with the estimate part by part.

        Args:
            model: A model of the leaderboard whose shape is known, such as LLaMA3-8B.
            memory_gib: The GPU's memory in GiB, above 0, at most 100000.
            context: Tokens of prompt and answer, 1 to 1000000.
            batch: Sequences at a time, 1 to 4096.
            pictures: Pictures in each sequence, for models that see, 0 to 64.

        Returns:
            A sentence, and one object per setting with its parts and total in GiB, fitting ones first.
        """
        board = self._board()
        model = choose_model(board, model)
        fitted = Fitted(model=model, card=None, memory=memory_gib, context=context, batch=batch, pictures=pictures)
        figure = fit.figure(board, fitted)
        return {"finding": figure.finding, "settings": export.records(figure.table)}

    def cheapest_setting(self, model: Text = "LLaMA3-8B", quality: Text = "", within: float = 2.0) -> Values:
        """The setting with the fewest stored bits that stays within some points of FP16.

        Args:
            model: A model of the leaderboard.
            quality: The task that says how good it is, such as commonsense_avg or wikitext2; empty for the model's own.
            within: Points of a percentage that may be lost, 0 to 100; percent, for perplexities and MME scores.

        Returns:
            A sentence with the answer, and all settings with their stored bits, size, value and loss.
        """
        board = self._board()
        explored = Explored(model=choose_model(board, model), within=within)
        columns = fit.qualities(board, explored.model)
        tasks = {name: column.task for column in columns for name in (column.task, column.title)}
        task = choose("quality", quality, tasks, f" of {explored.model}") if quality.strip() else columns[0].task
        figure = figures.bits_and_quality(board, explored.model, task, explored.within)
        return {"finding": figure.finding, "settings": export.records(figure.table)}

    def methods(self) -> Values:
        """Every quantization method of the engine as it describes itself: idea, formula, what is stored, reference.

        Returns:
            One object per method, by its id.
        """
        return {name: vars(method.card) | {"title": method_name(name)} for name, method in METHODS.items()}

    def ask_picture(
        self,
        picture: Text,
        question: Text,
        settings: Text = "fp16,rtn-4-g64",
        sweep: Text = "",
        divergence: bool = False,
        model: Text = "",
        most_tokens: int = 64,
    ) -> Values:
        """Ask a model about a picture in several settings, and hold their answers against FP16's.

        Args:
            picture: The picture's file in base64, as it is or as a data: address; or example:1 to example:6.
            question: What to ask, at most 4000 characters.
            settings: Settings with commas between them, fp16 first, such as fp16,gptq-4-g64,smoothquant-8-a8.
            sweep: A method that answers at 16, 8, 6, 4, 3 and 2 bits instead, such as rtn-g64 or awq; empty for none.
            divergence: Whether each token of FP16's answer is held against what the other settings find of it.
            model: A model that takes pictures, such as demo; empty for the page's first.
            most_tokens: The longest answer in tokens, 1 to 1024.

        Returns:
            The answers in the settings' order: text, cost, how it parts from FP16's, and each token's probabilities.
        """
        method, _, group = sweep.partition("-g")
        sides = sweep_settings(method, int(group) if group.isdecimal() else None) if sweep else read_settings(settings)
        with pictures.given(picture) as file:
            asked = requests.question(model or requests.picture_models()[0].id, file, question, sides[1:], most_tokens)
            request = asked.model_copy(update={"sides": sides})
            answers = compare(self._service, request, divergence=divergence or bool(sweep))
        return {"answers": [answer.model_dump(mode="json") for answer in answers]}
