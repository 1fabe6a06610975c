"""Checkpoints in other programs' formats, written code by code from the descriptions of their layouts."""

import json

import torch
from safetensors.torch import load_file, save_file

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def stream(codes, bits):
    """A list of codes as 32-bit words, the first code in the lowest bits."""
    number = sum(int(code) << (bits * j) for j, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    words = [(number >> (32 * k)) & 0xFFFFFFFF for k in range(count)]
    return [word - (word >> 31 << 32) for word in words]


def rows_as_words(codes, bits):
    return torch.tensor([stream(row, bits) for row in codes.tolist()], dtype=torch.int32)


def draw(rows, columns, bits, groups, seed=0):
    """Random codes [rows, columns], zeros and scales [rows, groups]."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=random)
    zeros = torch.randint(0, 2**bits, (rows, groups), generator=random)
    scales = (0.02 + 0.1 * torch.rand((rows, groups), generator=random)).half()
    return codes, zeros, scales


def gptq(rows, columns, bits, group, *, version=1, act_order=False, seed=0):
    """The tensors of a linear, and the weight that they stand for [rows, columns]."""
    groups = -(-columns // group)
    codes, zeros, scales = draw(rows, columns, bits, groups, seed)
    groups_of = torch.arange(columns) // group
    if act_order:
        groups_of = groups_of[torch.randperm(columns, generator=torch.Generator().manual_seed(seed))]
    stored_zeros = (zeros - 1) % 2**bits if version == 1 else zeros
    tensors = {
        "qweight": rows_as_words(codes, bits).T.contiguous(),
        "qzeros": rows_as_words(stored_zeros.T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": groups_of.int(),
    }
    return tensors, scales.float()[:, groups_of] * (codes - zeros[:, groups_of]).float()


def awq_gemm(rows, columns, group, seed=0):
    codes, zeros, scales = draw(rows, columns, 4, columns // group, seed)

    def words(values):  # [k, m]
        lists = [[line[8 * w + o] for w in range(len(line) // 8) for o in (0, 2, 4, 6, 1, 3, 5, 7)] for line in values]
        return torch.tensor([stream(line, 4) for line in lists], dtype=torch.int32)

    tensors = {"qweight": words(codes.T.tolist()), "qzeros": words(zeros.T.tolist()), "scales": scales.T.contiguous()}
    return tensors, _grouped(codes, zeros, scales, group)


def awq_gemv(rows, columns, group, seed=0, words=2):
    codes, zeros, scales = draw(rows, columns, 4, columns // group, seed)
    spare = 8 * words - columns // group
    tensors = {
        "qweight": rows_as_words(codes, 4),
        "qzeros": rows_as_words(torch.nn.functional.pad(zeros, (0, spare)), 4),
        "scales": torch.nn.functional.pad(scales, (0, spare)),
    }
    return tensors, _grouped(codes, zeros, scales, group)


def _grouped(codes, zeros, scales, group):
    columns = torch.arange(codes.shape[1]) // group
    return scales.float()[:, columns] * (codes - zeros[:, columns]).float()


def compressed(rows, columns, bits, groups, *, symmetric=True, scale_dtype=torch.float16, seed=0):
    """A pack-quantized linear of compressed-tensors."""
    codes, zeros, scales = draw(rows, columns, bits, groups, seed)
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    tensors = {
        "weight_packed": rows_as_words(codes, bits),
        "weight_shape": torch.tensor([rows, columns]),
        "weight_scale": scales.to(scale_dtype),
    }
    if not symmetric:
        tensors["weight_zero_point"] = rows_as_words(zeros.T, bits).T.contiguous()
    return tensors, _grouped(codes, zeros, scales.to(scale_dtype), columns // groups)


def float8(rows, columns, scale_shape, block=None, seed=0):
    """Weights of 8-bit floats with scales for all, for rows, or for blocks."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn((rows, columns), generator=random).mul_(20).to(torch.float8_e4m3fn)
    scale = (0.001 + 0.01 * torch.rand(scale_shape, generator=random)).bfloat16()
    spread = scale.float()
    if block:
        spread = spread.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:rows, :columns]
    return {"weight": weight, "weight_scale": scale}, weight.float() * spread


def int8(rows, columns, seed=0):
    """Signed bytes with a scale for each row."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (rows, columns), generator=random, dtype=torch.int8)
    scale = (0.001 + 0.01 * torch.rand((rows, 1), generator=random)).float()
    return {"weight": weight, "weight_scale": scale}, weight.float() * scale


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
NF4 += [-0.28444138169288635, -0.18477343022833234, -0.09105003625154495, 0.0]
NF4 += [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, -0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0]


def dynamic_map():
    """bitsandbytes' signed map of 256 values."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = 10 ** (exponent - 6) * ((borders[1:] + borders[:-1]) / 2)
        values += [middles, -middles]
    return torch.cat(values).sort().values


def four_bits(rows, columns, kind, *, double=True, block=64, seed=0):
    """A linear of bitsandbytes with 4-bit levels."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows * columns,), generator=random, dtype=torch.uint8)
    table = torch.tensor(NF4) if kind == "nf4" else torch.tensor(FP4) / 12
    blocks = -(-rows * columns // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": [rows, columns]}
    tensors = {"weight.quant_map": table}
    if double:
        absmax = torch.randint(0, 256, (blocks,), generator=random, dtype=torch.uint8)
        steps = 0.01 * torch.rand(-(-blocks // 256), generator=random)
        tensors |= {"weight.absmax": absmax, "weight.nested_absmax": steps, "weight.nested_quant_map": dynamic_map()}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05}
        scales = dynamic_map()[absmax.long()] * steps[torch.arange(blocks) // 256] + torch.tensor(0.05)
    else:
        scales = tensors["weight.absmax"] = 0.02 + 0.1 * torch.rand(blocks, generator=random)
    padded = torch.nn.functional.pad(codes, (0, len(codes) % 2))
    tensors["weight"] = (padded[::2] << 4 | padded[1::2])[:, None]
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    weight = table[codes.long()] * scales[torch.arange(len(codes)) // block]
    return tensors, weight.view(rows, columns)


def llm_int8(rows, columns, seed=0):
    """A linear of LLM.int8()."""
    tensors, _ = int8(rows, columns, seed)
    largest = torch.rand(rows, generator=torch.Generator().manual_seed(seed)).half().float()
    tensors = {"weight": tensors["weight"], "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, tensors["weight"].float() * (largest[:, None] / 127)


def checkpoint(base, folder, quantization, make):
    """The model folder `base` with every linear of its language model's blocks replaced.

    `make(number, rows, columns)` gives the tensors of a linear and what they stand for. Returns the tensors of the
    dense model that the checkpoint stands for, by name.
    """
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    dense = dict(tensors)
    ends = tuple(f"{linear}.weight" for linear in LINEARS)
    names = [name for name in tensors if name.endswith(ends) and "vision" not in name]
    for number, name in enumerate(names):
        parts, dense[name] = make(number, *tensors.pop(name).shape)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return dense
