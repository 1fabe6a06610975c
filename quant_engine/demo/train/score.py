"""How well a composed model answers held-out pictures, and the same questions about blank ones."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor, PreTrainedTokenizerBase

from quant_engine import folders
from quant_engine.demo import suite
from quant_engine.demo.pictures import Split
from quant_engine.demo.questions import SINGLE_WORD, WORD_OR_PHRASE, choice_prompt
from quant_engine.evaluate.chartqa import relaxed_match
from quant_engine.evaluate.docvqa import anls

ENDINGS = {"demo-docvqa": WORD_OR_PHRASE, "demo-chartqa": SINGLE_WORD, "demo-mme": WORD_OR_PHRASE}
MOST_TOKENS = 24


@dataclass(frozen=True)
class Score:
    """`value` and `error` (its standard error) in percent, over `items` single questions."""

    task: str
    split: str
    pictures: str  # "drawn" or "blank"
    items: int
    value: float
    error: float
    kinds: dict[str, tuple[float, int]]  # mean score and number of items of each kind of question


class Answerer:
    """A composed model that answers one question about one picture, greedily."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.processor = LlavaNextProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, image: Image.Image, prompt: str, most: int = MOST_TOKENS) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        made = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)
        return self.processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def prompt_of(task: str, item: suite.DemoItem) -> str:
    """The question as its benchmark asks it."""
    if item.options:
        return choice_prompt(item.question, item.options, header=task == "demo-mmbench")
    return item.question + ENDINGS[task]


def right(task: str, item: suite.DemoItem, said: str) -> float:
    """From 0 to 1; circular and paired items are scored one by one here."""
    if task == "demo-docvqa":
        return anls(said, item.answers)
    if task == "demo-chartqa":
        return float(any(relaxed_match(said, answer) for answer in item.answers))
    return float(said.strip().rstrip(".").lower() == item.answers[0].lower())


def score(answerer: Answerer, task: str, count: int, split: Split = "test", *, blank: bool = False) -> Score:
    """Score the first `count` items of a task; with `blank`, each picture is white."""
    values: list[float] = []
    by_kind: dict[str, list[float]] = {}
    for item in suite.items(task, count, split)[:count]:
        image = item.image()
        if blank:
            image = Image.new("RGB", image.size, "white")
        value = 100 * right(task, item, answerer.answer(image, prompt_of(task, item)))
        values.append(value)
        by_kind.setdefault(item.category, []).append(value)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
    kinds = {kind: (sum(of_kind) / len(of_kind), len(of_kind)) for kind, of_kind in sorted(by_kind.items())}
    pictures = "blank" if blank else "drawn"
    return Score(task, split, pictures, len(values), mean, spread / math.sqrt(len(values)), kinds)


@torch.inference_mode()
def perplexity(model: nn.Module, tokenizer: PreTrainedTokenizerBase, windows: int = 16, length: int = 512) -> float:
    """Perplexity of a model's language part on the built-in public-domain prose that training never sees."""
    text = (folders.ASSETS / "text" / "evaluation.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text)["input_ids"][: windows * length]).view(windows, length)
    losses = []
    for window in ids.to(model.device):
        logits = model(input_ids=window[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return math.exp(sum(losses) / len(losses))


def speed(answerer: Answerer) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it, for one picture of 288 x 288."""
    item = suite.items("demo-chartqa", 1)[0]
    image = item.image().resize((288, 288))
    answerer.answer(image, "Describe the chart.", 1)
    started = time.perf_counter()
    answerer.answer(image, "Describe the chart.", 1)
    first = time.perf_counter() - started
    inputs = answerer.processor(images=image, text="<image>\nDescribe the chart.", return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(answerer.model.dtype)
    started = time.perf_counter()
    answerer.model.generate(**inputs.to(answerer.model.device), min_new_tokens=33, max_new_tokens=33, do_sample=False)
    return first, 32 / max(1e-6, time.perf_counter() - started - first)
