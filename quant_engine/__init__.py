"""Quantize LLaMA-type and LLaVA-NeXT models to few bits, evaluate them, and keep every number with its provenance."""

__version__ = "0.1.0"
