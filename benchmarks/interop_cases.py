"""What all cases of benchmarks/interop.py share: the small model, how far logits are apart, how ours are computed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
REPORT = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
"""Standard output. What other programs write there, progress bars and all, goes nowhere."""
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

import torch  # noqa: E402
import transformers  # noqa: E402
from models import tiny_chat  # noqa: E402

from quant_engine import folders  # noqa: E402
from quant_engine.demo.fetch import get_language_model  # noqa: E402
from quant_engine.formats import published  # noqa: E402
from quant_engine.formats.load import load_published  # noqa: E402
from quant_engine.models.catalog import model_card  # noqa: E402
from quant_engine.models.load import Loaded  # noqa: E402
from quant_engine.progress import Hooks  # noqa: E402
from quant_engine.runs import weights  # noqa: E402
from quant_engine.runs.resolve import resolve_weights  # noqa: E402
from quant_engine.spec import Calibration, PublishedCheckpoint, QuantSetting, WeightSpec  # noqa: E402

os.environ.setdefault("LOWBIT_MODELS", str(folders.models()))
os.environ.setdefault("LOWBIT_HOME", tempfile.mkdtemp(prefix="interop-"))
FLOAT32, HALF, BFLOAT16 = 1e-4, 1e-2, 8e-2
"""How far logits may be apart, relative to their largest: both computed in float32, theirs in float16, or theirs in
bfloat16, which has three bits less (the dense model itself is 3e-2 off in that)."""
IDS = torch.randint(4, 250, (1, 48), generator=torch.Generator().manual_seed(0))
CALIBRATION = Calibration(samples=8, length=128)


class Unavailable(Exception):
    """What no program that can be installed here does, in a sentence that says why."""


@dataclass(frozen=True)
class Case:
    """`measure()` is how far ours and theirs are apart, and at most `bound`. It raises Unavailable where their program
    can't do it."""

    title: str
    measure: Callable[[], float]
    bound: float


def base_model(folder: Path) -> Path:
    """A random Llama whose layers are large enough for every program's kernels, with a tokenizer that merges: llama.cpp
    reads no other."""
    torch.manual_seed(0)
    words = tiny_chat.tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {{"ÿ": "th", "þ": "the"}.get(t, t): n for t, n in content["model"]["vocab"].items()}
    content["model"]["merges"] = [["t", "h"], ["th", "e"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@cache
def demo_model() -> str:
    """The name of SmolLM2 here, which is fetched if it is not on this machine."""
    get_language_model()
    return "demo-llm"


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest of theirs; infinite where one is not finite."""
    off = (ours - theirs).abs().max() / theirs.abs().max()
    return float(off) if off.isfinite() else torch.inf


@torch.inference_mode()
def logits_of(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids).logits.float()


def load_here(location: Path, base: Path) -> Loaded:
    """A folder or a GGUF file in our engine, with its weights packed, computing in float32."""
    found = published.find(PublishedCheckpoint(location=str(location)))
    return load_published(found, model_card(str(base)), "float32", "cpu")


def read_here(location: Path, base: Path) -> torch.Tensor:
    return logits_of(load_here(location, base).model)


def quantized(model: Path | str, method: str, bits: int, group: int | None, **options: object) -> Path:
    """The checkpoint that the command quantize makes."""
    setting = QuantSetting(method=method, w_bits=bits, group_size=group, options=options)
    spec = WeightSpec(model=str(model), setting=setting, calibration=None if method == "rtn" else CALIBRATION)
    return weights.quantize(resolve_weights(spec), "cpu", Hooks())
