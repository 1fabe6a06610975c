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
