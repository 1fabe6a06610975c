"""Sentences beside a form, as HTML."""

from __future__ import annotations

from html import escape

from quant_engine.models.catalog import MODELS


def notice(sentence: str) -> str:
    """A refusal; nothing for an empty sentence."""
    return f'<div class="notice" role="alert">{escape(sentence)}</div>' if sentence else ""


def model_note(model: str) -> str:
    """What the model can be expected to know, in its own words."""
    note = MODELS[model].note if model in MODELS else ""
    return f'<p class="remark">{escape(note)}</p>'
