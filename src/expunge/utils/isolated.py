"""Calls from Python: the program around them does not change what they compute, and they do not change the program."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

from expunge.errors import RunError

P = ParamSpec("P")
R = TypeVar("R")
_running = threading.RLock()
"""Held by the thread that is in a call; a callback may call again from there."""


def isolated(call: Callable[P, R]) -> Callable[P, R]:
    """A call that computes under torch's own defaults and gives back those of the program, and is one at a time.

    Deprecations inside libraries, which no user can mend, are not shown while it lasts.

    Raises:
        RunError: Another thread is in such a call.
    """

    @wraps(call)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with (
            _one_thread(),
            _given_back(),
            _defaults(),
            warnings.catch_warnings(action="ignore", category=FutureWarning),
        ):
            return call(*args, **kwargs)

    return alone


@contextmanager
def _one_thread() -> Iterator[None]:
    if not _running.acquire(blocking=False):  # to wait could be for ever, where that call waits for this one
        raise RunError(
            "another thread of this process is in a call of expunge, and two would disturb each other's seeds: "
            "call one after the other, or in processes of their own"
        )
    try:
        yield
    finally:
        _running.release()


@contextmanager
def _given_back() -> Iterator[None]:
    """Afterwards, what a call sets for the whole process is as it was."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bar, attention = not are_progress_bars_disabled(), torch.backends.cuda.cudnn_sdp_enabled()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):  # a run seeds the global generators
            yield
    finally:
        if not devices:  # the program's seed waited there for CUDA to begin
            torch.cuda.manual_seed_all(torch.initial_seed())
        torch.backends.cuda.enable_cudnn_sdp(attention)
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # and the Hub's with it
            if not hub_bar:
                disable_progress_bars()


@contextmanager
def _defaults() -> Iterator[None]:
    """With gradients, in float32 on the CPU where nothing else is said, without autocast."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # as a context it slows every call of torch
            stack.enter_context(torch.device("cpu"))
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
