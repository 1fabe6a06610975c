"""Stage "decode" of benchmarks/gpu.py: a random model in the shape of LLaMA3-8B, in bfloat16 and in each form.

A prompt is read and tokens are decoded as the product does it (models/forward.py), for one text and for eight. The same
step is also captured as a CUDA graph (gpu_graph.py), which shows what launching the kernels one by one costs.
"""

from __future__ import annotations

import gc
import time
from functools import partial

import torch
from gpu_graph import GraphStep
from gpu_kernels import FORMS as KERNEL_FORMS
from gpu_models import MakeWeight, language_model, shape
from gpu_report import Report, peak_bytes, reset_peak, synchronize
from torch import nn

from leaderboard import fit
from quant_engine.checkpoints.folder import ledger_of
from quant_engine.models.forward import Piece, last_states
from quant_engine.models.key_values import KeyValues

PROMPT, TOKENS = 512, 64
DRY_PROMPT, DRY_TOKENS = 12, 2
BATCHES = (1, 8)
GOALS = {"W4 g128": 2.5, "W3 g128": 3.0, "W2 g128": 3.0}
"""How many times bfloat16's tokens per second a single text should be decoded with."""
FORMS = (
    *("bfloat16", "W4 g128", "W3 g128", "W2 g128", "W8 g128", "NF4", "NF3", "dual binary", "partly binary"),
    *("residual binary", "rotated 4", "mixed 2-4", "NF4 low rank", "W8A8", "W4A4"),
)
DRY_FORMS = ("bfloat16", "W4 g128")


def run(report: Report, dry: bool) -> None:
    rates: dict[str, float] = {}
    for form in DRY_FORMS if dry else FORMS:
        make = None if form == "bfloat16" else KERNEL_FORMS[form]
        report.case(form, partial(measure, report, form, make, dry, rates))
        gc.collect()
    for form, wanted in GOALS.items():
        for way in ("", ", as a graph"):
            if form + way in rates and "bfloat16" in rates:
                best = max(rates["bfloat16"], rates.get("bfloat16, as a graph", 0.0)) if way else rates["bfloat16"]
                what = f"tokens/s of {form}{way} against bfloat16's, one text"
                report.goal(what, rates[form + way] / best, wanted, "times", at_least=True)


@torch.inference_mode()
def measure(report: Report, form: str, make: MakeWeight | None, dry: bool, rates: dict[str, float]) -> None:
    """The rows of a form; tokens per second of one text go into `rates`."""
    device, of = report.device, shape(dry)
    prompt, tokens = (DRY_PROMPT, DRY_TOKENS) if dry else (PROMPT, TOKENS)
    reset_peak(device)
    model = language_model(of, device, torch.bfloat16, make)
    bits = ledger_of(model).bits_per_weight if make else 16.0
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    for batch in BATCHES:
        predicted = fit.need(of, bits, context=prompt + tokens, batch=batch, overhead=0)
        reset_peak(device)
        first, rate = decode(model, batch, prompt, tokens, device)
        report.add(
            form=form, texts=batch, first_token_s=first, tokens_per_s=rate, bits=bits, weights_GB=held / 1e9,
            predicted_weights_GB=predicted.model / 1e9, peak_GB=peak_bytes(device) / 1e9,
            predicted_peak_GB=predicted.total / 1e9,
        )  # fmt: skip
        graph_rate = GraphStep(model, batch, prompt + tokens).tokens_per_s(prompt, tokens)
        report.add(form=form, texts=batch, tokens_per_s_as_a_graph=graph_rate, times_one_by_one=graph_rate / rate)
        if batch == 1:
            rates |= {form: rate, f"{form}, as a graph": graph_rate}


def decode(model: nn.Module, batch: int, prompt: int, tokens: int, device: str) -> tuple[float, float]:
    """Seconds to the first token of a text, and the tokens per second of `batch` texts together, after a first round
    that compiles what it takes."""
    decoder, embedding, head = model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()
    first, rate = 0.0, 0.0
    for _ in range(2):
        caches = [KeyValues(decoder) for _ in range(batch)]
        synchronize(device)
        started = time.perf_counter()
        read = []
        for index, cache in enumerate(caches):
            ids = torch.arange(4 + index, 4 + index + prompt, device=device)
            read.append(head(last_states(decoder, [Piece(embedding(ids), cache)])).argmax(-1))
            if index == 0:
                first = read[0].tolist() and time.perf_counter() - started
        last = torch.cat(read)
        synchronize(device)
        started = time.perf_counter()
        for _ in range(tokens):
            x = embedding(last)
            pieces = [Piece(x[row : row + 1], cache) for row, cache in enumerate(caches)]
            last = head(last_states(decoder, pieces)).float().argmax(-1)
            last.tolist()  # as an answer that is shown waits for each of its tokens
        rate = batch * tokens / (time.perf_counter() - started)
    return first, rate
