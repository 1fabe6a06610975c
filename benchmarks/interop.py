"""Checkpoints that go between Low-Bit Lab and other programs: what they write is read here, and what is written here
they read, with the same logits.

    peers/bin/python benchmarks/interop.py [NAME …] [--smollm2 FOLDER]

Runs under the environment that `make peers` makes, which has GPTQModel, compressed-tensors, bitsandbytes and llama.cpp.
A small random Llama is quantized by each of them in every width and layout that is read, and each of our exports is
loaded by them; a line for each says how far the logits (of LLM.int8(): the outputs of each linear) are apart, and the
last line whether all are within the bound of the type that they are computed in. With --smollm2, a checkpoint that
`quantize` made of demo-llm is exported to GGUF and measured and asked in llama.cpp as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("LOWBIT_HOME", tempfile.mkdtemp(prefix="interop-"))
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")  # it takes as many as there are cores, and needs two more
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import torch  # noqa: E402
import transformers  # noqa: E402
from models import tiny_chat  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from quant_engine.checkpoints.folder import load_quantized  # noqa: E402
from quant_engine.formats import published  # noqa: E402
from quant_engine.formats.export import export  # noqa: E402
from quant_engine.formats.load import load_published  # noqa: E402
from quant_engine.models.architecture import LINEARS  # noqa: E402
from quant_engine.models.catalog import model_card  # noqa: E402
from quant_engine.models.load import Loaded  # noqa: E402
from quant_engine.progress import Hooks  # noqa: E402
from quant_engine.runs import weights  # noqa: E402
from quant_engine.runs.resolve import resolve_weights  # noqa: E402
from quant_engine.spec import PublishedCheckpoint, QuantSetting, WeightSpec  # noqa: E402

FLOAT32, HALF = 1e-4, 1e-2
"""How far logits may be apart, relative to their largest: both computed in float32, or theirs in 16 bits."""
QUESTIONS = (
    "What is the capital of France?", "Name three colours.", "What do bees make?", "How many days has a week?",
    "Write a sentence about the sea.", "What is two plus two?", "Who wrote Hamlet?", "What is ice made of?",
    "Give me a word that rhymes with cat.", "What is the opposite of hot?",
)  # fmt: skip
ANSWER_TOKENS = 24
IDS = torch.randint(4, 250, (1, 48), generator=torch.Generator().manual_seed(0))
Case = tuple[str, Callable[[], float], float]


def base_model(folder: Path) -> Path:
    """A random Llama whose layers are large enough for every program's kernels."""
    torch.manual_seed(0)
    words = tiny_chat.tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.inference_mode()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits.float()


def read_here(folder: Path, base: Path) -> torch.Tensor:
    found = published.find(PublishedCheckpoint(location=str(folder)))
    return logits_of(load_published(found, model_card(str(base)), "float32", "cpu").model)


def through_transformers(folder: Path, base: Path, quantization: object) -> float:
    """bitsandbytes quantizes as it loads; what is saved then is read here."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    if quantization.load_in_8bit:
        return layers_apart(folder, base, model)
    return apart(read_here(folder, base), logits_of(model))


@torch.inference_mode()
def layers_apart(folder: Path, base: Path, model: torch.nn.Module) -> float:
    """How far the linears' own outputs are apart for the same token. Behind several linears with rounded inputs
    logits tell little: an input between two numbers goes to the other one for a difference of 1e-5."""
    found = published.find(PublishedCheckpoint(location=str(folder)))
    ours = load_published(found, model_card(str(base)), "float32", "cpu").model
    off = []
    for block, theirs in zip(ours.model.layers, model.model.layers, strict=True):
        for name in LINEARS:
            linear = block.get_submodule(name)
            x = 3 * torch.randn(1, linear.in_features, generator=torch.Generator().manual_seed(0))
            off.append(apart(linear(x), theirs.get_submodule(name)(x.clone())))
    return max(off)


def bitsandbytes_cases(root: Path, base: Path) -> Iterator[Case]:
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            config = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=kind,
                bnb_4bit_use_double_quant=double,
                bnb_4bit_compute_dtype=torch.float32,
            )
            name = f"bitsandbytes {kind}{' doubly quantized' if double else ''}"
            yield name, partial(through_transformers, root / name.replace(" ", "-"), base, config), FLOAT32
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    yield "bitsandbytes int8", partial(through_transformers, root / "bnb-int8", base, config), FLOAT32


def compressed(folder: Path, base: Path, weight_args: dict, input_args: dict | None) -> float:
    """compressed-tensors: scales by its own rule, packed and unpacked by its own compressor."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    scheme = {"targets": ["Linear"], "weights": weight_args, "input_activations": input_args}
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="dense")
    )
    for module in model.modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        values = module.weight.detach()
        if args.group_size:
            values = values.unflatten(1, (-1, args.group_size))
        rows = (0, 1) if args.strategy == "tensor" else -1
        low, high = values.amin(rows), values.amax(rows)
        scale, zero = calculate_qparams(low, high, args)
        module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
        if getattr(module, "weight_zero_point", None) is not None:
            module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return apart(read_here(folder, base), logits_of(model))  # it unpacks what it compressed


def compressed_cases(root: Path, base: Path) -> Iterator[Case]:
    per_token = {"strategy": "token", "dynamic": True, "symmetric": True, "num_bits": 8}
    schemes = {
        f"int{bits} {'symmetric ' if symmetric else ''}{strategy}": (
            {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy}
            | ({"group_size": 64} if strategy == "group" else {}),
            None,
        )
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
        for strategy in ("group", "channel")
    }
    eight = {"num_bits": 8, "symmetric": True}
    schemes["int8 W8A8"] = eight | {"type": "int", "strategy": "channel"}, per_token | {"type": "int"}
    schemes["fp8 W8A8"] = eight | {"type": "float", "strategy": "channel"}, per_token | {"type": "float"}
    schemes["fp8 tensor"] = eight | {"type": "float", "strategy": "tensor"}, None
    for name, (weight_args, input_args) in schemes.items():
        folder = root / f"compressed-{name.replace(' ', '-')}"
        # A rounded input that lies between two numbers of its grid may go to either: the sums before it differ.
        bound = HALF if input_args else FLOAT32
        yield f"compressed-tensors {name}", partial(compressed, folder, base, weight_args, input_args), bound


def by_gptqmodel(folder: Path, base: Path, **settings: object) -> float:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    # Its AWQ refuses float32, and has to be told that there is no CUDA.
    awq = settings.get("method") == "awq"
    dtype, backend = (torch.bfloat16, BACKEND.AWQ_TORCH) if awq else (torch.float32, BACKEND.AUTO)
    model = GPTQModel.load(str(base), QuantizeConfig(**settings), device="cpu", dtype=dtype)
    rows = torch.randint(4, 250, (16, 1, 128), generator=torch.Generator().manual_seed(0))
    model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], backend=backend)
    model.save(str(folder))
    return apart(read_here(folder, base), logits_of(dequantized(folder, base)))


@torch.inference_mode()
def dequantized(folder: Path, base: Path) -> torch.nn.Module:
    """The dense model, in float32, with the weights that GPTQModel's layers have in float16: they take no float32."""
    from gptqmodel import GPTQModel

    read = GPTQModel.load(str(folder), device="cpu", backend="torch", dtype=torch.float16).model
    dense = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for block, source in zip(dense.model.layers, read.model.layers, strict=True):
        for name in LINEARS:
            packed = source.get_submodule(name)
            block.get_submodule(name).weight.copy_(packed(torch.eye(packed.in_features, dtype=torch.float16)).T)
        for norm in ("input_layernorm", "post_attention_layernorm"):  # AWQ folds scales into them
            block.get_submodule(norm).weight.copy_(source.get_submodule(norm).weight)
    return dense


def gptqmodel_cases(root: Path, base: Path) -> Iterator[Case]:
    for bits in (2, 3, 4, 8):
        for layout in ("gptq", "gptq_v2"):
            for act_order in (False, True):
                settings = {"bits": bits, "group_size": 64, "desc_act": act_order, "sym": bits != 2, "format": layout}
                name = f"gptqmodel {layout} {bits} bits{' act-order' if act_order else ''}"
                yield name, partial(by_gptqmodel, root / name.replace(" ", "-"), base, **settings), HALF
    for layout in ("gemm", "gemv"):
        settings = {"bits": 4, "group_size": 64, "method": "awq", "format": layout}
        name = f"gptqmodel awq {layout}"
        yield name, partial(by_gptqmodel, root / name.replace(" ", "-"), base, **settings), HALF


def quantized(base: Path, bits: int, **options: object) -> Path:
    setting = QuantSetting(method="rtn", w_bits=bits, group_size=64, options=options)
    return weights.quantize(resolve_weights(WeightSpec(model=str(base), setting=setting)), "cpu", Hooks())


def exported(folder: Path, base: Path, layout: str, bits: int, **options: object) -> float:
    """Our weights, exported and loaded by the program whose format it is."""
    checkpoint = quantized(base, bits, **options)
    export(checkpoint, folder, layout, "")
    ours = logits_of(load_quantized(checkpoint, "float32", "cpu").model)
    if layout == "compressed-tensors":
        return apart(ours, logits_of(unpacked(folder, base)))
    return apart(ours, logits_of(dequantized(folder, base)))


def unpacked(folder: Path, base: Path) -> torch.nn.Module:
    """The dense model of a packed checkpoint by compressed-tensors' own compressor: transformers 5.23 refuses zero
    points that are packed."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    tensors, linears = load_file(folder / "model.safetensors"), {}
    for name in list(tensors):
        path, _, part = name.rpartition(".")
        if f"{path}.weight_packed" in tensors or path in linears:
            linears.setdefault(path, {})[part] = tensors.pop(name)
    for path, parts in linears.items():
        tensors[f"{path}.weight"] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"].float()
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def export_cases(root: Path, base: Path) -> Iterator[Case]:
    for layout, widths in (("gptq_v2", (2, 4, 8)), ("awq", (4,)), ("compressed-tensors", (2, 3, 4, 8))):
        for bits in widths:
            folder = root / f"exported-{layout}-{bits}"
            bound = HALF  # scales of 16 bits: they multiply in that
            yield f"exported to {layout} {bits} bits", partial(exported, folder, base, layout, bits), bound


def in_llama_cpp(folder: Path, checkpoint: Path) -> None:
    """Ten answers of a checkpoint here and of its GGUF file in llama.cpp, and the perplexity of a text."""
    import llama_cpp

    export(checkpoint, folder, "gguf", "")
    here = load_quantized(checkpoint, "float32", "cpu")
    there = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=1024, logits_all=True, verbose=False, n_threads=1)
    tokens = here.tokenizer((Path(__file__).parents[1] / "LICENSE").read_text())["input_ids"][:512]
    with torch.inference_mode():
        ours = here.model(input_ids=torch.tensor([tokens])).logits[0]
    there.eval(tokens)
    theirs, target = torch.tensor(there.scores[: len(tokens)]), torch.tensor(tokens[1:])
    scores = [torch.nn.functional.cross_entropy(logits[:-1], target) for logits in (ours, theirs)]
    print("perplexity {:.3f} here, {:.3f} in llama.cpp".format(*map(math.exp, scores)), flush=True)
    same = 0
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        text = here.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        tokens = here.tokenizer(text, add_special_tokens=False)["input_ids"]
        if there.tokenize(text.encode(), add_bos=False, special=True) != tokens:
            print(f"  {question}: llama.cpp makes other tokens of it")
        ours, theirs = _answer_here(here, tokens), _answer_there(there, tokens, here)
        same += ours == theirs
        if ours != theirs:
            print(f"  {question}: {here.tokenizer.decode(ours)!r} here, {here.tokenizer.decode(theirs)!r} there")
    print(f"{same} of {len(QUESTIONS)} answers are the same")


@torch.inference_mode()
def _answer_here(loaded: Loaded, prompt: list[int]) -> list[int]:
    tokens, read = [], loaded.model(input_ids=torch.tensor([prompt]), use_cache=True)
    while not _ends(tokens, loaded):
        tokens.append(int(read.logits[0, -1].argmax()))
        read = loaded.model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=read.past_key_values)
    return tokens


def _answer_there(llama: Any, prompt: list[int], loaded: Loaded) -> list[int]:
    tokens: list[int] = []
    llama.reset()
    llama.eval(prompt)
    while not _ends(tokens, loaded):
        tokens.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(tokens[-1:])
    return tokens


def _ends(tokens: list[int], loaded: Loaded) -> bool:
    return len(tokens) == ANSWER_TOKENS or tokens[-1:] == [loaded.tokenizer.eos_token_id]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="only cases whose names have one of these words in them")
    parser.add_argument("--smollm2", type=Path, help="a folder that quantize made of demo-llm")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if asked.smollm2:
            return in_llama_cpp(root / "gguf", asked.smollm2)
        base, failed = base_model(root / "base"), 0
        for cases in (bitsandbytes_cases, compressed_cases, gptqmodel_cases, export_cases):
            for title, measure, bound in cases(root, base):
                if asked.names and not any(word in title for word in asked.names):
                    continue
                try:
                    off = measure()
                except Exception as error:  # one program's failure takes no other case down
                    off = math.inf
                    print(f"  {type(error).__name__}: {error}")
                failed += not off <= bound
                print(f"{'ok  ' if off <= bound else 'FAIL'} {off:.1e} {title}", flush=True)
                gc.collect()
        sys.exit(f"{failed} cases failed" if failed else None)


if __name__ == "__main__":
    main()
