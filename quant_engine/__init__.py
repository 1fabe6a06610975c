"""Quantize LLaMA-type and LLaVA-NeXT models to few bits, evaluate them, and keep every number with its provenance."""

import os

__version__ = "0.2.0"

# Threads that wait for each other sleep instead of spinning. A page, a run and an answer share few cores here, and a
# spinning thread keeps the one that it waits for from its core: seven times slower, measured on two busy cores. The
# OpenMP runtime reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
