"""Compiles kernels of every kind for NVIDIA cards of compute capability 8.0, down to machine code."""

import torch
import triton
from test_gpu_kernels import SHAPES, gpu, made
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
CARD = GPUTarget("cuda", 80, 32)


def compiled(kernel, given, options):
    """`kernel` as it would be launched with the arguments `given`, in order."""
    signature, constants = {}, {}

    def kind(value, place, constant):
        if constant or value is None:
            constants[place] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(kind(part, (*place, index), False) for index, part in enumerate(value))
        return TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"

    for index, (parameter, value) in enumerate(zip(kernel.params, given, strict=True)):
        signature[parameter.name] = kind(value, (index,), parameter.is_constexpr)
    return triton.compile(ASTSource(kernel, signature, constants), target=CARD, options=options)


class Compiler:
    """Stands in for a kernel: compiles it for the arguments of a launch instead of starting it."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*given, **options):
            made = compiled(self.kernel, given, options)
            assert made.asm["cubin"]
            # What a card of any kind has for one program.
            assert made.metadata.shared <= 48 * 1024, made.metadata

        return launch


if __name__ == "__main__":
    gpu._multiply, gpu._dequantize = Compiler(gpu._multiply), Compiler(gpu._dequantize)
    for name in ("3 bits", "rotated", "codebook, 3 bits, shifts", "partly binary", "residual binary", "dual binary"):
        weight = made(name, SHAPES[0])
        gpu.dequantize_rows(weight, 0, 8)
        for count, dtype in ((1, torch.bfloat16), (16, torch.bfloat16), (16, torch.float32)):
            gpu.multiply(torch.empty((count, weight.in_features), dtype=dtype), weight)
