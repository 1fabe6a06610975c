"""Stage "answer" of benchmarks/gpu.py: a random model in the shape of LLaVA-Next-8B, asked about a picture through the
answering process: FP16 beside RTN with 4, 3 and 2 bits.

Its answers are nonsense; their times are not. "fresh" is the first question, for which all sides are loaded or
quantized; "loaded" is the next, about another picture. The page takes part where gradio is installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from answers import serving
from gpu_models import shape, write_folder
from gpu_report import Report
from PIL import Image

from leaderboard import fit
from quant_engine.answers.client import AnswerService
from quant_engine.answers.messages import AskRequest
from quant_engine.models.shapes import Shape, shapes
from quant_engine.runs.needs import stored_bits
from quant_engine.spec import QuantSetting

TOKENS, DRY_TOKENS = 64, 3
SIZE = (640, 480)
BITS = (4, 3, 2)


def run(report: Report, dry: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="low-bit-lab-model-", ignore_cleanup_errors=True) as name:
        folder, sides = Path(name) / "model", settings(dry)
        predict(report, sides, dry)
        started = time.monotonic()
        if not report.case("writing the model", lambda: write(folder, shape(dry), report.device)):
            return
        report.add(measured="writing the random model", seconds=time.monotonic() - started)
        pictures = [picture(Path(name), color) for color in ("teal", "maroon")]
        service = AnswerService()
        try:
            for when, image in zip(("fresh", "loaded"), pictures, strict=True):
                measure = partial(ask, report, service, folder, image, sides, when, dry)
                report.case(f"{when}, all sides", measure)
        finally:
            service.close()
        if not dry:
            report.case("the page", partial(open_page, report))


def settings(dry: bool) -> tuple[QuantSetting, ...]:
    group = 16 if dry else 128
    return QuantSetting(), *(QuantSetting(method="rtn", w_bits=bits, group_size=group) for bits in BITS)


def predict(report: Report, sides: tuple[QuantSetting, ...], dry: bool) -> None:
    """What each side takes by itself, as the page's *What fits* counts it."""
    of = shape(dry) if dry else shapes()["LLaVA-Next-8B"]
    for side in sides:
        need = fit.need(of, stored_bits(of, side), context=256, pictures=1)
        report.add(predicted=side.label, weights_GB=need.model / 1e9, all_GB=need.total / 1e9)


def write(folder: Path, of: Shape, device: str) -> None:
    write_folder(folder, of, device, pictures=True)


def picture(folder: Path, color: str) -> Path:
    path = folder / f"{color}.png"
    Image.new("RGB", SIZE, color).save(path)
    return path


def ask(
    report: Report,
    service: AnswerService,
    folder: Path,
    image: Path,
    sides: tuple[QuantSetting, ...],
    when: str,
    dry: bool,
) -> None:
    """A row for each side: seconds until its first token and its end, as somebody waits for them."""
    request = AskRequest(
        model=str(folder), image=image, question="What is it?", sides=sides,
        max_new_tokens=DRY_TOKENS if dry else TOKENS,
    )  # fmt: skip
    started, first = time.perf_counter(), {}
    for event in service.ask(request):
        now = time.perf_counter() - started
        if event.kind in ("token", "done"):
            first.setdefault(event.side, now)
        if event.kind == "error":
            report.leave_out(f"{when}, {sides[event.side].label}", event.message)
        elif event.kind == "done":
            stats = event.stats
            report.add(
                when=when, side=sides[event.side].label, first_token_after_s=first[event.side], done_after_s=now,
                own_first_token_s=stats.ttft_s, tokens_per_s=stats.tokens_per_s, tokens=stats.tokens,
                prompt_tokens=stats.prompt_tokens, weights_GB=stats.weight_bytes / 1e9, card_used_GB=card_used(),
            )  # fmt: skip


def card_used() -> float | None:
    """GB that all processes hold of the card; None where its driver's tool does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(done.stdout.splitlines()[0]) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def open_page(report: Report) -> None:
    """The seconds until the page answers, on this machine with its card."""
    if subprocess.run([sys.executable, "-c", "import gradio"], capture_output=True).returncode:
        report.leave_out("the page", "gradio is not installed")
        return
    started = time.perf_counter()
    with serving():
        report.add(measured="the page answers", seconds=time.perf_counter() - started)
