"""From the files of a checkpoint to a transformers model: formats that are widened, and what the class leaves out."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.quantization_config import Mxfp4Config

from expunge.errors import ModelError
from expunge.model.declared import check_size
from expunge.model.source import Source, first_line

DEQUANTIZED = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
"""Formats of stored weights that are widened on load: an adapter is trained on what can be computed anywhere."""
_MEND = "it is stored in {}, give the model that it was made from"
Headers = Sequence[Mapping[str, Any]]
"""Of each weight file: tensor -> dtype and shape."""


def config_of(source: Source, *, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of the base, as it is loaded with.

    Raises:
        ModelError: The weights are quantized in a way that is not widened.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        source.base, trust_remote_code=trust_remote_code, **source.options
    )
    config._attn_implementation = config._experts_implementation = None  # ours to choose, whatever its file says
    method = quantization(config)
    if method not in (None, *DEQUANTIZED):
        hint = " (--load-in-4bit quantizes it on load)" if method == "bitsandbytes" else ""
        raise ModelError(f"{source.where}: {_MEND.format(method)}{hint}")
    return config


def from_pretrained(
    source: Source,
    config: PretrainedConfig,
    headers: Headers | None,
    stored: torch.dtype | None,
    compute: torch.dtype,
    target: torch.device,
    *,
    load_in_4bit: bool,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, list[str]]:
    """The base as transformers loads it, in the dtype `stored` (that of its files when None), and what it leaves out.

    Raises:
        ModelError: It cannot be loaded, or weights are missing.
    """
    options: dict[str, Any] = {"config": config, "trust_remote_code": trust_remote_code, **source.options}
    if source.revision:  # else transformers 5.17 looks for an adapter on the main branch
        options["adapter_kwargs"] = {"revision": source.revision}
    method = quantization(config)
    if headers is not None and not (load_in_4bit or method or trust_remote_code):
        check_size(source.base, config, headers)
    if source.gguf:
        options["quantization_config"] = GgufConfig(dequantize=True)
        stored = stored or compute
    else:
        options["use_safetensors"] = True
    if load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
        options["device_map"] = {"": target}
    elif method in DEQUANTIZED:
        options["quantization_config"] = DEQUANTIZED[method](dequantize=True)
    soft = getattr(config.get_text_config(), "attn_logit_softcapping", None)  # sdpa leaves it out, or refuses it
    for attention in ("eager",) if soft else ("sdpa", "eager"):
        options["attn_implementation"] = attention
        try:
            with warnings.catch_warnings(), _kept_wide(headers or (), config):
                warnings.simplefilter("ignore")
                loaded = AutoModelForCausalLM.from_pretrained(
                    source.base, dtype=stored or "auto", output_loading_info=True, **options
                )
            break
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # what damaged files can make of it has no bounds
            if attention == "eager" or not ("sdpa" in str(error) or "scaled_dot_product" in str(error)):
                reason = f"cannot be loaded ({first_line(error)})"
                raise ModelError(f"{source.where}: {reason}{f': {_MEND.format(method)}' if method else ''}") from None
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)  # declared for `output_loading_info=False`
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{source.where}: {len(missing)} weights are missing from its files, first {missing[0]}")
    if method in DEQUANTIZED:  # what is in memory, and what is saved of it, is not quantized any more
        vars(model.config).pop("quantization_config", None)
        vars(model).pop("_weight_conversions", None)
    if compute != torch.bfloat16 and not load_in_4bit:
        move(model, compute)  # some formats are widened to a dtype of their own
    return model, [*_left_out(headers or (), model, sorted(report["unexpected_keys"])), *_part(config, model)]


@contextmanager
def _kept_wide(headers: Headers, config: PretrainedConfig) -> Iterator[None]:
    """Keep in fp32 what the files hold in fp32 beside narrower weights, as the biases by which routers choose experts.

    Transformers rounds it to the dtype of the rest, save in the classes that name it. Weights and biases of layers are
    left to it: their products are taken in one precision.
    """
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if kind is None or isinstance(kind, tuple):
        yield
        return
    wide = (key for header in headers for key, entry in header.items() if entry["dtype"] == "F32")
    leaves = {key.rpartition(".")[2] for key in wide} - {"weight", "bias"}
    named = kind._keep_in_fp32_modules_strict
    kind._keep_in_fp32_modules_strict = {*(named or ()), *(leaf for leaf in leaves if "scale" not in leaf)}
    try:
        yield
    finally:
        kind._keep_in_fp32_modules_strict = named


def move(model: torch.nn.Module, to: torch.device | torch.dtype) -> None:
    """Bring a model to a device or a dtype, in place.

    `PreTrainedModel.to` itself is declared in a way that no type checker can bind to a model.
    """
    model.to(to)


def quantization(config: Any) -> str | None:
    """The format that a checkpoint's weights are quantized in, by its configuration."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method))


def _left_out(headers: Headers, model: PreTrainedModel, unexpected: Sequence[str]) -> list[str]:
    """Tensors of the checkpoint that the model's class does not use, in one line."""
    names = [key for header in headers for key in header]
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    in_model = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    lost = {key for key in names if key not in in_model and any(re.search(pattern, key) for pattern in ignored)}
    lost |= set(names) & set(unexpected)
    if not lost:
        return []
    parts = sorted({".".join(key.split(".")[: 2 if key.startswith("model.") else 1]) for key in lost})
    return [
        f"model: {len(lost)} of {len(names)} tensors are not used by {type(model).__name__} ({', '.join(parts[:4])}): "
        "they are neither read nor changed; merge carries them over"
    ]


def _part(config: PretrainedConfig, model: PreTrainedModel) -> list[str]:
    """That the model is the language model of a larger checkpoint, whose class has other names for its layers."""
    if isinstance(model.config, type(config)):
        return []
    whole = ", ".join(config.architectures or [config.model_type])
    return [
        f"model: {type(model).__name__} is a part of {whole}: a server that builds the whole may load the adapter and "
        "apply none of it: serve the merged model"
    ]
