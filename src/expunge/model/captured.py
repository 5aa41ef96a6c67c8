"""The passes of the layers as CUDA graphs: one launch forward and one backward, whatever the depth.

A small model's step is thousands of kernels, which the host launches more slowly than the device computes them. A graph
launches all of them at once, and always works on the same tensors: what a pass reads is copied into them first. So a
sequence is filled up to one of a few sizes, and the table of its rows with empty ones; what fills up is a row of its
own that no loss looks at, and its gradient is zero. Losses, denominators and the update stay outside of the graphs.

    passes = CapturedPasses(flash, parameters, rows=80, longest=512)
    passes.add(2048)                                    # computed as the layers are, filled up
    passes.capture()                                    # from here on replayed
    if passes.takes(lengths):
        states = passes.states(input_ids, lengths)      # differentiable: backward adds to parameter.grad
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from expunge.model.packing import filling, row_places

WARM_UPS = 2
"""Passes before one is captured: libraries choose their kernels, and take their memory, in the first. In the last one
what makes the host wait is an error: a capture that it broke would leave allocator and generator unusable."""

Flash = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Final states `(1, tokens, hidden)` from input_ids, positions, cuts and longest row, see `packing.flash_states`."""


class Recorder:
    """CUDA graphs of one memory pool: of their inner tensors, only those of one graph at a time matter."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` beside the stream that waits for nothing, as a capture wants it.

        Raises:
            RuntimeError: It makes the host wait.
        """
        with torch.cuda.device(self._device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a prototype that does not find everything
            side, mode = _side_stream(self._device), torch.cuda.get_sync_debug_mode()
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for left in reversed(range(WARM_UPS)):
                        torch.cuda.set_sync_debug_mode(mode if left else "error")
                        work()
            finally:  # what was begun may write until it is done
                torch.cuda.set_sync_debug_mode(mode)
                torch.cuda.current_stream().wait_stream(side)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture `work`; gives what runs it again.

        Raises:
            RuntimeError: It does something that cannot be captured; random numbers can be drawn as before.
        """
        with torch.cuda.device(self._device), _no_collection():
            graph, stream, numbers = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.get_rng_state()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            try:
                # Without a stream PyTorch takes that of the device which was captured on first, whose graphs are empty.
                capturing = _capture_stream(self._device)
                with torch.cuda.graph(graph, self._pool, capturing, capture_error_mode="thread_local"):
                    work()
            except BaseException:
                fresh = torch.Generator(self._device)  # the one in use believes for ever that it is captured
                fresh.set_state(numbers)
                torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)
                raise
            finally:
                torch.cuda.set_stream(stream)  # a capture that fails leaves its own
        return graph.replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one for all warm-ups: cuBLAS keeps a workspace for each stream that it has seen, 32 MiB on an H100."""
    return torch.cuda.Stream(device)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one for all captures. A graph that goes may clear cuBLAS's workspaces of it (pytorch issue 193402): those of
    a run's steps lie in their own pool, and no graph that writes lives while they are captured.
    """
    return torch.cuda.Stream(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected within the context: to free a graph that nobody uses any more would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CapturedPasses:
    """Passes of a few sizes.

    Args:
        flash: The layers, with their adapter, in the precision of training.
        parameters: What takes a gradient; each has a `grad` that stays where it is.
        rows: Most rows of a sequence, those that fill up not counted.
        longest: At least the tokens of the longest row.
        recorder: What captures.
    """

    def __init__(
        self, flash: Flash, parameters: Sequence[Tensor], *, rows: int, longest: int, recorder: Recorder
    ) -> None:
        self._flash, self._parameters, self._recorder = flash, list(parameters), recorder
        self._rows, self._longest = rows, longest
        self._sizes: dict[int, _Pass] = {}

    def add(self, tokens: int) -> None:
        """Passes over a sequence of `tokens`; until they are captured, the layers compute them one by one."""
        self._sizes[tokens] = _Pass(self._flash, self._parameters, tokens, self._most_rows(tokens), self._longest)

    def capture(self) -> None:
        """Capture all passes; what the trials add to gradients is the caller's to clear."""
        # Each capture begins by giving free memory back, so all warm up before the first, in the same memory.
        passes = [pass_ for _, pass_ in sorted(self._sizes.items(), reverse=True)]  # the others fit into the largest's
        for pass_ in passes:
            self._recorder.warm_up(pass_.both)
        for pass_ in passes:
            pass_.capture(self._recorder)

    def _most_rows(self, tokens: int) -> int:
        return self._rows + len(filling(tokens, self._longest)) + 1

    def takes(self, lengths: Sequence[int]) -> bool:
        """Whether a sequence of rows of these lengths is replayed."""
        tokens, fits = sum(lengths), len(lengths) <= self._rows and max(lengths) <= self._longest
        return fits and tokens <= max(self._sizes, default=0)

    def states(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Final states `(tokens, hidden)` of rows that stand in `input_ids` `(1, tokens)` one behind the other."""
        pass_ = self._sizes[min(size for size in self._sizes if size >= sum(lengths))]
        pass_.fill(input_ids[0, : sum(lengths)], lengths)
        states: Tensor = _Replayed.apply(self._parameters[0], pass_)  # type: ignore[no-untyped-call]
        return states


class _Pass:
    """The passes of one size, and the tensors that they work on."""

    def __init__(self, flash: Flash, parameters: list[Tensor], tokens: int, rows: int, longest: int) -> None:
        self._flash, self._parameters, self._longest = flash, parameters, longest
        device = parameters[0].device
        self._ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._ids)
        self._cuts = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self._live: Tensor | None = None
        self.fill(self._ids[0].clone(), filling(tokens, longest))
        with torch.no_grad():
            live = self._flash(self._ids, self._positions, self._cuts, longest)[0]
        self.states, self.grad = torch.zeros_like(live), torch.zeros_like(live)
        """What a forward pass leaves, and what a backward pass begins with."""
        self._replays: tuple[Callable[[], None], Callable[[], None]] | None = None
        """Graphs of both passes. Until there are some, nothing here leads back to this object: it goes at once."""

    def fill(self, ids: Tensor, lengths: Sequence[int]) -> None:
        """Copy a sequence into the tensors that a replay reads."""
        size = self._ids.shape[1]
        rows = [*lengths, *filling(size - len(ids), self._longest)]
        cuts, positions = row_places([*rows, *[0] * (len(self._cuts) - 1 - len(rows))])
        self._ids[0, : len(ids)].copy_(ids)
        self._ids[0, len(ids) :].copy_(ids[-1])  # as in a batch that is not replayed
        self._positions.copy_(positions.pin_memory(), non_blocking=True)
        self._cuts.copy_(cuts.pin_memory(), non_blocking=True)

    def capture(self, recorder: Recorder) -> None:
        """Capture both passes."""
        with torch.enable_grad():
            forward, backward = recorder.record(self._forward), recorder.record(self._backward)
        self._replays = forward, backward
        self._live = None  # the next capture may take what the graph's inner tensors had

    def forward(self) -> None:
        """From what was filled in to `states`."""
        (self._replays[0] if self._replays else self._forward)()

    def backward(self) -> None:
        """From `grad` to the parameters' gradients."""
        (self._replays[1] if self._replays else self._backward)()

    def both(self) -> None:
        """Both passes, one behind the other, as the layers are."""
        self._forward()
        self._backward()

    def _forward(self) -> None:
        with torch.enable_grad():
            self._live = self._flash(self._ids, self._positions, self._cuts, self._longest)[0]
        self.states.copy_(self._live.detach())

    def _backward(self) -> None:
        assert self._live is not None
        found = torch.autograd.grad(self._live, self._parameters, self.grad, allow_unused=True)
        self._live = None
        pairs = zip(self._parameters, found, strict=True)
        added = [(parameter.grad, new) for parameter, new in pairs if parameter.grad is not None and new is not None]
        torch._foreach_add_([grad for grad, _ in added], [new for _, new in added])


class _Replayed(torch.autograd.Function):
    """The replayed forward pass, whose backward pass is the replayed one; the first argument is what asks for it."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, pass_: _Pass) -> Tensor:
        ctx.pass_ = pass_
        pass_.forward()
        return pass_.states.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.pass_.grad.copy_(grad)
        ctx.pass_.backward()
        return None, None
