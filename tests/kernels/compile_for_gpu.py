"""Compiles kernels of every kind for NVIDIA cards of several compute capabilities, down to machine code, and prints as
a line of JSON what each takes. Needs no card: Triton brings the assembler.

    python tests/kernels/compile_for_gpu.py [--forms FORM …] [--cards 80 89 90]
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from test_gpu_kernels import MADE, gpu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quant_engine.kernels import gpu_row

TYPES = {
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
SHAPE = (64, 512, 128)
"""Rows, columns and group, as large models have them: whole tiles of one group."""
CASES = ((1, torch.bfloat16), (1, torch.float32), (16, torch.bfloat16), (16, torch.float32))
"""Rows and type of the activations."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel, given, options, card):
    """`kernel` as it would be launched with the arguments `given`, in order."""
    signature, constants, attributes = {}, {}, {}

    def kind(value, place, constant):
        if constant or value is None:
            constants[place] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(kind(part, (*place, index), False) for index, part in enumerate(value))
        if isinstance(value, torch.Tensor):  # a launch looks at addresses, which are multiples of 16
            attributes[place] = [["tt.divisibility", 16]]
            return TYPES[value.dtype]
        if value % 16 == 0 and value:
            attributes[place] = [["tt.divisibility", 16]]
        return "i32"

    for index, (parameter, value) in enumerate(zip(kernel.params, given, strict=True)):
        signature[parameter.name] = kind(value, (index,), parameter.is_constexpr)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=card, options=options)


def measured(cubin):
    """The registers of a thread, and the bytes that each thread spills to memory, as machine code says them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]


class Compiler:
    """Stands in for a kernel: compiles it for the arguments of a launch instead of starting it, and prints what that
    takes."""

    def __init__(self, kernel, form, case, cards):
        self.kernel, self.form, self.case, self.cards = kernel, form, case, cards

    def __getitem__(self, grid):
        def launch(*given, **options):
            for card in self.cards:
                code = compiled(self.kernel, given, options, GPUTarget("cuda", card, 32))
                registers, spilled = measured(code.asm["cubin"])
                row = {"kernel": self.kernel.__name__.strip("_"), "form": self.form, "activations": self.case}
                row |= {"card": f"sm_{card}", "registers": registers, "spilled_bytes": spilled}
                row |= {"shared_bytes": code.metadata.shared, "loads": loads(code.asm["ptx"])}
                print(json.dumps(row), flush=True)

        return launch


def loads(ptx):
    """The widths of the loads from memory in a kernel's code, as "v4 32 x 2, 16 x 1"."""
    found = re.findall(r"ld\.global(?:\.\w+)*?(?:\.(v\d))?\.b(\d+)", ptx)
    names = [f"{vector} {bits}".strip() for vector, bits in found]
    return ", ".join(f"{name} x {names.count(name)}" for name in sorted(set(names)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", choices=list(MADE), default=list(MADE))
    parser.add_argument("--cards", nargs="+", type=int, default=[80, 89, 90])
    given = parser.parse_args()
    multiply, multiply_row, dequantize = gpu._multiply, gpu_row._multiply_row, gpu._dequantize
    for form in given.forms:
        weight = MADE[form](*SHAPE, torch.Generator().manual_seed(0))
        gpu._dequantize = Compiler(dequantize, form, "none", given.cards)
        gpu.dequantize_rows(weight, 0, 8)
        for count, dtype in CASES:
            case = f"{count} {str(dtype).removeprefix('torch.')}"
            gpu._multiply = Compiler(multiply, form, case, given.cards)
            gpu_row._multiply_row = Compiler(multiply_row, form, case, given.cards)
            gpu.multiply(torch.empty((count, weight.in_features), dtype=dtype), weight)


if __name__ == "__main__":
    main()
