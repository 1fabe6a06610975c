"""A GPU that is pretended, for machines without one: tensors that say they lie on "cuda", with their values on the CPU.

Every operation passes through PyTorch's dispatcher, so whatever is asked for on "cuda" is computed, on the CPU, and an
operation is refused as a GPU would refuse it: tensors of both devices mixed, a result written to the other device, a
generator of the other device. What a GPU would take without complaint, and slowly, is written down with the line of
the engine that asked for it: numbers in float64, values that the processor waits for, tensors that are copied over.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
"""These take tensors of both devices."""
INDEXED = {
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default),
    aten._unsafe_index.Tensor,
}
"""A GPU's tensor may be indexed by numbers that lie on the CPU."""
JOINED = {aten.cat.default, aten.stack.default, aten.mm.default, aten.bmm.default, aten.addmm.default}
"""These take no single number from the other device either."""
WAITED_FOR = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default),
}
"""The processor waits for these: their results, or the sizes of them, have to come back."""
GPU = torch.device("cuda:0")
ANYWHERE = "lies_anywhere"


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU; its values are those of `host`, which lies on the CPU.

    To PyTorch's own code it lies on the CPU, which knows no other device here; to Python's, on the GPU.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnGpu:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype
        )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert PretendedGpu.current, "a tensor of a pretended GPU is used outside of it"
        with PretendedGpu.current:
            return func(*args, **(kwargs or {}))

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and isinstance(args[0], torch.Tensor):
            args = args[0].device, args[0].dtype, *args[1:]
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if device is None or device.type == "cuda":
            dtype = dtype or self.dtype
            return torch._C.TensorBase.to(self, dtype=dtype, copy=kwargs.get("copy", False))
        with PretendedGpu.current.leaving(device):
            return aten._to_copy.default(self, dtype=dtype, device=device)

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *args: Any) -> torch.Tensor:
        return self

    def type_as(self, other: torch.Tensor) -> torch.Tensor:
        return self.to(other)

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any) -> None:
        self.numpy()

    def __repr__(self) -> str:
        return f"OnGpu({self.host})"

    def __format__(self, how: str) -> str:
        return format(self.item() if how else repr(self), how)

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGpu:
        return OnGpu(self.host.clone())

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        assert isinstance(new, OnGpu), "a GPU's parameter gets values that lie on the CPU"
        assert (new.shape, new.dtype, new.stride()) == (self.shape, self.dtype, self.stride())
        self.host = new.host


@dataclass
class Seen:
    """How often, by the line of the engine: `waits` for values of the GPU, `uploads` to it, results in `float64`."""

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    float64: Counter[str] = field(default_factory=Counter)


class PretendedGpu(TorchDispatchMode):
    """While it is entered, "cuda" is a device of this thread. `seen` is what was noticed."""

    current: PretendedGpu | None = None

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self._leaving_to: torch.device | None = None

    @contextlib.contextmanager
    def leaving(self, device: torch.device) -> Iterator[None]:
        """A copy inside of it goes to a device that is no GPU."""
        self._leaving_to = device
        try:
            yield
        finally:
            self._leaving_to = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if _is_composite(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        on_gpu = self._is_on_gpu(func, bool(there), kwargs)
        if not there and not on_gpu:
            return _of_any_device(func(*args, **kwargs), tensors, kwargs)
        self._check(func, tensors, on_gpu, kwargs)
        self._note(func, tensors, on_gpu)
        if on_gpu and "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        owners = {id(tensor.host): tensor for tensor in there}
        result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
        return tree_map(lambda leaf: self._result(func, leaf, owners, on_gpu), result)

    def _is_on_gpu(self, func: Any, has_gpu_arguments: bool, kwargs: dict[str, Any]) -> bool:
        """Whether results lie on the GPU. PyTorch's own code, which names no pinning, asks for the CPU where it means
        the device of its arguments."""
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            return True
        leaves = func is aten._to_copy.default and self._leaving_to is not None
        leaves |= asked is not None and (torch.device(asked).type != "cpu" or kwargs.get("pin_memory") is not None)
        return has_gpu_arguments and not leaves

    def _check(self, func: Any, tensors: list[torch.Tensor], on_gpu: bool, kwargs: dict[str, Any]) -> None:
        """Raises RuntimeError for what a GPU would refuse."""
        generator = kwargs.get("generator")
        if on_gpu and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{func}: expected a generator of the GPU, found one of the CPU, at {_line()}")
        there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        here = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.device.type == "cpu"]
        here = [tensor for tensor in here if not hasattr(tensor, ANYWHERE)]
        if not there or not here or func in COPIES or (func in INDEXED and isinstance(tensors[0], OnGpu)):
            return
        written = func._schema.is_mutable and any(tensors[0] is tensor for tensor in here)
        if written or func in JOINED or any(tensor.dim() for tensor in here):
            shapes = ", ".join(f"{t.device.type} {list(t.shape)}" for t in tensors)
            raise RuntimeError(f"{func}: tensors are on two devices ({shapes}), at {_line()}")

    def _note(self, func: Any, tensors: list[torch.Tensor], on_gpu: bool) -> None:
        from_gpu = isinstance(tensors[-1], OnGpu) if tensors else True
        if func is aten._to_copy.default and from_gpu != on_gpu:
            (self.seen.uploads if on_gpu else self.seen.waits)[_line()] += 1
        elif func is aten.copy_.default and isinstance(tensors[0], OnGpu) != isinstance(tensors[1], OnGpu):
            (self.seen.waits if isinstance(tensors[1], OnGpu) else self.seen.uploads)[_line()] += 1
        elif func in WAITED_FOR or (func in INDEXED and any(t.dtype == torch.bool for t in tensors[1:])):
            self.seen.waits[_line()] += 1

    def _result(self, func: Any, leaf: Any, owners: dict[int, OnGpu], on_gpu: bool) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in owners:
            owner = owners[id(leaf)]
            assert (owner.shape, owner.stride()) == (leaf.shape, leaf.stride()), f"{func} changed a shape in place"
            return owner
        if not on_gpu or leaf.device.type != "cpu":
            return leaf
        if leaf.dtype == torch.float64:
            self.seen.float64[_line()] += 1
        # A view of a tensor that was made outside of inference mode is one of its kind.
        views = not func._schema.is_mutable and any(returned.alias_info for returned in func._schema.returns)
        with torch.inference_mode(False) if views and not leaf.is_inference() else contextlib.nullcontext():
            return OnGpu(leaf)


def _of_any_device(result: Any, tensors: list[torch.Tensor], kwargs: dict[str, Any]) -> Any:
    """Marks what PyTorch's own code makes for a calculation whose device is not known, and what comes of it."""
    from_options = kwargs.get("device") is not None and kwargs.get("pin_memory") is None and not tensors
    if from_options or any(hasattr(tensor, ANYWHERE) for tensor in tensors):
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                setattr(leaf, ANYWHERE, True)
    return result


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _host(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, OnGpu) else leaf


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to` of a tensor that lies on the CPU, whose own code knows no GPU."""
    if not any(torch.device(asked).type == "cuda" for asked in _devices(args, kwargs)):
        return torch._C.TensorBase.to(tensor, *args, **kwargs)
    if isinstance(args[0] if args else None, torch.Tensor):
        args = args[0].device, args[0].dtype
    device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
    return aten._to_copy.default(tensor, dtype=dtype, device=device)


def _devices(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.device | str]:
    """What may name a device among the arguments of `Tensor.to`."""
    first = args[0] if args else kwargs.get("device")
    if isinstance(first, torch.Tensor):
        return [first.device]
    return [first] if isinstance(first, str | torch.device) else []


def _sent(tensor: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    return tensor if device is None else tensor.to(device)


def _line() -> str:
    """The engine's line that is being executed, as FILE:LINE."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/quant_engine/" in name or "/leaderboard/" in name:
            return f"{name.rpartition('quant_engine/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def pretended_gpu(monkeypatch: Any) -> Iterator[Seen]:
    """Has this thread's torch believe that there is a GPU; gives what was `Seen`."""
    mode = PretendedGpu()
    nothing = lambda *args, **kwargs: None  # noqa: E731
    for name, value in {
        "_lazy_init": nothing,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": nothing,
        "empty_cache": nothing,
        "get_device_name": lambda *_: "a pretended GPU",
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=80 * 2**30, multi_processor_count=1),
        "is_bf16_supported": lambda *_: True,
        "memory_allocated": lambda *_: 1,
        "max_memory_allocated": lambda *_: 1,
        "reset_peak_memory_stats": nothing,
        "device": lambda *_: contextlib.nullcontext(),
        "device_of": lambda *_: contextlib.nullcontext(),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(PretendedGpu, "current", mode)
    monkeypatch.setattr(torch.Tensor, "to", _to)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_: tensor.to("cuda"))
    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, *, device=None, **kwargs: _sent(make(data, **kwargs), device))
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mode:
            yield mode.seen
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
