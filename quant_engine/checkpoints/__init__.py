"""Quantized models on disk."""

from quant_engine.checkpoint_files import checkpoint_id
from quant_engine.checkpoints.folder import Checkpoint, ledger_of, load_quantized

__all__ = ["Checkpoint", "checkpoint_id", "ledger_of", "load_quantized"]
