"""What is looked at of the model before its weights load: its tokenizer, and how much it reads."""

import math
from typing import Any

from transformers import AutoConfig

from expunge.config import SETS, UnlearnConfig
from expunge.data.sets import Sets
from expunge.data.tokenize import check_lengths
from expunge.errors import ConfigError
from expunge.model.limits import context_of
from expunge.model.load import load_tokenizer, other_tokenizer
from expunge.model.source import check_model


def check_origin(config: UnlearnConfig, origin: str) -> None:
    """Look whether the model that the target NLLs come from is one, with the tokenizer of the model.

    Raises:
        ModelError: It is none, or the model is none.
        ConfigError: Its tokenizer has other tokens.
    """
    trusted = config.trust_remote_code
    check_model(config.model, trust_remote_code=trusted, revision=config.revision)
    tokenizer = load_tokenizer(config.model, trust_remote_code=trusted, revision=config.revision)
    if other_tokenizer(origin, "--origin", trust_remote_code=trusted).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"--origin {origin}: has another tokenizer than the model: take one with the same")


def check_texts_fit(config: UnlearnConfig, sets: Sets) -> None:
    """Refuse texts that are too long before weights load; of GGUF files a tokenizer is read with them.

    Raises:
        DataError: There is one.
        ModelError: The model is none.
    """
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
    source = check_model(config.model, **options)
    if config.truncate_completions or source.gguf:
        return
    settings = AutoConfig.from_pretrained(source.base, trust_remote_code=config.trust_remote_code, **source.options)
    max_length, bound = longest_text(config, context_of(settings))
    examples = (example for name in SETS for example in getattr(sets, name))
    if long := [example for example in examples if len(example.completion.encode()) > max_length]:
        check_lengths(load_tokenizer(config.model, **options), long, max_length, bound)  # a token has a byte at least


def longest_text(config: UnlearnConfig, context: int | None) -> tuple[int, str]:
    """Tokens of the longest text, and what sets the bound."""
    bound = "--max-length" if config.max_length < (context or math.inf) else "the model's context"
    return min(config.max_length, context or config.max_length), bound
