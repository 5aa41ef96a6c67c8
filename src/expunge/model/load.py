"""From a folder or Hub name to a model that is ready to compute: weights, tokenizer, device, precision."""

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch.distributed import DeviceMesh
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from expunge.errors import ConfigError, ModelError
from expunge.kernels import Head
from expunge.kernels.rounding import row_multiple
from expunge.model.context import context_length
from expunge.model.declared import check_adapter_config, check_folder, check_size
from expunge.model.files import check_whole, weight_files
from expunge.model.head import cast_head, find_head
from expunge.model.memory import check_fits, weight_bytes
from expunge.model.packing import packable_length
from expunge.model.shard import Lockstep, shard_layers
from expunge.utils.distributed import Processes
from expunge.utils.reading import read_object

CACHED_KERNELS = 128
"""Compiled bf16 products that are kept on the CPU, one per shape: more than one forward and backward pass needs."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


@dataclass
class LoadedModel:
    """A model with what belongs to it.

    Attributes:
        model: The causal LM, in eval mode, without gradients; `add_adapter` replaces it by a `PeftModel` around it.
        tokenizer: Its tokenizer.
        head: The frozen head as the kernels take it.
        dtype: What matrix products run in: `torch.float32` or `torch.bfloat16` (or `torch.float64` in tests).
        plain_head: Why the head is not taken apart (the logits come from the model itself), or None.
        folded: Name of the adapter that was folded into the base, or None.
        packable_length: Longest row that may stand in a packed sequence; 0 when rows are padded.
        lockstep: What keeps the processes together that share the base's weights; None when each holds all of them.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    dtype: torch.dtype
    plain_head: str | None = None
    folded: str | None = None
    packable_length: int = 0
    lockstep: Lockstep | None = None

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
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def context(self) -> int | None:
        """Tokens of the longest row, see `context_length`; None where the model sets no bound."""
        return context_length(self.base)

    @property
    def row_multiple(self) -> int:
        """What the tokens of a packed sequence are rounded up to."""
        return row_multiple(self.dtype, self.device)

    def join(self) -> None:
        """After this process's part of what several divide: take part in the passes of those that share the base."""
        if self.lockstep is not None:
            self.lockstep.join()

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products in `dtype`."""
        enabled = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            yield


def pick_device(name: str = "auto") -> torch.device:
    """The device that a `--device` value means.

    Raises:
        ModelError: The device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # each process of a launcher takes a device of its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("Expunge computes on cpu and cuda")
        torch.zeros(1, device=device).item()  # a device without memory of its own has no item
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype that a `--dtype` value means: `auto` is bfloat16 where the hardware multiplies it."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, Hub name or adapter folder.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    base = base_name(name)
    own = Path(name) / "tokenizer_config.json"
    try:
        return AutoTokenizer.from_pretrained(name if own.exists() else base, trust_remote_code=trust_remote_code)
    except Exception as error:  # what damaged files can make of it has no bounds
        raise ModelError(f"--model {name}: no usable tokenizer ({_first_line(error)})") from None


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
    mesh: DeviceMesh | None = None,
) -> LoadedModel:
    """Load a causal LM; if `name` is a PEFT adapter folder, its base with the adapter folded in.

    Weights are kept in their stored dtype. Under bfloat16, the weights of linear layers that are stored wider are
    rounded once, as autocast would do at every call; everything else stays as stored. With a `mesh`, its processes
    share the weights of the layers; each loads all of them on the CPU first, without a word to the others.

    Raises:
        ModelError: Not a causal LM, weights missing or not in safetensors, an adapter that does not fit.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    target = pick_device(device)
    if target.type == "cpu":
        _settle_cpu_memory()
    place = target if mesh is None else torch.device("cpu")
    compute = pick_dtype(dtype, target)
    own_base = base_name(name)
    check_model(own_base, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(own_base, trust_remote_code=trust_remote_code)
    config._attn_implementation = config._experts_implementation = None  # ours to choose, whatever its file says
    options: dict = {
        "config": config,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        "attn_implementation": "sdpa",
    }
    if load_in_4bit:
        if target.type != "cuda":
            raise ModelError(f"--load-in-4bit needs a CUDA device, this run is on {target.type}")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
        options["device_map"] = {"": target}
    stored = "auto" if compute == torch.bfloat16 else compute
    if Path(own_base).is_dir() and not load_in_4bit:
        headers = [check_whole(file) for file in weight_files(Path(own_base))]
        size = weight_bytes(headers, None if stored == "auto" else compute)
        if not trust_remote_code:
            check_size(own_base, config, headers)
        check_fits(size, place, f"--model {own_base}", "take a smaller model, --dtype bfloat16 or a larger machine")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            own_base, dtype=stored, output_loading_info=True, **options
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # as for the tokenizer
        if "sdpa" not in str(error) and "scaled_dot_product" not in str(error):
            raise ModelError(f"--model {own_base}: cannot be loaded ({_first_line(error)})") from None
        options["attn_implementation"] = "eager"
        model, report = AutoModelForCausalLM.from_pretrained(
            own_base, dtype=stored, output_loading_info=True, **options
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"--model {own_base}: {len(missing)} weights are missing from its files, first {missing[0]}")
    folded = None
    if own_base != name:
        model, folded = put_adapter(model, Path(name)).merge_and_unload(), name
    if not load_in_4bit:
        model.to(place)
    model.eval().requires_grad_(False)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"--model {name}: the tokenizer knows {len(tokenizer)} tokens, the model only "
            f"{model.get_input_embeddings().weight.shape[0]}: they do not belong together"
        )
    head, plain_head = find_head(model)
    packable = packable_length(model, compute) if head.weight is not None else 0
    if compute == torch.bfloat16:
        _round_linear_weights(model)
    if mesh is not None:
        shard_layers(model, mesh, target)
    loaded = LoadedModel(model, tokenizer, cast_head(head, model, compute), compute, plain_head, folded, packable)
    if mesh is not None:
        loaded.lockstep = Lockstep(model, loaded.autocast)
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


def check_model(name: str, *, trust_remote_code: bool = False) -> None:
    """Check what can be checked before weights load: the configuration is there, a causal LM, its files safetensors.

    Raises:
        ModelError: It cannot be used.
    """
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").exists():
        raise ModelError(f"--model {name}: not a model folder, there is no config.json in it")
    if not folder.exists() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ModelError(f"--model {name}: no such folder")
    if folder.is_dir():
        check_folder(folder, [check_whole(file) for file in weight_files(folder)])
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # as for the tokenizer
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ModelError(
                f"--model {name}: comes with code of its own, which is not run unless you trust its author and give "
                "--trust-remote-code"
            ) from None
        raise ModelError(f"--model {name}: cannot read its configuration ({_first_line(error)})") from None
    if type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
        raise ModelError(f"--model {name}: architecture {config.model_type} is not a causal language model")
    if folder.is_dir():
        weight_files(folder)


def put_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter into its base model.

    Raises:
        ModelError: It has no weights in safetensors format, or does not fit the model.
    """
    file = check_adapter(folder)
    try:
        peft_model = PeftModel.from_pretrained(model, str(folder)).eval()
        with warnings.catch_warnings(), safe_open(file, framework="pt") as weights:
            warnings.filterwarnings("ignore", message="Could not find a config file")  # where the base was then
            other = set(weights.keys()) ^ set(get_peft_model_state_dict(peft_model))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: this adapter does not fit the model ({_first_line(error)})") from None
    if other:
        raise ModelError(
            f"{folder}: this adapter does not fit the model ({len(other)} weights are in one of them only, "
            f"first {min(other)})"
        )
    return peft_model


def check_adapter(folder: Path) -> Path:
    """The weight file of an adapter folder.

    Raises:
        ModelError: It is not there, or damaged.
    """
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(f"{folder}: no adapter_model.safetensors in it; weights in other files are not loaded")
    check_adapter_config(folder, check_whole(file))
    return file


def base_name(name: str) -> str:
    """The model that `name` stands on: itself, or the base of the adapter folder that it is."""
    if not (Path(name) / "adapter_config.json").exists():
        return name
    check_adapter(Path(name))
    base = read_object(Path(name) / "adapter_config.json", ModelError).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"--model {name}: its adapter_config.json names no base model")
    beside = Path(name) / base
    return str(beside.resolve()) if not Path(base).exists() and beside.exists() else base


def _round_linear_weights(model: PreTrainedModel) -> None:
    """Round the weights of linear layers to bfloat16 once; tied embeddings are left to the embedding's dtype."""
    tied = model.get_input_embeddings().weight
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float16:  # beside bfloat16 products it would promote everything to float32
            tensor.data = tensor.data.to(torch.bfloat16)
    for module in model.modules():
        linear = isinstance(module, torch.nn.Linear | Conv1D) and module.weight is not tied
        if linear and module.weight.dtype in (torch.float32, torch.float64):
            module.to(torch.bfloat16)


def _settle_cpu_memory() -> None:
    """Fewer page faults and flat memory on the CPU; settings of the environment win.

    glibc hands large blocks back to the system at once, and fresh pages for every temporary cost a fifth of a step.
    oneDNN and PyTorch each keep the 1,024 last compiled bf16 products, one per shape, and a run has many shapes. Both
    read their bound at the first product of a process.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(CACHED_KERNELS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none, and no such cost
        mallopt(_M_MMAP_THRESHOLD, 2**30 - 1)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
