"""Binary forms: what they dequantize to, number by number; disk and back; the ledger of every stored bit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from quant_engine.kernels.linear import QuantLinear
from quant_engine.weights.binary import Binary, PartlyBinary, ResidualBinary, fit, signed

FORMS = ["binary", "partly", "residual"]
SHAPES = [(5, 96, 32), (7, 150, 64), (3, 45, 45), (4, 100, 25), (6, 64, 64)]


def made(form, rows=5, columns=96, group=32, seed=0):
    """A random weight of the form, and the same computed number by number."""
    generator = torch.Generator().manual_seed(seed)
    bits = lambda *shape, share=0.5: torch.rand(*shape, generator=generator) < share  # noqa: E731
    groups = -(-columns // group)
    signs, live = bits(rows, columns), bits(columns, share=0.9)
    scales = torch.randn(rows, groups, 8 if form == "residual" else 2, generator=generator).half()
    marks, salient = bits(rows, columns, share=0.15), bits(columns, share=0.2)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    grid_scales = torch.rand(rows, generator=generator).half()
    grid_zeros = torch.randint(0, 256, (rows,), generator=generator, dtype=torch.uint8)
    if form == "binary":
        weight = Binary.pack(signs, scales, live, group)
    elif form == "partly":
        rest = {"marks": marks, "codes": codes, "grid_scales": grid_scales, "grid_zeros": grid_zeros}
        weight = PartlyBinary.pack(signs, scales, live, group, **rest)
    else:
        weight = ResidualBinary.pack(signs, scales, live, group, marks=marks, salient=salient)
    expected = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            scale = scales[i, j // group].float()
            sign = 1 if signs[i, j] else -1
            mark = 1 if marks[i, j] else -1
            if not live[j]:
                expected[i, j] = 0
            elif form == "partly" and marks[i, j]:
                expected[i, j] = grid_scales[i].float() * (float(codes[i, j]) - float(grid_zeros[i]))
            elif form == "residual" and salient[j]:
                expected[i, j] = (scale[4] + sign * scale[5]) + (scale[6] + mark * scale[7])
            elif form == "residual" and marks[i, j]:
                expected[i, j] = scale[2] + sign * scale[3]
            else:
                expected[i, j] = scale[0] + sign * scale[1]
    return weight, expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_dequantizes_to_the_formula_number_by_number(form, rows, columns, group):
    weight, expected = made(form, rows, columns, group)
    assert torch.equal(weight.dequantize(), expected)
    assert torch.equal(weight.dequantize(1, 3), expected[1:3])
    assert torch.equal(weight.dequantize(2), expected[2:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
def test_goes_to_a_file_and_back_bit_for_bit(form, rows, columns, group, tmp_path):
    weight, expected = made(form, rows, columns, group)
    layer = QuantLinear(weight)
    save_file(layer.state_dict(), tmp_path / "weight.safetensors")
    again = QuantLinear.from_config(layer.config())
    again.load_state_dict(load_file(tmp_path / "weight.safetensors"), assign=True)
    assert torch.equal(again.weight.dequantize(), expected)
    for name, buffer in weight.named_buffers():
        assert torch.equal(again.weight.get_buffer(name), buffer), name
    assert again.weight.ledger() == weight.ledger()


@pytest.mark.parametrize("form", FORMS)
def test_ledger_counts_every_stored_bit(form):
    for shape in SHAPES:
        weight, _ = made(form, *shape)
        ledger = weight.ledger()
        assert ledger.total_bits == 8 * weight.stored_bytes()
        assert ledger.bits.get("padding", 0) < 32 * (2 * shape[0] + 3)


def test_bits_of_partly_binary_weights_are_the_field_s_formula():
    rows, columns, group, share = 64, 1024, 128, 0.1
    marks = torch.zeros(rows, columns, dtype=torch.bool)
    marks.view(-1)[torch.randperm(marks.numel())[: round(share * marks.numel())]] = True
    weight = PartlyBinary.pack(
        marks,
        torch.zeros(rows, columns // group, 2),
        torch.ones(columns, dtype=torch.bool),
        group,
        marks=marks,
        codes=torch.zeros(rows, columns, dtype=torch.uint8),
        grid_scales=torch.ones(rows),
        grid_zeros=torch.zeros(rows),
    )
    ledger = weight.ledger()
    assert ledger.headline_bits == pytest.approx(1.7, abs=1e-4)
    side = 1 + 32 / group + (16 + 8 + 32) / columns + 1 / rows
    assert ledger.bits_per_weight == pytest.approx(1.7 + side, abs=1e-3)


def test_bits_of_residual_binary_weights_are_the_field_s_formula():
    rows, columns, group = 64, 1280, 128
    salient = torch.zeros(columns, dtype=torch.bool)
    salient[::10] = True
    zeros = torch.zeros(rows, columns, dtype=torch.bool)
    scales = torch.zeros(rows, columns // group, 8)
    weight = ResidualBinary.pack(zeros, scales, ~salient | salient, group, marks=zeros, salient=salient)
    ledger = weight.ledger()
    assert ledger.headline_bits == pytest.approx(1.1)
    assert ledger.bits_per_weight == pytest.approx(1.1 + 0.9 + 8 * 16 / group + 2 / rows)


def test_the_spread_is_the_least_squares_factor_of_the_signs():
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)) < 0.6
    mean, spread = fit(values, mask, stored=None)
    signs, _ = signed(values, mean[:, None], spread[:, None])

    def error(mean, spread):
        return ((values - mean[:, None] - (2.0 * signs - 1) * spread[:, None]) ** 2 * mask).sum(1)

    for factor in (0.99, 1.01):
        assert (error(mean, spread * factor) > error(mean, spread)).all()
    assert torch.equal(fit(values, torch.zeros_like(mask))[1], torch.zeros(6, dtype=torch.float64))


def test_a_tie_gets_the_sign_plus():
    signs, values = signed(torch.zeros(1, 3), torch.zeros(1, 1), torch.ones(1, 1))
    assert signs.all()
    assert torch.equal(values, torch.ones(1, 3))
