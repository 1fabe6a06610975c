"""Quantized models on disk."""

from quant_engine.checkpoints.folder import Checkpoint, checkpoint_id, ledger_of, load_quantized

__all__ = ["Checkpoint", "checkpoint_id", "ledger_of", "load_quantized"]
