"""llama.cpp's rounding of activations, imitated for benchmarks/interop.py.

Where a weight is in Q4_0, Q5_0 or Q8_0, llama.cpp rounds the inputs of its products to Q8_0: 32 whole numbers from -127
to 127 and a float16 scale. Each product by itself shows that: its output in llama.cpp is ours for llama.cpp's own
input, rounded. Logits don't: an input halfway between two numbers goes to the other one for a difference of 1e-6, and
after a few linears the differences are as large as the rounding. So a perplexity is held against several of ours, with
embeddings that are changed by a millionth.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import torch
from interop_cases import FLOAT32
from llama_cpp import _internals

from quant_engine.formats import gguf
from quant_engine.models.architecture import LINEARS

BLOCK = 32
MILLIONTH = 1e-6
NODES = {
    "self_attn.q_proj": ("attn_norm", "Qcur"),
    "self_attn.k_proj": ("attn_norm", "Kcur"),
    "self_attn.v_proj": ("attn_norm", "Vcur"),
    "self_attn.o_proj": ("kqv_out", "attn_out"),
    "mlp.gate_proj": ("ffn_norm", "ffn_gate"),
    "mlp.up_proj": ("ffn_norm", "ffn_up"),
    "mlp.down_proj": ("ffn_swiglu", "ffn_out"),
}
"""llama.cpp's names of a linear's input and output, which "-" and the number of the block follow."""
HEAD = ("result_norm", "result_output")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., n] as Q8_0 holds it."""
    blocks = x.unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = torch.where(largest == 0, 0, blocks * (127 / largest)).round()
    return (codes * (largest / 127).half().float()).flatten(-2)


def rounded_to_half(x: torch.Tensor) -> torch.Tensor:
    """`x` as the inputs of the head are rounded, whose weights are float16."""
    return x.half().float()


@contextmanager
def rounding(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Rounds inputs as llama.cpp does within the block, with embeddings that are changed by a millionth."""
    chance = torch.Generator().manual_seed(seed)

    def changed(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + MILLIONTH * torch.randn(x.shape, generator=chance))

    def before(function: Callable) -> Callable:
        return lambda module, inputs: (function(inputs[0]),)

    linears = [block.get_submodule(path) for block in model.model.layers for path in LINEARS]
    hooks = [linear.register_forward_pre_hook(before(rounded)) for linear in linears]
    hooks.append(model.get_output_embeddings().register_forward_pre_hook(before(rounded_to_half)))
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda module, inputs, x: changed(x)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_get_name.argtypes = library.ggml_nbytes.argtypes = [ctypes.c_void_p]
    library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    return library


def nodes(llama: llama_cpp.Llama, tokens: list[int], names: set[str]) -> dict[str, torch.Tensor]:
    """The values [tokens, n] that llama.cpp computes of those names; the first, where several steps have one name."""
    ggml = _ggml()
    found: dict[str, torch.Tensor] = {}

    @llama_cpp.ggml_backend_sched_eval_callback
    def see(tensor: int, ask: bool, data: object) -> bool:
        name = ggml.ggml_get_name(tensor).decode()
        wanted = name in names and name not in found
        if wanted and not ask:
            found[name] = torch.empty(len(tokens), ggml.ggml_nbytes(tensor) // (4 * len(tokens)))
            ggml.ggml_backend_tensor_get(tensor, found[name].data_ptr(), 0, found[name].nbytes)
        return wanted or not ask

    params = llama.context_params
    params.cb_eval = see
    llama._ctx = _internals.LlamaContext(model=llama._model, params=params, verbose=False)
    llama.reset()
    llama.eval(tokens)
    return found


@torch.inference_mode()
def products_apart(model: torch.nn.Module, llama: llama_cpp.Llama, tokens: list[int]) -> tuple[float, float]:
    """Of the outputs of all linears and the head for each token, the share that is further than FLOAT32 from ours for
    llama.cpp's own input: with that input rounded, and as it is."""
    config = model.config
    products = [(model.get_output_embeddings(), HEAD, rounded_to_half, None)]
    for number, block in enumerate(model.model.layers):
        for path, names in NODES.items():
            heads = gguf.rotary_heads(gguf.their_name(f"model.layers.{number}.{path}.weight"), config.to_dict())
            products.append((block.get_submodule(path), [f"{name}-{number}" for name in names], rounded, heads))
    found = nodes(llama, tokens, {name for _, names, _, _ in products for name in names})
    far = torch.zeros(2)
    for linear, (inputs, outputs), function, heads in products:
        x, theirs = found[inputs], found[outputs]
        for number, given in enumerate((function(x), x)):
            ours = linear(given)
            ours = gguf.their_order(ours.T, heads).T if heads else ours
            far[number] += ((ours - theirs).norm(dim=1) > FLOAT32 * theirs.norm(dim=1)).float().mean()
    return tuple((far / len(products)).tolist())
