"""The compiled step against the model's own forward pass over dense weights, for every storage form."""

import os
import subprocess
import sys

import pytest
import torch
from kernels import test_codebook_kernels, test_matmul
from models.test_forward import MODELS, expected
from weights import test_binary, test_mixed_width

from quant_engine.kernels.linear import QuantLinear
from quant_engine.models.architecture import LINEARS
from quant_engine.models.forward import Piece, last_states
from quant_engine.models.key_values import KeyValues
from quant_engine.models.step import step_of
from quant_engine.weights.half import Half
from quant_engine.weights.int_activations import IntActivations
from quant_engine.weights.low_rank import LowRank
from quant_engine.weights.rotated import RotatedInt

FORMS = {
    "half": lambda rows, columns: Half.pack(torch.randn(rows, columns).half() / 4),
    "bfloat16": lambda rows, columns: Half.pack(torch.randn(rows, columns).bfloat16() / 4),
    "grouped": lambda rows, columns: test_matmul.stored(4, rows, columns, 32, seed=rows),
    "symmetric": lambda rows, columns: test_matmul.stored(3, rows, columns, 32, symmetric=True, seed=rows),
    "ordered": lambda rows, columns: test_matmul.stored(2, rows, columns, 64, ordered=True, seed=rows),
    "codebook": lambda rows, columns: test_codebook_kernels.stored(4, rows, columns, 32),
    "binary": lambda rows, columns: test_binary.made("binary", rows, columns, 32)[0],
    "int activations": lambda rows, columns: IntActivations.pack(
        torch.randint(-7, 8, (rows, columns)), torch.full((rows, 1), 0.1).half(), 4, 8, True
    ),
    "partly": lambda rows, columns: test_binary.made("partly", rows, columns, 32)[0],
    "residual": lambda rows, columns: test_binary.made("residual", rows, columns, 32)[0],
    "mixed": lambda rows, columns: test_mixed_width.made([2, 1, 3][: columns // 32], 2, 32, columns, rows)[0],
    "rotated": lambda rows, columns: rotated(rows, columns, "kronecker"),
    "rotated in blocks": lambda rows, columns: rotated(rows, columns, "blocked"),
    "low rank": lambda rows, columns: adapted(FORMS["codebook"](rows, columns), 5),
    "low rank of more than the columns": lambda rows, columns: adapted(FORMS["grouped"](rows, columns), 200),
}


def rotated(rows, columns, kind):
    codes, column_scales = torch.randint(16, (rows, columns)), 0.5 + torch.rand(columns)
    return RotatedInt.pack(codes, torch.full((1,), 0.02).half(), column_scales.half(), 4, 0, kind)


def adapted(base, rank):
    a, b = torch.randn(rank, base.in_features), torch.randn(base.out_features, rank)
    return LowRank(base, a / 8, b / rank, 0.25)


def models(name, form):
    """A model with dense weights of a form, and the same with the weights stored."""
    torch.manual_seed(0)
    dense, stored = MODELS[name](), MODELS[name]()
    for linear in (block.get_submodule(path) for block in dense.model.layers for path in LINEARS):
        if linear.bias is not None:
            linear.bias.data.normal_()
    stored.load_state_dict(dense.state_dict())
    for block, other in zip(dense.model.layers, stored.model.layers, strict=True):
        for path in LINEARS:
            linear, (parent, _, leaf) = block.get_submodule(path), path.rpartition(".")
            weight = FORMS[form](linear.out_features, linear.in_features)
            linear.weight.data = weight.dequantize()
            setattr(other.get_submodule(parent), leaf, QuantLinear(weight, linear.bias))
    return dense, stored


class Reading:
    """Texts that a model reads together, up to a token of each; then a token more of each at a time."""

    def __init__(self, model, texts):
        self.model, self.texts, self.read = model, texts, [0] * len(texts)
        self.caches = [KeyValues(model.get_decoder()) for _ in texts]

    @torch.inference_mode()
    def logits(self, to):
        spans = zip(self.texts, self.read, to, strict=True)
        embeddings = [self.model.get_input_embeddings()(text[start:end]) for text, start, end in spans]
        pieces = [Piece(tokens, cache) for tokens, cache in zip(embeddings, self.caches, strict=True)]
        self.read = to
        return self.model.get_output_embeddings()(last_states(self.model.get_decoder(), pieces))


def check(dense, stored, rows):
    texts = [torch.randint(60, (length,)) for length in (41, 9, 20, 4, 77)[:rows]]
    reading = Reading(stored, texts)
    for back in (2, 1, 0):
        ends = [len(text) - back for text in texts]
        wanted = torch.stack([expected(dense, text[:end]) for text, end in zip(texts, ends, strict=True)])
        torch.testing.assert_close(reading.logits(ends), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_tokens_of_several_texts_get_what_the_model_gives_them(name):
    dense, stored = models(name, "half")
    assert step_of(stored.get_decoder())
    check(dense, stored, 5)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("half", "int activations")])
@pytest.mark.parametrize("rows", [1, 3])
def test_weights_of_every_form_go_through_the_step(form, rows):
    dense, stored = models("biases", form)
    assert step_of(stored.get_decoder())
    check(dense, stored, rows)


def test_inputs_and_outputs_are_rounded_as_layers_round_them():
    _, stored = models("biases", "int activations")
    assert step_of(stored.get_decoder())
    texts = [torch.randint(60, (length,)) for length in (20, 9, 14)]
    one_more, at_once = Reading(stored, texts), Reading(stored, texts)
    one_more.logits([19, 8, 13])
    wanted = at_once.logits([20, 9, 14])
    found = one_more.logits([20, 9, 14])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_two_threads_compute_the_same_to_the_last_bit():
    _, stored = models("llama", "grouped")
    texts, threads, found = [torch.arange(20), torch.arange(9)], torch.get_num_threads(), []
    for count in (1, 2):
        reading = Reading(stored, texts)
        reading.logits([19, 8])
        torch.set_num_threads(count)
        try:
            found.append(reading.logits([20, 9]))
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_new_weights_are_taken_where_others_lay():
    dense, stored = models("llama", "grouped")
    check(dense, stored, 1)
    linear, change = stored.model.layers[1].mlp.up_proj, FORMS["grouped"](96, 64)
    change.scales *= 2
    linear.weight.load_state_dict(change.state_dict())
    dense.model.layers[1].mlp.up_proj.weight.data = change.dequantize()
    check(dense, stored, 2)


def test_what_the_step_can_not_do_goes_module_by_module():
    dense, stored = models("llama", "grouped")
    weight = test_matmul.stored(4, 96, 64, 24)
    stored.model.layers[0].mlp.up_proj = QuantLinear(weight)
    dense.model.layers[0].mlp.up_proj.weight.data = weight.dequantize()
    assert step_of(stored.get_decoder()) is None
    assert step_of(dense.get_decoder()) is None
    check(dense, stored, 2)
    other = MODELS["llama"](hidden_act="gelu")
    assert step_of(other.get_decoder()) is None


def test_the_compiled_step_is_found_again_by_another_process():
    check(*models("llama", "grouped"), 1)
    code = (
        "from models import test_step; from quant_engine.kernels import decoding\n"
        "test_step.check(*test_step.models('llama', 'grouped'), 1)\n"
        "counts = decoding.stepper(False).stats\n"
        "print(sum(counts.cache_hits.values()), sum(counts.cache_misses.values()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split() == ["1", "0"]
