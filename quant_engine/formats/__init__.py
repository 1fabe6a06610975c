"""Quantized checkpoints in the formats of other programs. To add one: write its file, and name it in FORMATS."""

from quant_engine.formats import awq, bitsandbytes, compressed_tensors, gptq
from quant_engine.formats.contract import Format

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (gptq, awq, compressed_tensors, bitsandbytes)
}
"""By quant_method, as a config.json names it."""

__all__ = ["FORMATS", "Format"]
