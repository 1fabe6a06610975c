"""Which models can answer about pictures on this machine: what *What fits* estimates, against the free memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from leaderboard import fit
from leaderboard.fit import Need
from leaderboard.sizes import counted_bits
from leaderboard.store import method_name
from quant_engine import hub, memory, notation
from quant_engine.answers import shipped
from quant_engine.answers.client import held_memory
from quant_engine.answers.compare import sweep_settings
from quant_engine.answers.messages import AnswerEvent, AskRequest
from quant_engine.models.catalog import MODELS, ModelCard, available
from quant_engine.models.device import answering_device, gpu_memory
from quant_engine.models.shapes import shapes
from quant_engine.spec import QuantSetting

HUB_PATIENCE = 3.0  # seconds
TOKENS = 512
"""What is counted for a question and its answer; the picture's tokens come on top."""
FP16, *NARROWER = sweep_settings("rtn", 64)
"""What is named where a model is too large in 16 bits: the page's first method."""


def need(card: ModelCard, setting: QuantSetting) -> Need | None:
    """What a model takes to answer in a setting on this machine; None for one whose shape is not known."""
    shape = shapes().get(card.title)
    bits = counted_bits(card.title, method_name(setting.method), setting.w_bits, setting.group_size)
    if shape is None or bits is None:
        return None
    on_cpu = answering_device() == "cpu"
    device = {"bytes_each": 4, "overhead": fit.HOST_OVERHEAD} if on_cpu else {}
    return fit.need(shape, bits, context=TOKENS, pictures=1, **device)


def free() -> float:
    """Bytes that the answering process can have, with those that its models hold now. A GPU whose memory can't be
    measured has no limit."""
    if answering_device() == "cpu":
        return memory.free() + held_memory()
    measured = gpu_memory()
    return float("inf") if measured is None else measured


@functools.cache
def reachable(repository: str) -> bool:
    """Whether the hub answers and has the repository; asked once. Without network, without access, or switched off
    (HF_HUB_OFFLINE), it has not."""
    return hub.offers_model(repository, HUB_PATIENCE)


def fetches() -> bool:
    """Whether models are fetched for whoever asks them: not on a public page that would have to answer on its CPU."""
    return "SPACE_ID" not in os.environ or answering_device() != "cpu"


def absent(card: ModelCard) -> bool:
    """Whether a model of the hub is not on this machine and can't be fetched."""
    return card.origin == "hub" and not available(card) and not (fetches() and reachable(card.location))


def fits(card: ModelCard, setting: QuantSetting) -> bool:
    """Whether there is memory for a model in a setting, as far as that can be told."""
    needed = need(card, setting)
    return needed is None or needed.total <= free()


def lack(card: ModelCard, setting: QuantSetting = FP16) -> str:
    """Why a model can't answer here in a setting, and what can, in a sentence or two; empty where it can."""
    if not fits(card, setting):
        needed, where = need(card, setting), "machine" if answering_device() == "cpu" else "machine's GPU"
        width = "16 bits" if setting.method == "fp16" else setting.label
        sizes = f"takes {notation.size(needed.total)} in {width}; this {where} has {notation.size(free())} free"
        return f"{card.title} {sizes}. {_instead(card)}"
    if absent(card):
        other = _other(card)
        choose = f", or choose {other.title}" if other else ""
        if not fetches():
            return f"{card.title} is not on this page, which has no GPU: run Low-Bit Lab on your machine{choose}."
        return f"{card.title} is not on this machine, and the Hugging Face Hub can't be asked for it: connect{choose}."
    return ""


def mark(card: ModelCard) -> str:
    """What a list of models says behind the name of one that can't answer here in 16 bits; empty where it can."""
    if not fits(card, FP16):
        return "(too large here)" if _narrower(card) is None else "(too large in 16 bits here)"
    return "(not to be had here)" if absent(card) else ""


def settled(request: AskRequest) -> Mapping[int, AnswerEvent]:
    """How the sides of a request end that can't be answered here: FP16's with the answer that ships, if there is one;
    else with why."""
    card = MODELS.get(request.model)
    lacking = {number: lack(card, setting) for number, setting in enumerate(request.sides)} if card else {}
    if request.along and lacking.get(0):
        why = "FP16 was not computed here, so that no answer can be held against its probabilities."
        lacking = dict.fromkeys(range(len(request.sides)), why)
    ends = {}
    for number, why in lacking.items():
        if why:
            refusal = AnswerEvent(request_id=request.request_id, side=number, kind="error", message=why)
            ends[number] = (None if request.along else shipped.find(request, number)) or refusal
    return ends


def _narrower(card: ModelCard) -> QuantSetting | None:
    """The widest quantized setting that a model fits in, if it can be had at all."""
    return None if absent(card) else next((setting for setting in NARROWER if fits(card, setting)), None)


def _other(card: ModelCard) -> ModelCard | None:
    """Another model that can answer about pictures here."""
    others = (other for other in MODELS.values() if other.pictures and other is not card)
    return next((other for other in others if fits(other, FP16) and not absent(other)), None)


def _instead(card: ModelCard) -> str:
    """What to choose in place of a model that is too large."""
    setting, other = _narrower(card), _other(card)
    if setting:
        needed = need(card, setting)
        weights, total = notation.size(needed.model), notation.size(needed.total)
        return f"In {setting.w_bits:g} bits its weights are {weights} and it takes {total}: choose {setting.label}."
    return f"Choose {other.title}." if other else "Free memory."
