"""The study's own quantized models on the Hugging Face Hub, by the names that published code calls them.

The study's scripts take those of AWQ, QuIP and BiLLM as simulated quantization, which is dense weights in 16 bits, and
that of IR-QLoRA as an adapter. A simulated one is measured as any model: downloaded, its folder given as the --model,
and with the 16 bits that it stores.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Release:
    """A repository, its method and bits, and how the study's scripts take it."""

    repository: str
    method: str
    w_bits: float
    taken_as: str

    @property
    def url(self) -> str:
        return f"{HUB}/{self.repository}"


_SIMULATED = "simulated"
RELEASES = (
    Release("Efficient-ML/LLaMA-3-8B-AWQ-4bit-b128", "awq", 4, _SIMULATED),
    Release("Efficient-ML/LLaMA-3-8B-SmoothQuant-8bit-8bit", "smoothquant", 8, "unknown"),
    Release("Efficient-ML/LLaMA-3-8B-QuIP-2bit", "quip", 2, _SIMULATED),
    Release("Efficient-ML/LLaMA-3-8B-BiLLM-1.1bit-fake", "billm", 1.1, _SIMULATED),
    Release("Efficient-ML/LLaMA-3-8B-IR-QLoRA", "ir_qlora", 4, "adapter"),
)


def releases_of(method: str) -> list[Release]:
    """The study's releases of a method."""
    return [release for release in RELEASES if release.method == method]
