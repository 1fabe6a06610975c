"""Tiny models as evaluation gets them."""

from pathlib import Path

from models import tiny_chat

from quant_engine.models.load import Loaded


def llama(seed=0):
    made = tiny_chat.llama(seed=seed)
    return Loaded(made.card, made.model, made.tokenizer, None, 16.0, Path())


def llava_next():
    made = tiny_chat.llava_next()
    return Loaded(made.card, made.model, made.tokenizer, made.processor, 16.0, Path())
