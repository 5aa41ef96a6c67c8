"""What a row may hold: how many tokens, and which."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from expunge.errors import DataError
from expunge.model.layers import embedding_of


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: 0, or the one behind the position of padding (RoBERTa and its kin)."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for; None when it sets no bound.

    Those that a position table has before a text's first are none (`first_position`).
    With a longrope rotary embedding those of its original context: as soon as one row of a batch is longer, all of them
    get other factors, and what the model says of a row would depend on the rows beside it. (A dynamic one is the same
    for all rows up to `max_position_embeddings`.)
    """
    shortest = context_of(model.config)
    return None if shortest is None else shortest - first_position(model)


def context_of(config: PretrainedConfig) -> int | None:
    """Positions that a model's settings name; None when they set no bound."""
    config = config.get_text_config()
    bounds = [
        getattr(config, "max_position_embeddings", None),
        *_original_contexts(getattr(config, "rope_parameters", None) or {}),
    ]
    return min((bound for bound in bounds if bound), default=None)


def check_lengths(model: PreTrainedModel, lengths: Sequence[int]) -> None:
    """Refuse rows beyond the model's context.

    Raises:
        DataError: The longest of `lengths` tokens is.
    """
    longest, context = max(lengths), context_length(model)
    if context is not None and longest > context:
        raise DataError(
            f"a text has {longest:,} tokens and the model's context is {context:,} (with a longrope rotary embedding "
            f"its original one, beyond which rows change each other): give --max-length {context}"
        )


def all_known(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> bool:
    """Whether the model has an embedding for every token."""
    return max(map(max, sequences), default=-1) < embedding_of(model).shape[0]


def check_tokens(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> None:
    """Refuse tokens that the model has no embedding for; a tokenizer may know such ones if no text holds them.

    Raises:
        DataError: A sequence holds one.
    """
    if not all_known(model, sequences):
        rows, largest = embedding_of(model).shape[0], max(map(max, sequences))
        raise DataError(
            f"a text, or the chat template around it, holds token {largest} and the model has embeddings for {rows:,} "
            "tokens: its tokenizer knows more; take the text out, give another --prompt-format, or a model whose "
            "embeddings were resized"
        )


def _original_contexts(parameters: Mapping[str, Any]) -> Iterator[int]:
    """Those of the longrope embeddings in a configuration, which may hold one for all layers or one per kind."""
    if parameters.get("rope_type") == "longrope":
        yield parameters["original_max_position_embeddings"]
    for value in parameters.values():
        if isinstance(value, Mapping):
            yield from _original_contexts(value)
