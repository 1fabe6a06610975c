"""Quantized models on disk."""

from quant_engine.checkpoints.folder import Checkpoint, ledger_of, load_quantized

__all__ = ["Checkpoint", "ledger_of", "load_quantized"]
