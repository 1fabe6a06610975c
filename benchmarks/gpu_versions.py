"""What releases of transformers before those of requirements.txt call otherwise, under the names that the engine uses.

Imported by the stages of benchmarks/gpu.py that train, and given to pytest as a plugin there.
"""

from transformers import PreTrainedModel

for ending in ("enable", "disable"):
    if not hasattr(PreTrainedModel, f"activation_checkpointing_{ending}"):
        former = getattr(PreTrainedModel, f"gradient_checkpointing_{ending}")
        setattr(PreTrainedModel, f"activation_checkpointing_{ending}", former)
