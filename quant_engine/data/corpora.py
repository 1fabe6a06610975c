"""The texts that perplexity is published on: WikiText2, and C4 and PTB in the two forms that the literature mixes.

    wikitext2  test rows joined with two newlines, empty rows included
    c4-old     256 windows, each from a place in a document, both drawn at random with seed 0
    c4-new     the first 1100 documents joined with one space, the first 256 windows of them
    ptb-old    the validation split joined with two newlines
    ptb-new    the test split joined with one space

C4 is its first validation file. Reference: the data code of GPTQ (arXiv 2210.17323).
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quant_engine import folders
from quant_engine.data import sources, texts
from quant_engine.spec import UserError

WINDOWS = 256
NEW_C4_DOCUMENTS = 1100
SEED = 0


@dataclass(frozen=True)
class Corpus:
    """`join` stands between the documents, which are the rows' `field`; None draws windows from them instead.

    A local text file holds the whole text ("joined"), or a document in each of its lines ("lines").
    """

    name: str
    title: str
    source: sources.Source
    field: str
    join: str | None
    text_file: Literal["joined", "lines"] = "lines"
    documents: int | None = None
    windows: int | None = None

    def token_ids(self, tokenizer: Any, window: int, limit: int | None) -> tuple[list[int], str]:
        """Token ids of at least the first `limit` windows (all, if None), and what identifies the text.

        Raises UserError where the text can't be had, or has no document as long as a window that is to be drawn.
        """
        documents, revision = self.read()
        most = min(limit or WINDOWS, WINDOWS)
        if self.join is None:
            return draw_windows(documents, tokenizer, window, most), revision
        text = self.join.join(documents[: self.documents])
        ids = tokenizer(text, verbose=False)["input_ids"]
        return ids if self.windows is None else ids[: self.windows * window], revision

    def revision(self) -> str:
        """What identifies the documents, without fetching them. Raises UserError where it can't be had."""
        file = self._text_file()
        if file:
            return f"{file.name} sha256:{texts.file_digest(file)}"
        return sources.revision(self.source, self.title)

    def read(self) -> tuple[list[str], str]:
        """The documents and what identifies them. Raises UserError where they can't be had."""
        file = self._text_file()
        if file:
            text = texts.read(file)
            documents = [text] if self.text_file == "joined" else [line.strip() for line in io.StringIO(text)]
            return documents, f"{file.name} sha256:{texts.digest(text)}"
        rows = sources.load(self.source, self.title)
        return rows.texts(self.field), rows.revision

    def _text_file(self) -> Path | None:
        """The local file, if it is a text and not rows; it may be compressed."""
        paths = sources.local_files(self.source, folders.data())
        return paths[0] if paths and ".txt" in paths[0].suffixes else None


def draw_windows(documents: list[str], tokenizer: Any, window: int, count: int) -> list[int]:
    """`count` windows of `window` tokens, one after the other. Every draw counts, those of short documents too."""
    generator = random.Random(SEED)
    ids_of_document: dict[int, list[int]] = {}
    ids: list[int] = []
    while len(ids) < count * window:
        index = generator.randint(0, len(documents) - 1)
        if index not in ids_of_document:
            document_ids = tokenizer(documents[index], verbose=False)["input_ids"]
            ids_of_document[index] = document_ids if len(document_ids) >= window else []
        document = ids_of_document[index]
        if document:
            # The reference fails on a document of exactly one window; it has met none, so no draw is lost here.
            start = generator.randint(0, len(document) - window - 1) if len(document) > window else 0
            ids += document[start : start + window]
        elif len(ids_of_document) == len(documents) and not any(ids_of_document.values()):
            raise UserError(f"C4 has no document of {window} tokens here: choose a smaller window.")
    return ids


_C4 = sources.Source(
    "allenai/c4",
    "en/c4-validation.00000-of-00008.json.gz",
    "c4_*.jsonl",
    revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
)
_PTB = "ptb-text-only/ptb_text_only"

CORPORA: tuple[Corpus, ...] = (
    Corpus(
        "wikitext2",
        "WikiText2",
        sources.Source(
            "Salesforce/wikitext",
            "wikitext-2-raw-v1/test-*.parquet",
            "wikitext2_raw_test.txt",
            revision="b08601e04326c79dfdd32d625aee71d232d685c3",
        ),
        field="text",
        join="\n\n",
        text_file="joined",
    ),
    Corpus("c4-old", "C4, old form", _C4, field="text", join=None),
    Corpus("c4-new", "C4, new form", _C4, field="text", join=" ", documents=NEW_C4_DOCUMENTS, windows=WINDOWS),
    Corpus(
        "ptb-old",
        "PTB, old form",
        sources.Source(_PTB, "penn_treebank/validation/*.parquet", "ptb.valid.txt", revision=sources.CONVERTED),
        field="sentence",
        join="\n\n",
    ),
    Corpus(
        "ptb-new",
        "PTB, new form",
        sources.Source(_PTB, "penn_treebank/test/*.parquet", "ptb.test.txt", revision=sources.CONVERTED),
        field="sentence",
        join=" ",
    ),
)
