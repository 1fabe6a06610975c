"""Checkpoints in safetensors files, for benchmarks/interop.py: those of GPTQModel, compressed-tensors and bitsandbytes
read here, and ours in GPTQModel, compressed-tensors and transformers."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
import transformers
from interop_cases import (
    BFLOAT16,
    FLOAT32,
    HALF,
    Case,
    Unavailable,
    apart,
    demo_model,
    load_here,
    logits_of,
    quantized,
    read_here,
)  # fmt: skip
from safetensors.torch import load_file, save_file

from quant_engine.checkpoints.folder import load_quantized
from quant_engine.formats.export import export
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.files import folder_of


def by_bitsandbytes(folder: Path, base: Path, quantization: transformers.BitsAndBytesConfig) -> float:
    """bitsandbytes quantizes as transformers loads a model; what is saved then is read here."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # its kernel of that processor takes all in bfloat16
    if quantization.load_in_8bit:
        return layers_apart(folder, base, model)
    return apart(read_here(folder, base), logits_of(model))


@torch.inference_mode()
def layers_apart(folder: Path, base: Path, model: torch.nn.Module) -> float:
    """How far the linears' own outputs are apart for the same token. Behind several linears with rounded inputs
    logits tell little: an input between two numbers goes to the other one for a difference of 1e-5."""
    ours, off = load_here(folder, base).model, []
    for block, theirs in zip(ours.model.layers, model.model.layers, strict=True):
        for name in LINEARS:
            linear = block.get_submodule(name)
            x = 3 * torch.randn(1, linear.in_features, generator=torch.Generator().manual_seed(0))
            off.append(apart(linear(x), theirs.get_submodule(name)(x.clone())))
    return max(off)


def _four_bits(kind: str, double: bool) -> transformers.BitsAndBytesConfig:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def bitsandbytes_cases(root: Path, base: Path) -> Iterator[Case]:
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            config = _four_bits(kind, double)
            name = f"bitsandbytes {kind}{' doubly quantized' if double else ''}"
            yield Case(name, partial(by_bitsandbytes, root / name.replace(" ", "-"), base, config), FLOAT32)
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    yield Case("bitsandbytes int8", partial(by_bitsandbytes, root / "bnb-int8", base, config), FLOAT32)


def by_compressed_tensors(folder: Path, base: Path, weight_args: dict, input_args: dict | None) -> float:
    """compressed-tensors: scales by its own rule, packed and unpacked by its own compressor."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    scheme = {"targets": ["Linear"], "weights": weight_args, "input_activations": input_args}
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format="dense")
    )
    for module in model.modules():
        if getattr(getattr(module, "quantization_scheme", None), "weights", None) is not None:
            _set_scales(module, module.quantization_scheme.weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return apart(read_here(folder, base), logits_of(model))  # it unpacks what it compressed


def _set_scales(module: torch.nn.Module, args: object) -> None:
    """Gives a linear the scales and zero points that compressed-tensors computes from its weights' ranges."""
    from compressed_tensors.quantization.utils import calculate_qparams

    values = module.weight.detach()
    if args.strategy == "block":
        height, width = args.block_structure
        values = values.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2).flatten(2)
    elif args.group_size:
        values = values.unflatten(1, (-1, args.group_size))
    rows = (0, 1) if args.strategy == "tensor" else -1
    scale, zero = calculate_qparams(values.amin(rows), values.amax(rows), args)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    if getattr(module, "weight_zero_point", None) is not None:
        module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape)
    if getattr(module, "input_scale", None) is not None:  # known before: inputs up to 6
        top = torch.tensor(6.0)
        scale, _ = calculate_qparams(-top, top, module.quantization_scheme.input_activations)
        module.input_scale.data = scale.reshape(module.input_scale.shape).to(module.input_scale.dtype)


def compressed_tensors_cases(root: Path, base: Path) -> Iterator[Case]:
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
    per_token, known = {"strategy": "token", "dynamic": True} | eight, {"strategy": "tensor", "dynamic": False} | eight
    for kind, title in (("int", "int8"), ("float", "fp8")):
        weights = eight | {"type": kind, "strategy": "channel"}
        schemes[f"{title} W8A8"] = weights, per_token | {"type": kind}
        schemes[f"{title} W8A8, scales of inputs known before"] = weights, known | {"type": kind}
    for strategy, more in (("tensor", {}), ("channel", {}), ("block", {"block_structure": [128, 128]})):
        schemes[f"fp8 {strategy}"] = eight | {"type": "float", "strategy": strategy} | more, None
    for name, (weight_args, input_args) in schemes.items():
        folder = root / f"compressed-{name.replace(' ', '-')}"
        # A rounded input that lies between two numbers of its grid may go to either: the sums before it differ.
        bound = HALF if input_args else FLOAT32
        measure = partial(by_compressed_tensors, folder, base, weight_args, input_args)
        yield Case(f"compressed-tensors {name}", measure, bound)
    yield Case("compressed-tensors int4 group act-order (weight_g_idx)", _no_longer_written, FLOAT32)


def _no_longer_written() -> float:
    version = importlib.metadata.version("compressed-tensors")
    raise Unavailable(f"compressed-tensors {version} no longer writes it")


def by_gptqmodel(folder: Path, base: Path, **settings: object) -> float:
    _quantize_by_gptqmodel(folder, base, **settings)
    return apart(read_here(folder, base), logits_of(dequantized(folder, base)))


def _quantize_by_gptqmodel(folder: Path, base: Path, **settings: object) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    # Its AWQ refuses float32, and has to hear that there is no CUDA.
    awq = settings.get("method") == "awq"
    dtype, backend = (torch.bfloat16, BACKEND.AWQ_TORCH) if awq else (torch.float32, BACKEND.AUTO)
    model = GPTQModel.load(str(base), QuantizeConfig(**settings), device="cpu", dtype=dtype)
    rows = torch.randint(4, 250, (16, 1, 128), generator=torch.Generator().manual_seed(0))
    model.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], backend=backend)
    model.save(str(folder))


@torch.inference_mode()
def dequantized(folder: Path, base: Path) -> torch.nn.Module:
    """The dense model, in float32, with the weights that GPTQModel's layers have in float16: they take no float32."""
    from gptqmodel import GPTQModel

    read = GPTQModel.load(str(folder), device="cpu", backend="torch", dtype=torch.float16).model
    dense = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    dense.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # AWQ folds scales into norms
    for block, source in zip(dense.model.layers, read.model.layers, strict=True):
        for name in LINEARS:
            packed = source.get_submodule(name)
            block.get_submodule(name).weight.copy_(packed(torch.eye(packed.in_features, dtype=torch.float16)).T)
    return dense


def awq_gemv(folder: Path, gemm: Path, base: Path) -> float:
    """GPTQModel's GEMV layer runs on CUDA only: it packs here what GPTQModel quantized for GEMM, and the logits are
    those of the same weights in that layout."""
    from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq

    _quantize_by_gptqmodel(gemm, base, bits=4, group_size=64, method="awq", format="gemm")
    shutil.copytree(gemm, folder)
    tensors, dense = load_file(gemm / "model.safetensors"), dequantized(gemm, base)
    for path in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        linear, (words, zeros) = (
            dense.get_submodule(path),
            (tensors[f"{path}.{part}"] for part in ("qweight", "qzeros")),
        )
        _, zeros = reverse_awq_order(*unpack_awq(words, zeros, 4), 4)
        layer = AwqGEMVLinear(4, 64, False, False, linear.in_features, linear.out_features)
        layer.pack(linear, tensors[f"{path}.scales"].T.float(), zeros.T)
        tensors |= {f"{path}.{part}": getattr(layer, part).contiguous() for part in ("qweight", "qzeros", "scales")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for file in (folder / "config.json", folder / "quantize_config.json"):
        content = json.loads(file.read_text())
        quantization = content.get("quantization_config", content)
        quantization |= {name: "gemv" for name in ("version", "checkpoint_format", "format") if name in quantization}
        file.write_text(json.dumps(content))
    return apart(read_here(folder, base), logits_of(dense))


def gptqmodel_cases(root: Path, base: Path) -> Iterator[Case]:
    for bits in (2, 3, 4, 8):
        for layout in ("gptq", "gptq_v2"):
            for act_order in (False, True):
                for symmetric in (True, False):
                    settings = {"bits": bits, "group_size": 64, "desc_act": act_order, "sym": symmetric}
                    words = f"{' symmetric' if symmetric else ''}{' act-order' if act_order else ''}"
                    name = f"gptqmodel {layout} {bits} bits{words}"
                    folder = root / name.replace(" ", "-")
                    yield Case(name, partial(by_gptqmodel, folder, base, **settings, format=layout), HALF)
    rows = {"bits": 4, "group_size": -1, "format": "gptq", "act_group_aware": False}
    yield Case("gptqmodel gptq 4 bits, a scale for each row", partial(by_gptqmodel, root / "rows", base, **rows), HALF)
    mixed = {"bits": 4, "group_size": 64, "format": "gptq", "dynamic": {r"+:.*down_proj": {"bits": 8}}}
    yield Case("gptqmodel gptq 4 bits, some layers 8", partial(by_gptqmodel, root / "mixed", base, **mixed), HALF)
    gemm = {"bits": 4, "group_size": 64, "method": "awq", "format": "gemm"}
    yield Case("gptqmodel awq gemm", partial(by_gptqmodel, root / "awq-gemm", base, **gemm), HALF)
    yield Case("gptqmodel awq gemv", partial(awq_gemv, root / "awq-gemv", root / "for-gemv", base), HALF)


Weights = tuple[str, int, int | None, tuple[tuple[str, object], ...]]
"""A method, its bits and group size, and its options."""


@cache
def ours(weights: Weights, base: Path) -> tuple[Path, torch.Tensor]:
    """A checkpoint of the small model, and its logits here."""
    method, bits, group, options = weights
    checkpoint = quantized(base, method, bits, group, **dict(options))
    return checkpoint, logits_of(load_quantized(checkpoint, "float32", "cpu").model)


def exported(folder: Path, base: Path, weights: Weights, layout: str, program: str) -> float:
    """Our weights, exported and loaded by a program whose format it is."""
    checkpoint, logits = ours(weights, base)
    if not folder.exists():
        export(checkpoint, folder, layout, "")
    return apart(logits, logits_of(LOADERS[program](folder, base)))


def in_transformers(folder: Path, base: Path) -> torch.nn.Module:
    """The model as transformers loads it, computing in float16: by GPTQModel's layers in plain PyTorch."""
    awq = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "awq"
    layers = transformers.AwqConfig(backend="torch_awq") if awq else transformers.GPTQConfig(4, backend="torch")
    return _in_transformers(folder, layers)


def in_transformers_bfloat16(folder: Path, base: Path) -> torch.nn.Module:
    """By the layers that GPTQModel chooses for 4 bits on a CPU: PyTorch's own kernel, which takes scales and inputs in
    bfloat16."""
    return _in_transformers(folder)


def packed_in_transformers(folder: Path, base: Path) -> torch.nn.Module:
    """By compressed-tensors' layers, which unpack as they are first used."""
    tensors = load_file(folder / "model.safetensors")
    try:
        return _in_transformers(folder)
    except RuntimeError as error:
        if "mismatched" not in str(error) or not any(name.endswith("weight_zero_point") for name in tensors):
            raise
        version = importlib.metadata.version("compressed-tensors")
        raise Unavailable(f"compressed-tensors {version} reserves unpacked zero points for packed ones") from None


def _in_transformers(folder: Path, layers: object = None) -> torch.nn.Module:
    given = {"quantization_config": layers} if layers else {}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, device_map="cpu", **given
    ).eval()


def unpacked_in_transformers(folder: Path, base: Path) -> torch.nn.Module:
    """transformers unpacks a compressed-tensors checkpoint as it loads, by compressed-tensors' own compressor."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
        dtype=torch.float32,
        device_map="cpu",
    ).eval()


IN_GPTQMODEL, IN_TRANSFORMERS, IN_BFLOAT16 = "in gptqmodel", "in transformers", "in transformers by int4 kernels"
UNPACKED, PACKED = "in transformers, unpacked", "in transformers, packed"
LOADERS = {
    IN_GPTQMODEL: dequantized,
    IN_TRANSFORMERS: in_transformers,
    IN_BFLOAT16: in_transformers_bfloat16,
    UNPACKED: unpacked_in_transformers,
    PACKED: packed_in_transformers,
}


def export_cases(root: Path, base: Path) -> Iterator[Case]:
    symmetric = (("symmetric", True),)
    act_order = (("act_order", True), ("groups", "dynamic"))
    gptq = {f"{bits} bits symmetric": ("rtn", bits, 64, symmetric) for bits in (2, 3, 4, 8)}
    gptq["4 bits gptq act-order symmetric"] = "gptq", 4, 64, (*act_order, *symmetric)
    with_zeros = {f"{bits} bits": ("rtn", bits, 64, ()) for bits in (2, 3, 4, 8)}
    with_zeros["4 bits gptq act-order"] = "gptq", 4, 64, act_order
    rows = {"4 bits symmetric, a scale for each row": ("rtn", 4, None, symmetric)}
    rows_with_zeros = {"4 bits, a scale for each row": ("rtn", 4, None, ())}
    awq = {"awq 4 bits": ("awq", 4, 64, ()), "rtn 4 bits": ("rtn", 4, 64, ())}
    packed = {name: weights for name, weights in (gptq | with_zeros).items() if "act-order" not in name}
    for layout, programs, choices in (
        ("gptq", (IN_GPTQMODEL, IN_TRANSFORMERS), gptq),
        ("gptq", (IN_BFLOAT16,), {"4 bits symmetric": gptq["4 bits symmetric"]}),
        ("gptq_v2", (IN_GPTQMODEL, IN_TRANSFORMERS), gptq | with_zeros | rows | rows_with_zeros),
        ("awq", (IN_GPTQMODEL, IN_TRANSFORMERS, IN_BFLOAT16), awq),
        ("compressed-tensors", (UNPACKED, PACKED), packed | rows | rows_with_zeros),
    ):
        for name, weights in choices.items():
            folder = root / f"exported-{layout}-{name.replace(' ', '-')}"
            for program in programs:
                measure = partial(exported, folder, base, weights, layout, program)
                bound = BFLOAT16 if program == IN_BFLOAT16 else HALF
                yield Case(f"exported to {layout}, {name}, {program}", measure, bound)


def smollm2_cases(root: Path, base: Path) -> Iterator[Case]:
    """A checkpoint of each program, and an export to each format, of SmolLM2: 30 blocks, and a head that is the
    embedding."""
    int4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}
    gptq = {"bits": 4, "group_size": 64, "sym": False, "desc_act": False}
    cases: dict[str, tuple[Callable[[Path, Path], float], float]] = {
        "bitsandbytes nf4 doubly quantized": (partial(by_bitsandbytes, quantization=_four_bits("nf4", True)), FLOAT32),
        "compressed-tensors int4 group": (partial(by_compressed_tensors, weight_args=int4, input_args=None), FLOAT32),
        "gptqmodel gptq 4 bits": (partial(by_gptqmodel, **gptq), HALF),
    }
    for layout, program in (("gptq_v2", IN_GPTQMODEL), ("awq", IN_GPTQMODEL), ("compressed-tensors", UNPACKED)):
        measure = partial(exported, weights=("rtn", 4, 64, ()), layout=layout, program=program)
        cases[f"exported to {layout}, 4 bits, {program}"] = measure, HALF
    for name, (measure, bound) in cases.items():
        folder = root / f"smollm2-{name.replace(' ', '-')}"
        yield Case(f"{name}, of SmolLM2", partial(_of_smollm2, measure, folder), bound)


def _of_smollm2(measure: Callable[[Path, Path], float], folder: Path) -> float:
    return measure(folder, folder_of(model_card(demo_model()), None))
