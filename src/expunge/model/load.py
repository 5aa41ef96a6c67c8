"""From a folder or Hub name to a model that is ready to compute: weights, tokenizer, device, precision."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed import DeviceMesh
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from expunge.errors import ConfigError, ModelError
from expunge.kernels import Head
from expunge.kernels.rounding import row_multiple
from expunge.model.captured import CapturedPasses
from expunge.model.checkpoint import DEQUANTIZED, config_of, from_pretrained, move, quantization
from expunge.model.device import pick_device, pick_dtype, settle_cpu_memory, settle_cuda
from expunge.model.fold import fold
from expunge.model.head import backbone, cast_head, find_head
from expunge.model.layers import embedding_of
from expunge.model.limits import context_length
from expunge.model.memory import check_fits, weight_bytes
from expunge.model.packing import packable_length
from expunge.model.proof import check_causal
from expunge.model.ranks import Pairs
from expunge.model.shard import Lockstep, shard_layers
from expunge.model.source import Source, check_model, commit_of, first_line, source_of, stored_weights
from expunge.utils.distributed import Processes


@dataclass
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        model: The causal LM, in eval mode, without gradients; `add_adapter` replaces it by a `PeftModel` around it.
        tokenizer: Its tokenizer.
        head: The frozen head as the kernels take it.
        dtype: What matrix products run in: `torch.float32` or `torch.bfloat16` (or `torch.float64` in tests).
        source: What it is made of.
        parts: The adapters that were folded in, where all of them are pairs of matrices and nothing else.
        notes: What the user should know about it, a line each; `told` hands them over.
        packable_length: Longest row that may stand in a packed sequence; 0 when rows are padded.
        captured: Passes of the layers that are replayed in training; None where there are none.
        lockstep: What keeps the processes together that share the base's weights; None when each holds all of them.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    dtype: torch.dtype
    source: Source
    parts: list[Pairs] | None = None
    notes: list[str] = field(default_factory=list)
    packable_length: int = 0
    captured: CapturedPasses | None = None
    lockstep: Lockstep | None = None
    _noted: set[str] = field(default_factory=set)

    def note(self, line: str) -> None:
        """Add a note, the first time."""
        if line not in self._noted:
            self.notes.append(line)
            self._noted.add(line)

    def told(self) -> list[str]:
        """The notes that have not been handed over yet."""
        notes, self.notes = self.notes, []
        return notes

    def packs(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths share a packed sequence instead of a padded batch."""
        return max(lengths, default=0) <= self.packable_length

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model inside (the adapter's layers are part of it)."""
        base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def has_own_code(self) -> bool:
        """Whether code that came with the files runs, which the user must have allowed."""
        return any(type(part).__module__.startswith("transformers_modules.") for part in (self.base, self.tokenizer))

    @property
    def entry(self) -> torch.nn.Module:
        """What every forward pass goes through: the part that ends in the final states, or the whole transformers model
        where the head takes the plain path (OPT and Bart there call a module inside of that part).
        """
        return self.base if self.head.weight is None else backbone(self.base)

    def final(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Final hidden states `(rows, width, hidden)` of `input_ids` `(rows, width)`, or the logits `(rows, width,
        vocab)` when the head takes the plain path; further arguments go to the model.
        """
        output = self.entry(input_ids=input_ids, **options)
        found: Tensor = output.logits if self.head.weight is None else output.last_hidden_state
        return found

    @property
    def context(self) -> int | None:
        """Tokens of the longest row, see `context_length`; None where the model sets no bound."""
        return context_length(self.base)

    @property
    def row_multiple(self) -> int:
        """What the tokens of a packed sequence are rounded up to."""
        return row_multiple(self.dtype, self.device)

    def give_up_graphs(self) -> None:
        """Compute passes as the layers do from here on: graphs, if there are any, hold the memory of a whole pass."""
        if self.captured is None:
            return
        self.captured = None
        self.note("passes are no longer captured: beside the graphs something did not fit into the memory")

    def join(self) -> None:
        """After this process's part of what several divide: take part in the passes of those that share the base."""
        if self.lockstep is not None:
            self.lockstep.join()

    def adapter_off(self) -> contextlib.AbstractContextManager[Any]:
        """The untouched model, for as long as this lasts."""
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else contextlib.nullcontext()

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in `dtype`."""
        enabled = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield


def load_tokenizer(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, Hub name or adapter folder (its own, else that of what it stands on).

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    source = source_of(name, revision)
    folder = source.own_tokenizer
    options = source.options if folder is None else {}
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder or source.base), trust_remote_code=trust_remote_code, **options
        )
        if "gguf_file" in options:  # of which transformers before 5.18 takes the token that begins a text for its end
            for key in {"bos_token_id", "eos_token_id"} & found.init_kwargs.keys():
                setattr(found, key, found.init_kwargs[key])
    except Exception as error:  # what damaged files can make of it has no bounds
        raise ModelError(f"--model {name}: no usable tokenizer ({first_line(error)})") from None
    return found


def other_tokenizer(name: str, flag: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that another flag than `--model` names, once it is known to be a model.

    Raises:
        ModelError: It is none, or has no usable tokenizer; it is named by its flag.
    """
    try:
        check_model(name, trust_remote_code=trust_remote_code)
        return load_tokenizer(name, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(str(error).replace("--model", flag, 1)) from None


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    mesh: DeviceMesh | None = None,
    mend: str = "take a smaller model, --dtype bfloat16 or a larger machine",
) -> LoadedModel:
    """Load a causal LM; if `name` is a PEFT adapter folder, its base with the adapter folded in.

    Weights are kept in their stored dtype. Under bfloat16, the weights of linear layers that are stored wider are
    rounded once, as autocast would do at every call; everything else stays as stored. Adapters are folded in fp32,
    proven there, and rounded afterwards. With a `mesh`, its processes share the weights of the layers; each loads all
    of them on the CPU first, without a word to the others. `mend` ends the message where the memory is too small.

    Raises:
        ModelError: Not a causal LM, weights missing or not in safetensors, an adapter that does not fit.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    target = pick_device(device)
    if target.type == "cpu":
        settle_cpu_memory()
    else:
        settle_cuda()
    compute = pick_dtype(dtype, target)
    source = check_model(name, trust_remote_code=trust_remote_code, revision=revision)
    if load_in_4bit and target.type != "cuda":
        raise ModelError(f"--load-in-4bit needs a CUDA device, this run is on {target.type}")
    if load_in_4bit and find_spec("bitsandbytes") is None:
        raise ModelError("--load-in-4bit: bitsandbytes is not installed: pip install 'expunge[4bit]'")
    if load_in_4bit and source.adapters:
        raise ModelError(f"--load-in-4bit: --model {name} is an adapter; its fold would be rounded again: merge it")
    # What is sharded, or folded in float32, goes to the GPU when it is cut, or rounded again.
    place = target if mesh is None and not source.adapters else torch.device("cpu")
    stored = compute if compute != torch.bfloat16 else torch.float32 if source.adapters else None
    config = config_of(source, trust_remote_code=trust_remote_code)
    headers = stored_weights(source)
    if headers is not None and not load_in_4bit:
        quantized = quantization(config) in DEQUANTIZED
        check_fits(weight_bytes(headers, stored, quantized=quantized), place, f"--model {source.base}", mend)
        if mesh is None and place != target:
            check_fits(weight_bytes(headers, compute, quantized=quantized), target, f"--model {source.base}", mend)
    parts: list[Pairs] | None = None
    model, notes = from_pretrained(
        source, config, headers, stored, compute, target, load_in_4bit=load_in_4bit, trust_remote_code=trust_remote_code
    )
    commit = commit_of(source)  # which transformers has ceased to say
    if commit:
        source = replace(source, revision=commit)
    # Beside an adapter's name on the Hub, a revision would be the adapter's.
    model.config._commit_hash = None if source.adapters and source.on_the_hub else commit
    if source.adapters:
        model, parts = fold(model, source)
        notes.append(f"model: adapter {name} folded into its base; the reference is the folded model")
    if not load_in_4bit:
        move(model, place)
    model.eval().requires_grad_(False)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, revision=revision)
    head, why_plain = find_head(model)
    if why_plain:
        notes.append(f"head: plain path, slower and larger, because {why_plain}")
    if compute == torch.bfloat16:
        _round_linear_weights(model)
    if mesh is None and place != target:
        move(model, target)
    # What is sharded is not there yet, and attention takes another way there than could be tried here.
    tried = head.weight is not None and (mesh is None or target.type == "cpu")
    packable, why_padded = packable_length(model, compute) if tried else (0, None)
    if why_padded:
        notes.append(f"rows: padded, which is slower, because {why_padded}")
    loaded = LoadedModel(model, tokenizer, cast_head(head, model, compute), compute, source, parts, notes, packable)
    try:
        check_causal(model, source.where, loaded.autocast())
    except torch.OutOfMemoryError:  # a RuntimeError that says nothing about the model
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        kind = type(model).__name__
        raise ModelError(f"{source.where}: {kind} does not run on tokens alone ({first_line(error)})") from None
    if mesh is not None:
        shard_layers(model, loaded.entry, mesh, target)
        loaded.head = cast_head(head, model, compute)  # where the weights are now
        loaded.lockstep = Lockstep(model, loaded.entry, loaded.autocast)
    return loaded


def load_shared(name: str, processes: Processes, *, device: str = "auto", **options: Any) -> LoadedModel:
    """`load_model` with the weights of the layers shared by the processes of the run; a machine loads one at a time.

    Raises:
        ConfigError: There is one process alone, or the architecture cannot be sharded.
        ModelError: As `load_model`.
    """
    if processes.count == 1:
        raise ConfigError("--shard-base: there is one process: start several with torchrun or accelerate launch")
    mesh = processes.mesh(pick_device(device))
    return processes.in_turn(lambda: load_model(name, device=device, mesh=mesh, **options))


def _round_linear_weights(model: PreTrainedModel) -> None:
    """Round the weights of linear layers to bfloat16 once; tied embeddings are left to the embedding's dtype."""
    tied = embedding_of(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float16:  # beside bfloat16 products it would promote everything to float32
            tensor.data = tensor.data.to(torch.bfloat16)
    for module in model.modules():
        linear = isinstance(module, torch.nn.Linear | Conv1D) and module.weight is not tied
        if linear and module.weight.dtype in (torch.float32, torch.float64):
            module.to(torch.bfloat16)
