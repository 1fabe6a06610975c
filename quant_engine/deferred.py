"""Modules that load on first use.

Methods, tasks and models describe themselves in the same file that does their work. The page reads those
descriptions and must never load torch, so such a file writes ``torch = deferred("torch")`` instead of
``import torch``: the name works as the module does, from the first time an attribute of it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Deferred:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def deferred(name: str) -> Any:
    """The module called `name`, imported when it is first used. Not for decorators, which run at import."""
    return _Deferred(name)
