"""Checkpoints of compressed-tensors and bitsandbytes, against what their layouts say."""

import json

import pytest
import torch
from formats import plain
from safetensors.torch import load_file, save_file

from quant_engine.formats import FORMATS, published
from quant_engine.formats.contract import LayoutError, ReadTensor
from quant_engine.formats.load import load_published
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.check import StoredTensor
from quant_engine.models.load import load_dense
from quant_engine.spec import PublishedCheckpoint, UserError
from quant_engine.weights.registry import empty_weight

NAMES = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int8: "I8"}
NAMES |= {torch.uint8: "U8", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}


def scheme(inputs=None, **weights):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


FLOAT8 = scheme(num_bits=8, type="float", strategy="channel", group_size=None)
PER_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def read(format, tensors, quantization):
    """The shape and the weight that a format reads from a linear's tensors."""
    described = {}
    for name, tensor in tensors.items():
        plainly = "file", NAMES[tensor.dtype], tuple(tensor.shape)
        small = name in FORMATS[format].small
        described[name] = ReadTensor(*plainly, tensor) if small else StoredTensor(*plainly)
    return FORMATS[format].shape(described, quantization), FORMATS[format].weight(tensors, quantization)


def check(format, tensors, expected, quantization):
    shape, stored = read(format, tensors, quantization)
    assert shape == tuple(expected.shape)
    assert torch.equal(stored.dequantize(), expected)
    assert torch.equal(stored.dequantize(3, 9), expected[3:9])
    assert stored.ledger().bytes == stored.stored_bytes()
    again = empty_weight(form=stored.form, **stored.config())
    again.load_state_dict(stored.state_dict())
    assert torch.equal(again.dequantize(), expected)
    return stored


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_packed_integers_are_read_bit_for_bit(bits, groups, symmetric):
    tensors, weight = plain.compressed(40, 96, bits, groups, symmetric=symmetric)
    stored = check("compressed-tensors", tensors, weight, scheme(num_bits=bits, group_size=96 // groups))
    assert (stored.form, stored.bits, stored.groups) == ("grouped_int", bits, groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_stay_as_they_are_where_float16_would_change_them(dtype):
    tensors, _ = plain.compressed(40, 96, 4, 3, symmetric=False, scale_dtype=dtype)
    tensors["weight_scale"] = (tensors["weight_scale"].float() * 1e-6).to(dtype)
    codes, zeros, _ = plain.draw(40, 96, 4, 3)
    columns = torch.arange(96) // 32
    weight = tensors["weight_scale"].float()[:, columns] * (codes - zeros[:, columns]).float()
    assert check("compressed-tensors", tensors, weight, scheme(group_size=32)).form == "scaled_int"


@pytest.mark.parametrize(("shape", "block"), [((1,), None), ((40, 1), None), ((3, 3), [16, 32])])
def test_8_bit_floats_are_read_bit_for_bit(shape, block):
    tensors, weight = plain.float8(40, 96, shape, block)
    stored = check("compressed-tensors", tensors, weight, scheme(type="float", num_bits=8, block_structure=block))
    assert stored.form == "float8"


def test_signed_bytes_are_read_bit_for_bit():
    tensors, weight = plain.int8(40, 96)
    assert check("compressed-tensors", tensors, weight, scheme(num_bits=8)).bits == 8


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bit_levels_are_read_bit_for_bit(kind, double, block):
    tensors, weight = plain.four_bits(48, 96, kind, double=double, block=block)
    check("bitsandbytes", tensors, weight, NF4 | {"bnb_4bit_quant_type": kind})


def test_rows_of_llm_int8_are_read_bit_for_bit():
    tensors, weight = plain.llm_int8(40, 96)
    check("bitsandbytes", tensors, weight, {})


def test_inputs_are_rounded_as_the_configuration_says():
    torch.manual_seed(0)
    x = torch.randn(5, 96) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1e-3])[:, None]
    layers = {}
    for grid, kind in (("int8", "int"), ("float8", "float")):
        tensors = (plain.int8(40, 96) if kind == "int" else plain.float8(40, 96, (40, 1)))[0]
        quantization = scheme(PER_TOKEN | {"type": kind}, type=kind, num_bits=8)
        layers[grid] = read("compressed-tensors", tensors, quantization)[1]
    scale = x.abs().amax(1, keepdim=True) / 127.5
    expected = (x / scale).round().clamp(-128, 127) * scale
    torch.testing.assert_close(layers["int8"].round(x), expected)
    scale = x.abs().amax(1, keepdim=True) / 448
    expected = (x / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(layers["float8"].round(x), expected)
    rounded = read("bitsandbytes", plain.llm_int8(40, 96)[0], {})[1].round(x)
    outliers = x.abs() >= 6
    assert torch.equal(rounded[outliers], x[outliers])
    largest = x.masked_fill(outliers, 0).abs().amax(1, keepdim=True)
    assert ((rounded - x).abs() <= largest / 127 * 0.57).all()
    assert not torch.equal(rounded, x)


def test_a_stored_scale_of_the_inputs_is_used():
    tensors, _ = plain.float8(40, 96, (1,))
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}
    stored = check(
        "compressed-tensors", tensors | {"input_scale": torch.tensor([0.01])}, plain.float8(40, 96, (1,))[1],
        scheme(inputs, type="float", num_bits=8),
    )  # fmt: skip
    x = torch.tensor([[5.0, 4.48, 0.0124, 0.0, *[1.0] * 92]])
    assert stored.round(x)[0, :4].tolist() == pytest.approx([4.48, 4.48, 0.0125, 0])


def made(kind):
    """What makes the tensors of the linears of a checkpoint."""
    return {
        "int4": (scheme(), lambda n, r, c: plain.compressed(r, c, 4, c // 16, symmetric=n % 2 == 0, seed=n)),
        "fp8": (FLOAT8, lambda n, r, c: plain.float8(r, c, (r, 1) if n % 2 else (1,), seed=n)),
        "nf4": (NF4, lambda n, r, c: plain.four_bits(r, c, "nf4", block=32, seed=n)),
        "fp4": (NF4 | {"bnb_4bit_quant_type": "fp4"}, lambda n, r, c: plain.four_bits(r, c, "fp4", block=32, seed=n)),
    }[kind]


@pytest.mark.parametrize("kind", ["int4", "fp8", "nf4", "fp4"])
@pytest.mark.parametrize("base", ["llama", "llava"])
def test_a_checkpoint_answers_as_the_dense_model_that_it_stands_for(base, kind, tiny_models, tmp_path):
    quantization, make = made(kind)
    dense = plain.checkpoint(tiny_models / base, tmp_path / "packed", quantization, make)
    (tmp_path / "dense").mkdir()
    for file in (tiny_models / base).iterdir():
        (tmp_path / "dense" / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in dense.items()}, tmp_path / "dense" / "model.safetensors")
    found = published.find(PublishedCheckpoint(location=str(tmp_path / "packed")))
    loaded = load_published(found, model_card(str(tiny_models / base)), "float32", "cpu")
    reference = load_dense(model_card(str(tmp_path / "dense")), None, "float32", "cpu")
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        expected = reference.model(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        one = reference.model(input_ids=ids[:, :1]).logits
        torch.testing.assert_close(loaded.model(input_ids=ids[:, :1]).logits, one, rtol=1e-4, atol=1e-4)
    label = {"int4": "compressed-tensors INT4 W4A16 g16", "fp8": "compressed-tensors FP8 W8A16"}
    label |= {"nf4": "bitsandbytes NF4 W4A16 g64", "fp4": "bitsandbytes FP4 W4A16 g64"}
    assert found.setting.label == label[kind]


@pytest.mark.parametrize("kind", ["int8", "llm_int8"])
def test_a_checkpoint_with_rounded_inputs_answers_close_to_its_dense_model(kind, tiny_models, tmp_path):
    quantization = {
        "int8": scheme(PER_TOKEN, num_bits=8, strategy="channel", group_size=None),
        "llm_int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }[kind]
    make = plain.int8 if kind == "int8" else plain.llm_int8
    dense = plain.checkpoint(tiny_models / "llama", tmp_path / "packed", quantization, lambda n, r, c: make(r, c, n))
    found = published.find(PublishedCheckpoint(location=str(tmp_path / "packed")))
    loaded = load_published(found, model_card(str(tiny_models / "llama")), "float32", "cpu")
    assert found.setting.a_bits == 8
    reference = load_dense(model_card(str(tiny_models / "llama")), None, "float32", "cpu")
    reference.model.load_state_dict(dense, strict=False)
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        off = loaded.model(input_ids=ids).logits - reference.model(input_ids=ids).logits
        size = reference.model(input_ids=ids).logits.norm()
    assert 1e-5 < off.norm() / size < 0.1


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("weight_packed", lambda t: t[:-1].contiguous(), "weight_packed is"),
        ("weight_packed", lambda t: t[:, :0], "empty"),
        ("weight_packed", lambda t: t[:, :-1].contiguous(), "do not hold|should be"),
        ("weight_packed", lambda t: t.float(), "weight_packed is F32"),
        ("weight_shape", lambda t: t * 1000, "does not fit"),
        ("weight_shape", lambda t: -t, "does not fit"),
        ("weight_shape", lambda t: t[:1], "two numbers"),
        ("weight_scale", lambda t: t[:, :2].contiguous(), "weight_scale|weight_zero_point"),
        ("weight_scale", lambda t: t[:-1].contiguous(), "weight_scale"),
        ("weight_zero_point", lambda t: t[:-1].contiguous(), "weight_zero_point"),
    ],
)
def test_a_packed_linear_that_contradicts_itself_is_a_sentence(part, change, words):
    tensors, _ = plain.compressed(40, 96, 4, 3, symmetric=False)
    tensors[part] = change(tensors[part])
    with pytest.raises(LayoutError, match=words):
        read("compressed-tensors", tensors, scheme(group_size=32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 3}, "codes of 4 bits, and config.json says 3"),
        ({"group_size": 16}, "3 scales for 96 columns, and config.json says groups of 16"),
        ({"group_size": 40}, "config.json says groups of 40"),
        ({"symmetric": False}, "weight_zero_point is missing"),
    ],
)
def test_a_packed_linear_that_its_configuration_contradicts_is_a_sentence(change, words):
    tensors, _ = plain.compressed(40, 96, 4, 3)
    with pytest.raises(LayoutError, match=words):
        read("compressed-tensors", tensors, scheme(**{"group_size": 32} | change))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("weight", lambda t: t[:-1].contiguous(), "weight is"),
        ("weight.absmax", lambda t: t[:-1].contiguous(), "absmax is"),
        ("weight.absmax", None, "absmax is missing"),
        ("weight.nested_absmax", None, "nested_absmax is missing"),
        ("weight.quant_map", lambda t: t * 2, "levels"),
        ("weight.nested_quant_map", lambda t: t * 2, "nested levels"),
        ("weight.quant_state.bitsandbytes__nf4", None, "one quant_state"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: t[:-1], "no JSON"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: t * 0 + 255, "no JSON"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: state(shape=[1, "a"], blocksize=64), "shape"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: state(shape=[48, 96], blocksize=0), "blocksize"),
        ("weight.quant_state.bitsandbytes__nf4", lambda t: state(shape=[2**30, 96], blocksize=64), "weight is"),
    ],
)
def test_a_4_bit_linear_that_contradicts_itself_is_a_sentence(part, change, words):
    tensors, _ = plain.four_bits(48, 96, "nf4")
    if change:
        tensors[part] = change(tensors[part])
    else:
        del tensors[part]
    with pytest.raises(LayoutError, match=words):
        read("bitsandbytes", tensors, NF4)


@pytest.mark.parametrize(
    ("tensors", "quantization", "words"),
    [
        (plain.four_bits(48, 96, "nf4")[0], NF4 | {"bnb_4bit_quant_type": "fp4"}, "type nf4, and config.json says"),
        (plain.four_bits(48, 96, "nf4")[0], {"load_in_8bit": True}, "SCB is missing"),
        (plain.llm_int8(40, 96)[0], NF4, "load_in_4bit"),
    ],
)
def test_a_bitsandbytes_linear_that_its_configuration_contradicts_is_a_sentence(tensors, quantization, words):
    with pytest.raises(LayoutError, match=words):
        read("bitsandbytes", tensors, quantization)


def state(**fields):
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (scheme(num_bits=4, type="float"), "'float' weights of 4 bits"),
        (scheme() | {"format": "marlin-24"}, "marlin-24"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        (scheme(PER_TOKEN | {"symmetric": False}, num_bits=8), "not read"),
        (NF4 | {"bnb_4bit_quant_type": "af4"}, "af4"),
    ],
)
def test_what_is_not_read_is_a_sentence(quantization, words, tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "other", quantization, lambda n, r, c: plain.int8(r, c))
    with pytest.raises(UserError, match=words):
        published.find(PublishedCheckpoint(location=str(tmp_path / "other")))


def test_linears_that_were_left_as_they_are_stay_dense(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "packed", FLOAT8, lambda n, r, c: plain.float8(r, c, (r, 1)))
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    source = load_file(tiny_models / "llama" / "model.safetensors")
    first = f"model.layers.0.{LINEARS[0]}"
    del tensors[f"{first}.weight_scale"]
    save_file(tensors | {f"{first}.weight": source[f"{first}.weight"]}, tmp_path / "packed" / "model.safetensors")
    found = published.find(PublishedCheckpoint(location=str(tmp_path / "packed")))
    loaded = load_published(found, model_card(str(tiny_models / "llama")), "float32", "cpu")
    assert torch.equal(loaded.model.get_submodule(first).weight, source[f"{first}.weight"])
    assert 8 < loaded.stored_bits < 12
