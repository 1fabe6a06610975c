"""GPTQ and AWQ checkpoints of other programs, against what their layouts say."""

import json
import re
import shutil

import pytest
import torch
from formats import plain
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from quant_engine.cli import app
from quant_engine.formats import FORMATS, published
from quant_engine.formats.contract import LayoutError
from quant_engine.formats.load import load_published, model_ledger
from quant_engine.models.architecture import LINEARS
from quant_engine.models.catalog import model_card
from quant_engine.models.check import StoredTensor
from quant_engine.models.load import load_dense
from quant_engine.runs import folder
from quant_engine.spec import PublishedCheckpoint, UserError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "meta": {"quantizer": ["gptqmodel:7.6.0"]}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}


def described(tensors):
    names = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    return {name: StoredTensor("file", names[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def read(format, tensors, quantization):
    """The shape and the weight that a format reads from a linear's tensors."""
    return FORMATS[format].shape(described(tensors), quantization), FORMATS[format].weight(tensors, quantization)


def gptq_of_4_bits(number, rows, columns):
    return plain.gptq(rows, columns, 4, 16, seed=number)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_gptq_linear_is_read_bit_for_bit(bits, version, act_order):
    tensors, weight = plain.gptq(64, 96, bits, 32, version=version, act_order=act_order)
    layout = {"checkpoint_format": "gptq" if version == 1 else "gptq_v2", "group_size": 32}
    shape, stored = read("gptq", tensors, layout)
    assert shape == (64, 96)
    assert torch.equal(stored.dequantize(), weight)
    assert stored.ordered == act_order
    assert stored.ledger().bytes == stored.stored_bytes()


def test_a_gptq_linear_without_g_idx_and_with_a_shorter_last_group_is_read():
    tensors, weight = plain.gptq(32, 96, 4, 64)
    del tensors["g_idx"]
    assert torch.equal(read("gptq", tensors, {"group_size": 64})[1].dequantize(), weight)


def test_a_gptq_linear_with_one_group_a_row_is_read():
    tensors, weight = plain.gptq(32, 64, 4, 64)
    del tensors["g_idx"]
    assert torch.equal(read("gptq", tensors, {"group_size": -1})[1].dequantize(), weight)


def test_where_layers_differ_the_width_of_a_gptq_linear_is_that_of_its_tensors():
    tensors, weight = plain.gptq(32, 64, 8, 32)
    shape, stored = read("gptq", tensors, {"bits": 4, "group_size": 128, "dynamic": {"+:.*": {"bits": 8}}})
    assert (shape, stored.bits) == ((32, 64), 8)
    assert torch.equal(stored.dequantize(), weight)


def test_scales_in_bfloat16_are_read_where_float16_holds_them():
    tensors, _ = plain.gptq(32, 64, 4, 32)
    tensors["scales"] = torch.full_like(tensors["scales"], 0.03125).bfloat16()
    assert read("gptq", tensors, {"group_size": 32})[1].scales.unique().tolist() == [0.03125]
    tensors["scales"] = torch.full_like(tensors["scales"], 1e-9)
    with pytest.raises(LayoutError, match="float16 can't hold"):
        read("gptq", tensors, {"group_size": 32})


def test_awq_linears_are_read_bit_for_bit():
    tensors, weight = plain.awq_gemm(32, 96, 32)
    shape, stored = read("awq", tensors, {"group_size": 32, "version": "gemm"})
    assert shape == (32, 96)
    assert torch.equal(stored.dequantize(), weight)
    tensors, weight = plain.awq_gemv(32, 96, 32)
    shape, stored = read("awq", tensors, {"group_size": 32, "version": "GEMV"})
    assert shape == (32, 96)
    assert torch.equal(stored.dequantize(), weight)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("qweight", lambda t: t[:-1].contiguous(), "should be"),
        ("qzeros", lambda t: t[:, :-1].contiguous(), "should be"),
        ("scales", lambda t: t[:-1].contiguous(), "qzeros is"),
        ("scales", lambda t: t.flatten(), "two dimensions"),
        ("g_idx", lambda t: t[1:].contiguous(), "g_idx is"),
        ("g_idx", lambda t: t * 0, "equal groups"),
        ("g_idx", lambda t: t + 10**6, "equal groups"),
        ("g_idx", lambda t: t - 2**31, "equal groups"),
        ("qweight", lambda t: t[:0], "empty"),
        ("qweight", lambda t: t.half(), "qweight is F16"),
    ],
)
def test_a_gptq_linear_that_contradicts_itself_is_a_sentence(part, change, words):
    tensors, _ = plain.gptq(32, 64, 4, 32)
    tensors[part] = change(tensors[part])
    with pytest.raises(LayoutError, match=words):
        read("gptq", tensors, {"group_size": 32})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 3}, "codes of 4 bits, and config.json says 3"),
        ({"group_size": 64}, "g_idx has groups of 32 columns, and config.json says 64"),
        ({"group_size": 48}, "g_idx has groups of 32 columns, and config.json says 48"),
        ({"group_size": -1, "desc_act": True, "g_idx": None}, "g_idx is missing"),
        ({"group_size": 16, "g_idx": None}, "groups of 16"),
    ],
)
def test_a_gptq_linear_that_its_configuration_contradicts_is_a_sentence(change, words):
    tensors, _ = plain.gptq(32, 96, 4, 32)
    if "g_idx" in change:
        del tensors["g_idx"]
    with pytest.raises(LayoutError, match=words):
        read("gptq", tensors, {"bits": 4, "group_size": 32} | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_size": 64}, "qzeros is"),
        ({"group_size": 40}, "groups of 40 columns, as config.json says, don't divide its 96"),
        ({"version": "gemv"}, "qzeros"),
    ],
)
def test_an_awq_linear_that_its_configuration_contradicts_is_a_sentence(change, words):
    tensors, _ = plain.awq_gemm(32, 96, 32)
    with pytest.raises(LayoutError, match=words):
        read("awq", tensors, {"bits": 4, "group_size": 32} | change)


def mixed_gptq(number, rows, columns):
    """Layers of different widths; some have their columns in another order."""
    bits = (2, 3 if rows % 32 == 0 else 4, 4, 8)[number % 4]
    return plain.gptq(rows, columns, bits, 16, act_order=number % 3 == 0, seed=number)


@pytest.mark.parametrize("base", ["llama", "llava"])
def test_a_checkpoint_answers_as_the_dense_model_that_it_stands_for(base, tiny_models, tmp_path):
    quantization = GPTQ | {"dynamic": {"+:.*k_proj": {"bits": 3}}}
    dense = plain.checkpoint(tiny_models / base, tmp_path / "gptq", quantization, mixed_gptq)
    (tmp_path / "dense").mkdir()
    for file in (tiny_models / base).iterdir():
        (tmp_path / "dense" / file.name).write_bytes(file.read_bytes())
    save_file(dense, tmp_path / "dense" / "model.safetensors")
    found = published.find(PublishedCheckpoint(location=str(tmp_path / "gptq")))
    loaded = load_published(found, model_card(str(tiny_models / base)), "float32", "cpu")
    reference = load_dense(model_card(str(tmp_path / "dense")), None, "float32", "cpu")
    ids = torch.arange(4, 40)[None]
    with torch.inference_mode():
        expected = reference.model(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert found.setting.label == "GPTQ, by GPTQModel 7.6.0 W4A16 g16"
    # Codes of 2, 3, 4 and 8 bits, a scale and a zero for 16 of them, and some orders.
    assert 4 < loaded.stored_bits < 8
    assert loaded.stored_bits < model_ledger(loaded.model).bits_per_weight < 16


def test_layers_that_were_left_as_they_were_count_their_16_bits(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "gptq", GPTQ, gptq_of_4_bits)
    card, named = model_card(str(tiny_models / "llama")), PublishedCheckpoint(location=str(tmp_path / "gptq"))
    all_packed = load_published(published.find(named), card, "float32", "cpu").stored_bits
    packed = load_file(tmp_path / "gptq" / "model.safetensors")
    source = load_file(tiny_models / "llama" / "model.safetensors")
    first = f"model.layers.0.{LINEARS[0]}"
    rest = {name: tensor for name, tensor in packed.items() if not name.startswith(first)}
    save_file(rest | {f"{first}.weight": source[f"{first}.weight"]}, tmp_path / "gptq" / "model.safetensors")
    one_dense = load_published(published.find(named), card, "float32", "cpu").stored_bits
    # A scale and a zero for each 16 codes; the zeros of layers with 16 outputs are whole words too.
    assert all_packed == pytest.approx(4 + 20 / 16)
    share = 32 * 32 / sum(t.numel() for n, t in source.items() if n.removesuffix(".weight").endswith(LINEARS))
    assert one_dense == pytest.approx(all_packed + share * (16 - all_packed))


def test_zero_biases_of_a_model_without_biases_are_passed_over(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "gptq", GPTQ, gptq_of_4_bits)
    tensors = load_file(tmp_path / "gptq" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    card, named = model_card(str(tiny_models / "llama")), PublishedCheckpoint(location=str(tmp_path / "gptq"))
    save_file(tensors | {name: torch.zeros(32)}, tmp_path / "gptq" / "model.safetensors")
    load_published(published.find(named), card, "float32", "cpu")
    save_file(tensors | {name: torch.ones(32)}, tmp_path / "gptq" / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(name)):
        load_published(published.find(named), card, "float32", "cpu")


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({**GPTQ, "bits": 5}, "5 bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
        ({**AWQ, "version": "gemv_fast"}, "gemv_fast"),
        ({**AWQ, "bits": 8}, "8 bits"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": ["gptq"]}, "gptq"),
        ("gptq", "quantized as None"),
    ],
)
def test_a_format_that_is_not_read_is_a_sentence(quantization, words, tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "other", quantization, gptq_of_4_bits)
    with pytest.raises(UserError, match=words):
        published.find(PublishedCheckpoint(location=str(tmp_path / "other")))


def test_a_copy_of_a_folder_has_its_revision_and_other_weights_have_another(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "gptq", GPTQ, gptq_of_4_bits)
    shutil.copytree(tmp_path / "gptq", tmp_path / "copy", copy_function=shutil.copyfile)
    plain.checkpoint(tiny_models / "llama", tmp_path / "other", GPTQ, lambda number, *size: gptq_of_4_bits(99, *size))
    first, copy, other = (
        published.find(PublishedCheckpoint(location=str(tmp_path / name))).source.revision
        for name in ("gptq", "copy", "other")
    )
    assert first == copy != other


def test_the_base_model_is_found_from_card_or_configuration_or_has_to_be_named(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "gptq", GPTQ, gptq_of_4_bits)

    def base():
        return published.find(PublishedCheckpoint(location=str(tmp_path / "gptq"))).base().id

    with pytest.raises(UserError, match="--model"):
        base()
    card = tmp_path / "gptq" / "README.md"
    card.write_text("---\nbase_model:\n- meta-llama/Meta-Llama-3-8B\n---\n")
    assert base() == "llama3-8b"
    card.write_text("---\nbase_model: nobody/knows\n---\n")
    with pytest.raises(UserError, match="nobody/knows"):
        base()
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config | {"_name_or_path": str(tiny_models / "llama")}))
    assert base() == str(tiny_models / "llama")


def test_a_checkpoint_is_measured_and_asked_from_the_command_line(tiny_models, tmp_path, lab):
    plain.checkpoint(tiny_models / "llama", tmp_path / "awq", AWQ, lambda n, r, c: plain.awq_gemm(r, c, 16, seed=n))
    run = CliRunner().invoke
    model, checkpoint = str(tiny_models / "llama"), str(tmp_path / "awq")
    words = ["run", "-m", model, "--checkpoint", checkpoint, "-t", "perplexity,divergence", "--limit", "1"]
    done = run(app, [*words, "--window", "64", "--json"])
    assert done.exit_code == 0, done.output
    (path,) = folder.run_folders()
    result = folder.read(path).results[0]
    assert (result.method, result.w_bits, result.group_size, result.source) == ("awq:", 4, 16, "measured")
    assert result.stored_bits == pytest.approx(4 + 20 / 16)
    assert result.model == "llama"
    assert f"--checkpoint {checkpoint}" in result.command
    assert "made before" in run(app, [*words, "--window", "64"]).output
    of_folder = ["evaluate", checkpoint, "-m", model, *words[5:], "--window", "64"]
    assert "made before" in run(app, of_folder).output
    asked = run(app, ["ask", "hello", "-m", model, "--checkpoint", checkpoint, "--most-tokens", "3"])
    assert asked.exit_code == 0
    assert "AWQ checkpoint W4A16 g16" in asked.output
    refused = run(app, [*words, "--method", "rtn", "--bits", "4"])
    assert refused.exit_code == 2
    assert "quantized already" in refused.output


def test_a_checkpoint_of_another_model_is_refused(tiny_models, tmp_path):
    plain.checkpoint(tiny_models / "llama", tmp_path / "awq", AWQ, lambda n, r, c: plain.awq_gemm(r, c, 16))
    words = ["run", "--model", str(tiny_models / "deep"), "--checkpoint", str(tmp_path / "awq"), "-t", "perplexity"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "num_hidden_layers is 2" in " ".join(done.output.split())
