"""What transformers logs while it reads a model's configuration and tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_held_back() -> Iterator[None]:
    """transformers' warnings come out when the block has ended well. Where it raises, the error says what is wrong."""
    records: list[logging.LogRecord] = []
    hold = records.append  # as a filter it lets nothing through
    handlers = logging.getLogger("transformers").handlers
    for handler in handlers:
        handler.addFilter(hold)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hold)
    for record in records:
        for handler in handlers:
            handler.handle(record)
