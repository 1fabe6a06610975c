"""GPTQ against the plain column loop, and the properties that follow from its algebra."""

import pytest
import torch

from quant_engine.kernels.columns import fix_columns
from quant_engine.methods import METHODS, Layer, Statistics, gptq
from quant_engine.methods.gptq import clear_dead_columns, compensate, fix_block, inverse_factor
from quant_engine.spec import QuantSetting, UserError
from quant_engine.weights.grouped import grids

GPTQ, RTN = METHODS["gptq"], METHODS["rtn"]


def problem(rows=24, columns=192, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype)
    mixing = torch.randn(columns, columns, generator=generator, dtype=dtype) / columns**0.5
    inputs = torch.randn(6 * columns, columns, generator=generator, dtype=dtype) @ (mixing + 0.3)
    return weight, 2 / 8 * inputs.T @ inputs


def run(method, weight, hessian, bits, group=None, log=lambda line: None, **options):
    setting = method.resolve(QuantSetting(method=method.card.name, w_bits=bits, group_size=group, options=options))
    statistics = Statistics(hessian.clone())
    stored = method.quantize(Layer(weight.clone(), statistics, setting, method.options(setting), log))
    return stored.dequantize().double()


def plain_gptq(weight, hessian, bits, group, *, act_order=False, static=False, damping=0.01, lazy=128):
    """The column loop of the paper, one column after the other, every update applied at once.

    Dynamic groups are fitted to the weights with the updates of earlier blocks of `lazy` columns only, as the
    reference code does.
    """
    weight, hessian = weight.clone(), hessian.clone()
    columns = weight.shape[1]
    group = group or columns
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    static = static or group >= columns
    scales, zeros = grids(weight, bits, group)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    weight, hessian = weight[:, order], hessian[order][:, order]
    hessian += torch.eye(columns) * damping * hessian.diagonal().mean()
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    seen = weight.clone()
    out = torch.empty_like(weight)
    errors = torch.empty_like(weight)
    for j in range(columns):
        if j % lazy == 0:
            seen = weight.clone()
        if static:
            g = order[j] // group
            scale, zero = scales[:, g].double(), zeros[:, g].double()
        elif j % group == 0:
            fitted = grids(seen[:, j : j + group], bits, group)
            scale, zero = fitted[0][:, 0].double(), fitted[1][:, 0].double()
        codes = (torch.round(weight[:, j] / scale) + zero).clamp(0, 2**bits - 1)
        out[:, j] = scale * (codes - zero)
        errors[:, j] = (weight[:, j] - out[:, j]) / factor[j, j]
        weight[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
    undone = torch.empty_like(out)
    undone[:, order] = out
    return undone, errors, hessian


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("groups", ["dynamic", "static"])
def test_equals_the_plain_column_loop(bits, group, act_order, groups):
    weight, hessian = problem(seed=bits)
    expected, _, _ = plain_gptq(weight, hessian, bits, group, act_order=act_order, static=groups == "static")
    found = run(GPTQ, weight, hessian, bits, group, act_order=act_order, groups=groups)
    assert torch.allclose(found, expected, atol=1e-6)


def plain_ldlq(weight, hessian, bits):
    """LDLQ, columns from the first to the last: H = M D M^T with M unit upper triangular, from the Cholesky factor of
    the reversed H, and q_i = round(w_i + (W - Q)[:, :i] M[:i, i]) on a grid for each row."""
    scales, zeros = (value.double() for value in grids(weight, bits, weight.shape[1]))
    damped = hessian + torch.eye(len(hessian)) * 0.01 * hessian.diagonal().mean()
    lower = torch.linalg.cholesky(damped.flip(0, 1))
    upper = (lower / lower.diagonal()).flip(0, 1)
    out = torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        aim = weight[:, i] + (weight - out)[:, :i] @ upper[:i, i]
        codes = (torch.round(aim / scales[:, 0]) + zeros[:, 0]).clamp(0, 2**bits - 1)
        out[:, i] = scales[:, 0] * (codes - zeros[:, 0])
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_equals_ldlq_though_its_factor_is_of_the_hessian_and_not_of_its_inverse(bits):
    for seed in range(50):
        weight, hessian = problem(8, 48, seed)
        assert torch.allclose(run(GPTQ, weight, hessian, bits), plain_ldlq(weight, hessian, bits), atol=1e-6)


def test_lazy_blocks_only_reorder_the_arithmetic():
    weight, hessian = problem()
    factor = inverse_factor(hessian, print)
    scale = 2 * weight.abs().amax(1) / 7

    def quantized(lazy_block):
        out = torch.empty_like(weight)

        def fix(column, values):
            out[:, column] = torch.round(values / scale).clamp(-4, 3) * scale
            return out[:, column]

        compensate(weight.clone(), factor, fix, lazy_block)
        return out

    column_by_column = quantized(1)
    for lazy_block in (16, 100, 128, 192):
        assert torch.allclose(quantized(lazy_block), column_by_column, atol=1e-9)


@pytest.mark.parametrize("options", [{"symmetric": True}, {"mse_clip": True}])
def test_options_reach_the_column_loop(options):
    weight, hessian = problem()
    scales, zeros = (value.double() for value in grids(weight, 3, 192, **options))
    factor = inverse_factor(hessian, print)
    expected = torch.empty_like(weight)
    corrected = weight.clone()
    for j in range(192):
        codes = (torch.round(corrected[:, j] / scales[:, 0]) + zeros[:, 0]).clamp(0, 7)
        expected[:, j] = scales[:, 0] * (codes - zeros[:, 0])
        corrected[:, j:] -= torch.outer((corrected[:, j] - expected[:, j]) / factor[j, j], factor[j, j:])
    assert torch.allclose(run(GPTQ, weight, hessian, 3, **options), expected, atol=1e-6)
    assert not torch.equal(run(GPTQ, weight, hessian, 3, **options), run(GPTQ, weight, hessian, 3))


def test_sum_of_squared_errors_is_the_proxy_loss():
    weight, hessian = problem()
    quantized, errors, damped = plain_gptq(weight, hessian, 3, 64)
    change = weight - quantized
    assert torch.allclose(errors.square().sum(), torch.trace(change @ damped @ change.T), rtol=1e-5)
    assert torch.allclose(run(GPTQ, weight, hessian, 3, 64), quantized, atol=1e-6)


@pytest.mark.parametrize("group", [None, 64])
def test_is_rtn_when_inputs_are_uncorrelated(group):
    weight, _ = problem()
    hessian = 3.0 * torch.eye(192, dtype=torch.float64)
    assert torch.equal(run(GPTQ, weight, hessian, 3, group), run(RTN, weight, hessian, 3, group))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_proxy_loss_is_below_rtn_s(bits):
    for seed in range(5):
        weight, hessian = problem(seed=seed)
        loss = lambda q: torch.trace((weight - q) @ hessian @ (weight - q).T)  # noqa: E731, B023
        assert loss(run(GPTQ, weight, hessian, bits, 64)) < 0.8 * loss(run(RTN, weight, hessian, bits, 64))


def test_act_order_changes_nothing_when_all_inputs_are_equally_large():
    weight, hessian = problem()
    scale = hessian.diagonal().sqrt()
    hessian = hessian / scale[:, None] / scale
    hessian.fill_diagonal_(1.0)
    assert torch.equal(run(GPTQ, weight, hessian, 3), run(GPTQ, weight, hessian, 3, act_order=True))


def test_a_dead_input_gets_zero_weights_and_alters_no_other_column():
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    other = weight.clone()
    other[:, 5] = 7.0
    first, second = run(GPTQ, weight, hessian, 3), run(GPTQ, other, hessian, 3)
    assert (first[:, 5] == 0).all()
    assert torch.equal(first, second)


def test_dead_columns_are_cleared_before_damping_so_the_mean_does_not_shrink():
    weight, hessian = problem()
    hessian[5], hessian[:, 5] = 0, 0
    cleared = clear_dead_columns(weight.clone(), hessian)
    assert cleared[5, 5] == 1
    assert hessian[5, 5] == 0


def test_factor_is_the_upper_root_of_the_damped_inverse():
    _, hessian = problem()
    factor = inverse_factor(hessian, lambda line: None)
    damped = hessian + torch.eye(192, dtype=torch.float64) * 0.01 * hessian.diagonal().mean()
    assert torch.allclose(factor, factor.triu())
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-6)


def test_a_hessian_that_can_not_be_factored_is_damped_more_and_that_is_logged():
    lines = []
    hessian = torch.diag(torch.linspace(-0.05, 1, 64, dtype=torch.float64))
    factor = inverse_factor(hessian, lines.append)
    assert torch.isfinite(factor).all()
    assert "damping 0.01" in lines[0]
    with pytest.raises(UserError, match="more calibration samples"):
        inverse_factor(-torch.eye(8, dtype=torch.float64), lines.append)


def test_inputs_with_infinities_are_one_sentence():
    with pytest.raises(UserError, match="not finite"):
        inverse_factor(torch.full((4, 4), torch.inf), lambda line: None)


@pytest.mark.parametrize("act_order", [False, True])
def test_linears_that_share_a_hessian_factor_it_once(monkeypatch, act_order):
    weight, hessian = problem()
    setting = GPTQ.resolve(QuantSetting(method="gptq", w_bits=4, group_size=64, options={"act_order": act_order}))
    alone = [run(GPTQ, rows, hessian, 4, 64, act_order=act_order) for rows in (weight, weight[:5])]
    factored, shared = [], {}
    monkeypatch.setattr(gptq, "inverse_factor", lambda *args: factored.append(1) or inverse_factor(*args))
    for rows, expected in zip((weight, weight[:5]), alone, strict=True):
        statistics = Statistics(hessian, shared=shared)
        stored = GPTQ.quantize(Layer(rows.clone(), statistics, setting, GPTQ.options(setting), print))
        assert torch.equal(stored.dequantize().double(), expected)
    assert len(factored) == 1


def test_stored_column_order_is_counted_only_where_it_is_needed():
    weight, hessian = problem()
    setting = GPTQ.resolve(QuantSetting(method="gptq", w_bits=4, group_size=64, options={"act_order": True}))
    stored = GPTQ.quantize(Layer(weight.clone(), Statistics(hessian), setting, GPTQ.options(setting), print))
    assert stored.ledger().bits["order"] == 192 * 32
    static = GPTQ.resolve(
        QuantSetting(method="gptq", w_bits=4, group_size=64, options={"act_order": True, "groups": "static"})
    )
    stored = GPTQ.quantize(Layer(weight.clone(), Statistics(hessian), static, GPTQ.options(static), print))
    assert "order" not in stored.ledger().bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (70, 33), (128, 128)])
def test_the_kernel_gives_the_plain_loop_s_numbers_bit_for_bit(dtype, rows, columns):
    weight, hessian = problem(rows, columns, dtype=dtype)
    factor = inverse_factor(hessian, lambda line: None)
    scales = torch.rand(columns, rows, dtype=dtype) + 0.1
    zeros = torch.randint(0, 8, (columns, rows)).to(dtype)
    plain, fast = (weight.T.clone(memory_format=torch.contiguous_format) for _ in range(2))
    codes = fix_block(plain, factor, scales, zeros, 7)
    assert torch.equal(fix_columns(fast, factor, scales, zeros, 7), codes)
    assert torch.equal(fast, plain)
