"""What programs can ask of the page: typed functions, served as API endpoints and, where MCP is installed, as tools.

Each takes and gives plain JSON values, and raises UserError, one sentence, for what it can't answer.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Literal

from pydantic import ValidationError

from leaderboard import analysis, export, figures, fit
from leaderboard.analysis import Board, Query
from leaderboard.provenance import provenance_of
from leaderboard.store import Notes, method_name
from leaderboard.view import Fitted, find_row, read_address
from quant_engine.methods import METHODS
from quant_engine.spec import UserError, sentence

Values = dict
"""A JSON object."""


def endpoints(board: Callable[[], Board], notes: Notes) -> list[Callable]:
    """The functions, over the results that `board` gives at the time of each call."""
    answers = _Answers(board, notes)
    return [
        answers.leaderboard,
        answers.export_view,
        answers.where_from,
        answers.what_fits,
        answers.cheapest_setting,
        answers.methods,
    ]


class _Answers:
    """The functions with what they read. Their names, arguments and docstrings are what callers see."""

    def __init__(self, board: Callable[[], Board], notes: Notes) -> None:
        self._board, self._notes = board, notes

    def leaderboard(
        self,
        model: str = "LLaMA3-8B",
        track: str = "llm_ptq",
        methods: str = "",
        bits: str = "",
        search: str = "",
        sort: str = "",
        show: Literal["absolute", "difference", "retained"] = "absolute",
    ) -> Values:
        """The leaderboard's rows with every number, its status and its source.

        Args:
            model: A model such as LLaMA3-8B or LLaVA-Next-8B; "all" for every model.
            track: llm_ptq (language), mllm_ptq (pictures and language), lora_ft (fine-tuning) or efficiency.
            methods: Method names with commas between them, such as "GPTQ,AWQ"; empty for all.
            bits: Weight bits with commas between them, such as "4,3"; empty for all.
            search: Words, or terms such as "group:128 wikitext2:<8 source:measured".
            sort: A task such as wikitext2 to sort by, best first; with a minus before it, worst first.
            show: absolute values, the difference to FP16, or percent of FP16 retained.

        Returns:
            The query, the columns with their direction, and the rows; with notes on odd printed numbers.
        """
        board = self._board()
        models = analysis.models(board)
        if model != "all" and model not in models:
            raise UserError(f"There is no model {model!r}; the models are: {', '.join(models)}.")
        try:
            query = Query(
                model=None if model == "all" else model,
                track=track,
                methods=tuple(filter(None, methods.split(","))),
                bits=tuple(filter(None, bits.split(","))),
                search=search,
                sort=sort.removeprefix("-") or None,
                reverse=sort.startswith("-"),
                mode=show,
            )
        except ValidationError as error:
            raise UserError(sentence(error)) from None
        view = analysis.view(board, query)
        return export.document(view) | {"notes": export.with_notes(view, self._notes)}

    def export_view(self, address: str = "", format: str = "csv") -> Values:
        """The table of a link to the page as a file.

        Args:
            address: The query part of a link to the page, such as "model=LLaMA3-8B&bits=4"; empty for the first view.
            format: csv, json, parquet, md (Markdown), tex (LaTeX with booktabs) or bib (BibTeX).

        Returns:
            The format, and the content as text, or in base64 for parquet.
        """
        if format not in export.FORMATS:
            raise UserError(f"There is no format {format!r}; the formats are: {', '.join(export.FORMATS)}.")
        content = export.FORMATS[format](analysis.view(self._board(), read_address(address).query))
        binary = format == "parquet"
        return {"format": format, "content": base64.b64encode(content).decode() if binary else content.decode()}

    def where_from(self, row: str) -> Values:
        """Where every number of one row comes from, and the command that makes it again.

        Args:
            row: A row's key in links: "run~RUN_ID" or MODEL~TRACK~METHOD~BITS~ACTIVATION_BITS~GROUP (0: per row).

        Returns:
            Setting, stored bits, numbers with standard errors, sources and notes, versions, and the command.
        """
        board = self._board()
        index = find_row(board, row)
        if index is None:
            raise UserError(f"There is no row {row!r}.")
        card = provenance_of(board, index, self._notes)
        return vars(card) | {"numbers": [vars(number) for number in card.numbers], "about": dict(card.about)}

    def what_fits(
        self, model: str = "LLaMA3-8B", memory_gib: float = 24, context: int = 4096, batch: int = 1, pictures: int = 0
    ) -> Values:
        """The settings of a model that fit a GPU's memory, best quality first, with the estimate part by part.

        Args:
            model: A model of the leaderboard whose shape is known, such as LLaMA3-8B.
            memory_gib: The GPU's memory in GiB.
            context: Tokens of prompt and answer.
            batch: Sequences at a time.
            pictures: Pictures in each sequence, for models that see.

        Returns:
            A sentence, and one object per setting with its parts and total in GiB, fitting ones first.
        """
        try:
            fitted = Fitted(model=model, card=None, memory=memory_gib, context=context, batch=batch, pictures=pictures)
        except ValidationError as error:
            raise UserError(sentence(error)) from None
        figure = fit.figure(self._board(), fitted)
        return {"finding": figure.finding, "settings": export.records(figure.table)}

    def cheapest_setting(self, model: str = "LLaMA3-8B", quality: str = "", within: float = 2.0) -> Values:
        """The setting with the fewest stored bits that stays within some points of FP16.

        Args:
            model: A model of the leaderboard.
            quality: The task that says how good it is, such as commonsense_avg or wikitext2; empty for the model's own.
            within: Points of a percentage that may be lost; percent, for perplexities and MME scores.

        Returns:
            A sentence with the answer, and all settings with their stored bits, size, value and loss.
        """
        board = self._board()
        task = quality or fit.best_quality(board, model).task
        figure = figures.bits_and_quality(board, model, task, within)
        return {"finding": figure.finding, "settings": export.records(figure.table)}

    def methods(self) -> Values:
        """Every quantization method of the engine as it describes itself: idea, formula, what is stored, reference.

        Returns:
            One object per method, by its id.
        """
        return {name: vars(method.card) | {"title": method_name(name)} for name, method in METHODS.items()}
