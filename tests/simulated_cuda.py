"""CUDA, played on the CPU: what a GPU would refuse is refused, and what would make the host wait for it is counted.

    with SimulatedCuda() as gpu:
        loaded = load_model(folder, device="cuda")
        gpu.waits.clear()
        trainer.train_step(...)
        assert len(gpu.waits) <= 1

Tensors stay in main memory and hold real values, so loops that depend on them run as they do. Each storage that is
made "on" or moved "to" the device is noted; its tensors say `device == cuda:0`. An operation that mixes noted and other
tensors fails, as on a GPU. A read by the host (`item`, `tolist`, `bool`, `nonzero`, a mask as index), a copy to main
memory, and a copy to the device from memory that is not pinned or not `non_blocking` are waits.

What no CPU has gets a stand-in that checks what the kernel demands: attention to rows of any length, and products with
wide results. Graphs are captured by running once and replayed by running again on the same tensors (`FakeRecorder`).
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.model import packing
from expunge.model.captured import Recorder

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
Tensor = torch.Tensor
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "multinomial", "_unique2", "unique_dim",
    "unique_consecutive",
}  # fmt: skip
"""Operations whose result the host needs before it goes on."""
MOVES = {"copy_", "_to_copy", "set_", "detach"}
"""Operations that may have tensors of both kinds."""
MEMORY = 80 * 2**30


class SimulatedCuda:
    """See the module. Attributes: `waits`, where the host waited, innermost frame of the project first."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.makes_on_device = False
        """Whether what an operation makes without a tensor that it is given is on the device."""
        self._noted: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "SimulatedCuda":
        functions = _Functions(self)
        for context in (*_patches(self, functions), _Dispatch(self), functions):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return tensor.untyped_storage()._cdata in self._noted

    def note(self, tensors: Any) -> Any:
        """Put what was just made on the device."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._noted.setdefault(storage._cdata, StorageWeakRef(storage))
        return tensors

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory."""
        assert not self.holds(tensor), "only memory of the host can be pinned"
        copy = tensor.clone()
        self._pinned[copy.untyped_storage()._cdata] = StorageWeakRef(copy.untyped_storage())
        return copy

    def wait(self, what: str) -> None:
        """Note that the host waits here."""
        frames = [f for f in traceback.extract_stack() if "/expunge/" in f.filename]
        place = f"{frames[-1].filename.rpartition('/expunge/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"
        self.waits.append(f"{what} at {place}")

    def copied(self, source: Tensor, on_device: bool, non_blocking: bool) -> None:
        """Note a wait where a copy of `source` to the device (or from it) makes one."""
        if self.holds(source) == on_device:
            return
        pinned = source.untyped_storage()._cdata in self._pinned
        if not on_device:
            self.wait("copy to the host")
        elif not (pinned and non_blocking):
            self.wait("copy to the device")

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """The waits of what runs within the context."""
        before, self.waits = self.waits, []
        waits = self.waits
        try:
            yield waits
        finally:
            self.waits = before + waits


class _Dispatch(TorchDispatchMode):
    """Every operation, those of the backward pass included."""

    def __init__(self, gpu: SimulatedCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if self.gpu.holds(tensor)]
        other = [tensor for tensor in tensors if not self.gpu.holds(tensor) and tensor.dim()]
        if here and other and name not in MOVES:
            raise RuntimeError(
                f"{func}: tensors of shapes {[*map(_shape, here)]} are on cuda, {[*map(_shape, other)]} not"
            )
        if name == "copy_":
            self.gpu.copied(args[1], self.gpu.holds(args[0]), kwargs.get("non_blocking", args[2:] == (True,)))
        elif here and (name in READS or _reads_a_mask(name, args) or _counts(name, kwargs)):
            self.gpu.wait(name)
        result = func(*args, **kwargs)
        made = bool(here) if tensors else self.gpu.makes_on_device
        return self.gpu.note(result) if made and name not in ("copy_", "_local_scalar_dense") else result


class _Functions(TorchFunctionMode):
    """Calls from Python: where tensors are, and what moves them."""

    def __init__(self, gpu: SimulatedCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        name = getattr(func, "__name__", "")
        if tensor is not None and name == "__get__":
            place = getattr(func, "__self__", None)
            if place is Tensor.device:
                return CUDA if self.gpu.holds(tensor) else func(tensor)
            if place is Tensor.is_cuda:
                return self.gpu.holds(tensor)
            if place is Tensor.is_cpu:
                return func(tensor) and not self.gpu.holds(tensor)
        elif tensor is not None and name in ("cpu", "cuda", "to", "pin_memory", "tolist", "numpy"):
            return self._moved(tensor, name, args[1:], kwargs)
        elif name == "mm" and "out_dtype" in kwargs:
            assert self.gpu.holds(args[0])
            assert kwargs["out_dtype"] == torch.float32
            return args[0].float() @ args[1].float()
        device = _device(kwargs.get("device"))
        if device is not None and device.type == "cuda":
            del kwargs["device"]
        outer = self.gpu.makes_on_device
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self.gpu.makes_on_device = any(map(self.gpu.holds, leaves))
        try:
            result = func(*args, **kwargs)
        finally:
            self.gpu.makes_on_device = outer
        if device is None or device.type != "cuda":
            return result
        if name in ("tensor", "as_tensor"):
            self.gpu.wait(f"torch.{name}")
        return self.gpu.note(result)

    def _moved(self, tensor: Tensor, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        here = self.gpu.holds(tensor)
        if name in ("tolist", "numpy"):
            if here and name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if here:
                self.gpu.wait(name)
            return getattr(tensor, name)(*args, **kwargs)
        if name == "pin_memory":
            return self.gpu.pin(tensor)
        device, dtype, flags = (
            {"cpu": CPU, "cuda": CUDA}.get(name) or _device(kwargs.get("device")),
            kwargs.get("dtype"),
            [],
        )
        for value in args if name == "to" else ():
            if isinstance(value, Tensor):
                device, dtype = CUDA if self.gpu.holds(value) else CPU, value.dtype
            elif isinstance(value, str | torch.device):
                device = _device(value)
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                flags.append(value)
        dtype, copy = dtype or tensor.dtype, kwargs.get("copy", flags[1:] == [True])
        if device is None or (device.type == "cuda") == here:
            return tensor.to(dtype, copy=copy)
        assert not tensor.requires_grad or not torch.is_grad_enabled(), "a gradient through a move between devices"
        self.gpu.copied(tensor, device.type == "cuda", kwargs.get("non_blocking", flags[:1] == [True]))
        moved = tensor.detach().to(dtype, copy=True)
        if device.type == "cuda":
            return self.gpu.note(moved)
        self.gpu._noted.pop(moved.untyped_storage()._cdata, None)
        return moved


class FakeRecorder(Recorder):
    """Graphs that are captured by running the work once, and replayed by running it again on the same tensors."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run it."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run it; again at every replay."""
        work()
        return work


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, row by row, with the kernel's own demands."""
    for states in (query, key, value):
        assert states.dtype in (torch.bfloat16, torch.float16)
        assert states.dim() == 3
        assert states.stride(-1) == 1
        assert states.shape[-1] % 8 == 0
        assert states.shape[-1] <= 256
        assert states.device.type == "cuda"
    assert cu_k is not None
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q.device.type == cu_k.device.type == "cuda"
    assert window_size[1] == 0
    assert enable_gqa or query.shape[1] == key.shape[1]
    return _Flash.apply(query, key, value, cu_q, max_q, scale, window_size[0])


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cuts: Tensor, most: int, scale: Any, back: int
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, cuts)
        ctx.settings = most, scale, back
        found = torch.empty_like(query)
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            found.copy_(_by_row(query, key, value, cuts, most, scale, back))
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        *states, cuts = ctx.saved_tensors
        grads = [torch.empty_like(state) for state in states]
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch.enable_grad():
            inputs = [state.detach().requires_grad_() for state in states]
            found = torch.autograd.grad(_by_row(*inputs, cuts, *ctx.settings), inputs, grad)
            for place, gradient in zip(grads, found, strict=True):
                place.copy_(gradient)
        return (*grads, None, None, None, None)


def _by_row(query: Tensor, key: Tensor, value: Tensor, cuts: Tensor, most: int, scale: Any, back: int) -> Tensor:
    ends = cuts.tolist()
    assert ends == sorted(ends)
    assert ends[0] == 0
    assert ends[-1] == len(query)
    rows = []
    for begin, end in pairwise(ends):
        assert end - begin <= most
        qkv = [states[begin:end].transpose(0, 1)[None] for states in (query, key, value)]
        places = torch.arange(end - begin)
        gap = places[:, None] - places
        seen = (gap >= 0) & ((gap <= back) if back >= 0 else True)
        attended = torch.nn.functional.scaled_dot_product_attention(*qkv, attn_mask=seen, scale=scale, enable_gqa=True)
        rows.append(attended[0].transpose(0, 1))
    return torch.cat(rows)


def _patches(gpu: SimulatedCuda, functions: _Functions) -> list[Any]:
    autocast = torch.amp.autocast_mode.autocast
    begin, grouped = autocast.__init__, torch.optim.Optimizer._group_tensors_by_device_and_dtype

    run_backward = torch.autograd.graph._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        gpu.makes_on_device = True  # what the engine fills up is where the gradients are
        with functions:
            return run_backward(*args, **kwargs)

    def enter(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def group(tensors: Any, with_indices: bool = False) -> Any:
        found = grouped(tensors, with_indices)
        return {(lists[0][0].device, dtype): (lists, at) for (_, dtype), (lists, at) in found.items()}

    def on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda device="cpu", *args: function("cpu" if str(device).startswith("cuda") else device, *args)

    none = dict.fromkeys(("empty_cache", "synchronize", "reset_peak_memory_stats", "set_rng_state", "manual_seed"))
    values: dict[str, Any] = none | {
        "get_device_capability": (9, 0), "mem_get_info": (MEMORY, MEMORY), "is_bf16_supported": True,
        "max_memory_allocated": 2**30, "get_rng_state": torch.zeros(1), "get_device_name": "simulated",
    }  # fmt: skip
    return [
        patch.object(autocast, "__init__", enter),
        patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(group)),
        patch.object(torch, "is_autocast_enabled", on_cpu(torch.is_autocast_enabled)),
        patch.object(torch, "get_autocast_dtype", on_cpu(torch.get_autocast_dtype)),
        patch.object(torch, "Generator", on_cpu(torch.Generator)),
        patch.object(torch.autograd, "_engine_run_backward", backward),
        patch.object(packing, "varlen_attn", flash),
        *(patch.object(torch.cuda, name, lambda *a, value=value, **k: value) for name, value in values.items()),
    ]


def _device(value: Any) -> torch.device | None:
    return None if value is None else torch.device(value)


def _reads_a_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose true places have to be counted."""
    return (
        name.startswith("index")
        and isinstance(args[1], list | tuple)
        and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    )


def _counts(name: str, kwargs: Any) -> bool:
    """Whether the size of the result stands in a tensor."""
    return name == "repeat_interleave" and kwargs.get("output_size") is None


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
