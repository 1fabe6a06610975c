"""What was pressed in our own HTML, as the browser says it: anything, where somebody forges an event."""

from __future__ import annotations

import gradio as gr

from quant_engine.spec import clean_text


def pressed(event: gr.EventData, name: str) -> str:
    """The text that an event carries under a name; empty if it carries none."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return clean_text(value) if isinstance(value, str) else ""
