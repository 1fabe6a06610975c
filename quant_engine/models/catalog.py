"""The models that the engine knows by name. Any LLaMA-type or LLaVA-NeXT folder works too, by its path."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quant_engine import folders, hub
from quant_engine.models import check
from quant_engine.spec import UserError, digest


@dataclass(frozen=True)
class ModelCard:
    """A model: what it is called, where its files come from, and what has to be said beside its numbers.

    `origin`: "demo" is composed on this machine by `get demo`; "hub" is a Hugging Face repository at a revision;
    "folder" is a path on this machine. `location` is the repository, the path, or the demo model's own folder.
    """

    id: str
    title: str
    family: Literal["llama", "llava_next"]
    origin: Literal["demo", "hub", "folder"]
    location: str
    note: str = ""
    needs_gpu: bool = False
    window: int = 2048

    @property
    def pictures(self) -> bool:
        return self.family == "llava_next"

    @property
    def track(self) -> str:
        """The study's track that results of this model belong to."""
        return "mllm_ptq" if self.pictures else "llm_ptq"


_SMOLLM2 = "Its weights come from a 4-bit file, so FP16 here means that file's values without further loss."

MODELS: dict[str, ModelCard] = {
    card.id: card
    for card in (
        ModelCard(
            id="demo",
            title="Demo LLaVA-NeXT",
            family="llava_next",
            origin="demo",
            location="demo",
            note="A small LLaVA-NeXT around SmolLM2-135M, trained by this project on pictures that it draws: "
            "shapes, charts, forms and diagrams. It reads such pictures, with mistakes; about any other picture its "
            "answers are of no use. Its model card has the scores. " + _SMOLLM2,
            window=1024,
        ),
        ModelCard(
            id="demo-llm",
            title="SmolLM2-135M",
            family="llama",
            origin="demo",
            location="demo-llm",
            note="SmolLM2-135M-Instruct, a LLaMA-type language model. " + _SMOLLM2,
            window=1024,
        ),
        ModelCard(
            id="llava-next-8b",
            title="LLaVA-Next-8B",
            family="llava_next",
            origin="hub",
            location="llava-hf/llama3-llava-next-8b-hf",
            note="LLaVA-NeXT with LLaMA3-8B, as in the study. 16.7 GB in 16 bit.",
            needs_gpu=True,
        ),
        ModelCard(
            id="llama3-8b",
            title="LLaMA3-8B",
            family="llama",
            origin="hub",
            location="meta-llama/Meta-Llama-3-8B",
            note="Needs an access token for its gated repository. 16.1 GB in 16 bit.",
            needs_gpu=True,
        ),
        ModelCard(
            id="llama3-70b",
            title="LLaMA3-70B",
            family="llama",
            origin="hub",
            location="meta-llama/Meta-Llama-3-70B",
            note="Needs an access token for its gated repository. 141 GB in 16 bit; quantized block by block.",
            needs_gpu=True,
        ),
    )
}

FAMILIES: dict[str, Literal["llama", "llava_next"]] = {"llama": "llama", "llava_next": "llava_next"}


def model_card(model: str) -> ModelCard:
    """The card of a known id, or one made for a folder on this machine. Raises UserError for anything else."""
    if model in MODELS:
        return MODELS[model]
    folder = folders.named(model)
    if folder.is_dir():
        return _folder_card(folder.resolve())
    close = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(
        f"There is no model {model!r}.{hint} The models are: {', '.join(MODELS)}; or give the path of a model folder."
    )


def _folder_card(folder: Path) -> ModelCard:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"{folder} holds an adapter and no model: merge it into its base model first.")
    check.check_pointers(folder)
    kind = check.read_json(folder / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{folder} holds a {kind!r} model; only llama and llava_next models can be quantized here.")
    check.check_folder(folder)
    return ModelCard(id=str(folder), title=folder.name, family=FAMILIES[kind], origin="folder", location=str(folder))


def demo_folder(card: ModelCard) -> Path:
    return folders.models() / card.location


def available(card: ModelCard) -> bool:
    """Whether all of the model's files are on this machine. A hub model that is not can still be fetched."""
    if card.origin == "demo":
        return (demo_folder(card) / "complete.json").exists()
    if card.origin == "folder":
        return True
    folder = hub.find_cached(card.location, "model", None, ["config.json"])
    try:
        return folder is not None and bool(check.weight_files(folder))
    except UserError:  # begun to be fetched, and stopped
        return False


def fingerprint(card: ModelCard, revision: str | None = None) -> str:
    """What identifies the weights, so that other weights make another run.

    For a hub model the commit that `revision` (a branch, tag or commit; None: the default branch) stands at; for the
    demo model a hash of what it was composed from; for a folder a hash of the names, sizes and times of its weight
    files and of the content of its other files. Raises UserError for a demo model that is not on this machine, or a
    commit that nobody can tell.
    """
    if card.origin == "hub":
        return hub.commit(card.location, "model", revision, title=card.title)
    folder = demo_folder(card) if card.origin == "demo" else Path(card.location)
    if card.origin == "demo":
        if not available(card):
            raise UserError(f"{card.title} is not on this machine yet: run `python -m quant_engine get demo`.")
        return digest(json.loads((folder / "complete.json").read_text())["recipe"])
    check.check_pointers(folder)
    return digest([_identity(path) for pattern in check.PATTERNS for path in sorted(folder.glob(pattern))])


def _identity(path: Path) -> tuple[str | int, ...]:
    """What identifies a file's content. Weights are too large to be read for it."""
    if path.suffix == ".safetensors":
        return path.name, path.stat().st_size, path.stat().st_mtime_ns
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()
