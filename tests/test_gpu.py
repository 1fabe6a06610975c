"""On a GPU: methods quantize there as on the processor, and what is stored answers there as it does here."""

import json
from copy import deepcopy

import pytest
import torch
from models import tiny_chat
from PIL import Image

from quant_engine.checkpoints import load_quantized
from quant_engine.finetune.merge import merge
from quant_engine.kernels import entropy
from quant_engine.kernels.linear import QuantLinear
from quant_engine.kernels.matmul import matmul_back
from quant_engine.methods import METHODS, Layer, Statistics
from quant_engine.models import decode
from quant_engine.models.catalog import model_card
from quant_engine.models.load import load_dense
from quant_engine.progress import Hooks
from quant_engine.runs import folder
from quant_engine.runs.execute import execute
from quant_engine.runs.resolve import resolve_weights
from quant_engine.runs.weights import layer_records, quantize
from quant_engine.spec import Calibration, QuantSetting, RunSpec, WeightSpec
from quant_engine.weights import codebook, packing
from quant_engine.weights.mixed_width import MixedWidth

pytestmark = pytest.mark.gpu

TRAINED = {"rank": 4, "steps": 6, "batch": 4, "source_length": 24, "target_length": 24}
SETTINGS = [
    *(QuantSetting(method="rtn", w_bits=bits, group_size=64) for bits in range(1, 9)),
    QuantSetting(method="gptq", w_bits=3, group_size=64),
    QuantSetting(method="gptq", w_bits=4, group_size=64, options={"act_order": True, "groups": "static"}),
    QuantSetting(method="gptq", w_bits=2),
    QuantSetting(method="awq", w_bits=4, group_size=64),
    QuantSetting(method="smoothquant", w_bits=8, a_bits=8),
    QuantSetting(method="smoothquant", w_bits=4, a_bits=4),
    QuantSetting(method="quip", w_bits=2),
    QuantSetting(method="quip", w_bits=3, options={"rotation": "blocked"}),
    QuantSetting(method="pb_llm", w_bits=1.7, group_size=64),
    QuantSetting(method="billm", w_bits=1.1, group_size=64),
    QuantSetting(method="slim_llm", w_bits=2, group_size=64),
    QuantSetting(method="normal_float", w_bits=2),
    QuantSetting(method="normal_float", w_bits=4),
]
WHOLE = [
    QuantSetting(method="rtn", w_bits=3, group_size=16),
    QuantSetting(method="gptq", w_bits=3, group_size=16),
    QuantSetting(method="gptq", w_bits=4, group_size=16, options={"act_order": True, "groups": "static"}),
    QuantSetting(method="awq", w_bits=4, group_size=16),
    QuantSetting(method="smoothquant", w_bits=8, a_bits=8),
    QuantSetting(method="quip", w_bits=3),
    QuantSetting(method="pb_llm", w_bits=1.7, group_size=16),
    QuantSetting(method="billm", w_bits=1.1, group_size=16),
    QuantSetting(method="slim_llm", w_bits=3, group_size=16),
    QuantSetting(method="normal_float", w_bits=4),
    QuantSetting(method="db_llm", w_bits=2, group_size=16, options={"steps": 3, "batch": 2, "generated": 2}),
    QuantSetting(method="qlora", w_bits=4, options=TRAINED),
    QuantSetting(method="ir_qlora", w_bits=4, options=TRAINED),
]


def label(setting):
    return f"{setting.label} {' '.join(map(str, setting.options.values()))}".strip()


def linear(setting, device, rows=256, columns=384):
    """A random weight quantized on `device`, with the inputs it was calibrated on."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn((rows, columns), generator=random) * 0.05
    inputs = torch.randn((1024, columns), generator=random) @ torch.randn((columns, columns), generator=random)
    weight, inputs = weight.to(device), inputs.to(device) / columns**0.5
    method = METHODS[setting.method]
    setting = method.resolve(setting)
    seen = Statistics(2 / 8 * inputs.T @ inputs, "self_attn.q_proj", 1, inputs)
    stored = method.quantize(Layer(weight.clone(), seen, setting, method.options(setting), print))
    return stored, weight, inputs


def far(found, expected):
    return ((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm().cpu()).item()


@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_a_linear_is_quantized_as_well_as_on_the_processor(setting):
    errors = []
    for device in ("cpu", "cuda"):
        stored, weight, inputs = linear(setting, device)
        assert all(buffer.device.type == device for buffer in stored.buffers())
        errors.append(far(inputs @ stored.dequantize().T, inputs @ weight.T))
    # Where two codes are as good, rounding picks another one, and later columns make up for it.
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_products_are_those_of_the_dequantized_weight(setting, dtype):
    stored, _, _ = linear(setting, "cpu")
    dense = stored.dequantize().double()
    here, there = QuantLinear(stored), QuantLinear(deepcopy(stored)).to("cuda")
    assert far(there.weight.dequantize(), dense) < 1e-6
    close = 1e-5 if dtype == torch.float32 else 1e-2
    for count in (1, 3, 40):
        x = torch.randn((count, dense.shape[1]), generator=torch.Generator().manual_seed(count)).to(dtype)
        product = there(x.cuda())
        assert product.dtype == dtype
        if setting.a_bits < 16:
            # Where a value lies on the border of two codes, either is right.
            assert far(product, here(x)) < (0.02 if setting.a_bits == 8 else 0.1)
            continue
        assert far(product, x.double() @ dense.T) < close
        gradient = torch.randn((count, len(dense)), generator=torch.Generator().manual_seed(count)).to(dtype)
        assert far(matmul_back(gradient.cuda(), there.weight), gradient.double() @ dense) < close


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_the_kernels_of_a_gpu_take_every_form(setting, dtype):
    gpu = pytest.importorskip("quant_engine.kernels.gpu")
    stored, _, _ = linear(setting, "cuda")
    for weight in stored.parts.values() if isinstance(stored, MixedWidth) else [stored]:
        assert gpu.fits(weight, dtype)


@pytest.mark.parametrize("setting", SETTINGS, ids=label)
def test_a_product_makes_no_dense_weight(setting):
    stored, _, _ = linear(setting, "cuda", 32768, 1024)
    layer = QuantLinear(stored)
    x = torch.randn((32, 1024), device="cuda", dtype=torch.bfloat16)
    layer(x)
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layer(x)
    taken = torch.cuda.max_memory_allocated() - held
    assert taken < 32768 * 1024 * 2, f"{taken / 2**20:.1f} MiB, as much as the weight in 16 bits"


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_words_are_the_same(bits):
    codes = torch.randint(0, 2**bits, (37, 150), generator=torch.Generator().manual_seed(bits))
    words = packing.pack(codes, bits)
    assert torch.equal(packing.pack(codes.cuda(), bits).cpu(), words)
    assert torch.equal(packing.unpack(words.cuda(), bits, 150).cpu().int(), codes.int())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("try_zero", [False, True])
def test_the_most_informative_shift_is_the_same(bits, try_zero):
    blocks = torch.randn((300, 64), generator=torch.Generator().manual_seed(bits))
    centers = blocks.median(1).values
    units = (blocks - centers[:, None]).abs().amax(1)
    offsets = torch.linspace(-0.06, 0.06, 201)
    given = (blocks, centers, units)
    here = entropy.best_shifts(*given, offsets, codebook.levels(bits), try_zero)
    there = entropy.best_shifts(*(one.cuda() for one in given), offsets, codebook.levels(bits), try_zero)
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize("setting", WHOLE, ids=label)
def test_a_model_quantized_on_the_gpu_answers_as_on_the_processor(lab, tiny_models, tmp_path, family, setting):
    if METHODS[setting.method].fine_tunes:
        setting = setting.model_copy(update={"options": {**setting.options, "data": says(tmp_path)}})
    text = Calibration(samples=6, length=40)
    plan = resolve_weights(WeightSpec(model=str(tiny_models / family), setting=setting, calibration=text))
    path = quantize(plan, "cuda", Hooks())
    assert all(0 < record.output_error < 1.5 for record in layer_records(plan, "cuda", Hooks()))
    here, there = (load_quantized(path, "float32", device) for device in ("cpu", "cuda"))
    ids = torch.arange(4, 44)[None]
    with torch.inference_mode():
        for count in (40, 1):
            ours, theirs = (one.model(input_ids=ids[:, :count].to(one.model.device)).logits for one in (here, there))
            # Activations in integers are rounded anew: a sum on the border of two codes may fall on either side.
            assert far(theirs, ours) < (0.05 if setting.a_bits < 16 else 1e-3)
    picture = Image.new("RGB", (60, 40), "teal") if family == "llava" else None
    texts = [decode.answer_text(one, picture, "What is it?", max_new_tokens=12) for one in (here, there)]
    assert setting.a_bits < 16 or texts[0] == texts[1]
    # A run in the type that models come in on a GPU.
    spec = RunSpec(weights=plan.spec, tasks=("perplexity",), window=64, limit=4, device="cuda", dtype="bfloat16")
    run = folder.read(execute(spec, Hooks()))
    (result,) = run.results
    assert result.hardware == torch.cuda.get_device_name()
    assert result.value > 1
    assert result.peak_memory_bytes > 0


def says(folder):
    """A file of a few instructions to train on."""
    data = folder / "says.json"
    data.write_text(json.dumps([{"instruction": f"Say {i}.", "input": "", "output": f"{i}!"} for i in range(24)]))
    return str(data)


def test_merged_adapters_answer_as_those_beside_the_weights(lab, tiny_models, tmp_path):
    setting = QuantSetting(method="ir_qlora", w_bits=4, options={**TRAINED, "data": says(tmp_path)})
    plan = resolve_weights(WeightSpec(model=str(tiny_models / "llama"), setting=setting))
    path = quantize(plan, "cuda", Hooks())
    merge(path, tmp_path / "merged")
    ids = torch.arange(4, 60, device="cuda")[None]
    beside = load_quantized(path, "float32", "cuda").model
    merged = load_dense(model_card(str(tmp_path / "merged")), None, "float32", "cuda").model
    with torch.no_grad():
        assert far(merged(input_ids=ids).logits, beside(input_ids=ids).logits) < 1e-4


def test_a_dense_model_answers_the_same():
    for made in (tiny_chat.llama(), tiny_chat.llava_next()):
        ids = torch.arange(4, 44)[None]
        with torch.no_grad():
            here = made.model(input_ids=ids).logits
            there = made.model.to("cuda")(input_ids=ids.cuda()).logits
        assert far(there, here) < 1e-4
