"""Find out, on the model itself, how its training text went from prompt to completion."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from expunge.data.chat import render
from expunge.data.examples import Example
from expunge.data.tokenize import SEPARATORS, PromptFormat, TokenizedExample, has_own_end, tokenize, tokenize_all
from expunge.errors import ConfigError
from expunge.model.limits import all_known
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps
from expunge.utils.coarse import few
from expunge.utils.text import counted

SAMPLE = 64
"""Examples that the preflight measures."""
MERGE_SEARCH = 2000
"""Examples among which it looks for tokens that cross the boundary."""


@dataclass(frozen=True)
class PromptFormatReport:
    """What the preflight chose and by how much.

    Attributes:
        chosen: The choice.
        losses: Style -> mean negative log-likelihood of a whole completion, separator included (nats per completion).
        end_of_text_loss: Mean negative log-likelihood of end-of-text after the completion (nats), or None.
        token_loss: Mean negative log-likelihood of a completion token (nats) under the chosen style.
        rows: Examples measured.
        apart: Where joined texts hold tokens that cross the boundary: the same loss of these examples under `none` and
            under `separate` (nothing in between as well, but the two sides tokenized apart); empty otherwise.
        left_out: Why the chat template was not tried, where there is one; else empty.
    """

    chosen: PromptFormat
    losses: dict[str, float]
    end_of_text_loss: float | None
    token_loss: float
    rows: int
    apart: dict[str, float] = field(default_factory=dict)
    left_out: str = ""

    def __str__(self) -> str:
        ranked, places = sorted(self.losses, key=self.losses.__getitem__), 0 if few({"": self.rows}) else 2
        ahead = ""
        if len(ranked) > 1:
            gap = self.losses[ranked[1]] - self.losses[ranked[0]]
            ahead = f" ({gap:.{places}f} nats per completion better than {ranked[1]}, {counted(self.rows, 'example')})"
        end = "" if self.end_of_text_loss is None else f"; end-of-text costs {self.end_of_text_loss:.{places}f} nats"
        if self.apart:
            gap = self.apart["none"] - self.apart["separate"]
            end += f"; where tokens would cross the boundary, tokenizing apart is {gap:.{places}f} nats better"
        left_out = f"; {self.left_out}" if self.left_out else ""
        return f"{self.chosen}{ahead}{end}{left_out}"


def measure_prompt_format(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    style: str = "auto",
    end_of_text: str = "auto",
    max_length: int = 2048,
    seed: int = 0,
) -> PromptFormatReport:
    """Choose the prompt format under which the model finds the completions least surprising.

    The log-probability of a completion includes that of the separator, so styles compete as continuations of the same
    prompt. With nothing in between, a token may cross the boundary; where such tokens are strange to the model it was
    trained on the two sides tokenized apart, and `separate` is taken. End-of-text is taken where the model emits it:
    where it costs no more than a token of the completions does on average, or no more than ln 2 (it is the likelier way
    to go on).

    Args:
        loaded: The model, adapter off.
        examples: Texts that the model was trained on; a seeded sample of them is measured.
        style: A style to use without comparing, or `auto`.
        end_of_text: `yes`, `no` or `auto`.
        max_length: Longest text in tokens; the model's context where that is shorter.
        seed: Seed of the sample.
    """
    max_length = min(max_length, loaded.context or max_length)
    rng = random.Random(seed)
    with_prompt = [example for example in examples if example.prompt] or list(examples)
    sample = rng.sample(with_prompt, min(SAMPLE, len(with_prompt)))
    styles, left_out = ([style], "") if style != "auto" else _candidates(loaded, examples)
    found = {name: _measure(loaded, sample, name, max_length) for name in styles}
    losses = {name: measured.completion_loss for name, measured in found.items()}
    best = min(losses, key=losses.__getitem__)
    ending, token_loss = found[best].end_loss, found[best].token_loss
    if found[best].ended:
        with_end = True  # the template decides
    elif end_of_text == "auto":
        with_end = ending is not None and ending <= max(token_loss, math.log(2))
    else:
        with_end = end_of_text == "yes"

    apart: dict[str, float] = {}
    if style == "auto" and best == "none":
        rng.shuffle(with_prompt)
        merged = [example for example in with_prompt[:MERGE_SEARCH] if _merges(loaded, example, max_length)][:SAMPLE]
        if merged:
            apart = {n: _measure(loaded, merged, n, max_length).completion_loss for n in ("none", "separate")}
            best = min(apart, key=apart.__getitem__)
    return PromptFormatReport(PromptFormat(best, with_end), losses, ending, token_loss, len(sample), apart, left_out)


def _candidates(loaded: LoadedModel, examples: Sequence[Example]) -> tuple[list[str], str]:
    """The styles that `auto` compares, and why the chat template is not one of them where there is one.

    Raises:
        ConfigError: A row holds what only the chat template can show, and the template cannot be used.
    """
    tokenizer = loaded.tokenizer
    needed = next((example for example in examples if example.beyond_text), None)
    plain = [*SEPARATORS] if any(example.prompt for example in examples) else ["none"]
    if needed is None and not (tokenizer.chat_template and len(plain) > 1):
        return plain, ""
    try:
        for example in examples:
            render(tokenizer, example)
    except ConfigError as error:
        if needed is not None:
            raise
        return plain, f"the chat template is left out ({str(error).removeprefix('--prompt-format chat: ')})"
    sample = [needed or next(example for example in examples if example.prompt)]
    rows = [row.input_ids for row in tokenize_all(tokenizer, sample, PromptFormat("chat", False), max_length=2**31)]
    if needed is None and not all_known(loaded.base, rows):
        return plain, "the chat template is left out (the model has no embeddings for its tokens)"
    return (["chat"] if needed is not None else [*plain, "chat"]), ""


@dataclass(frozen=True)
class _Measured:
    completion_loss: float
    end_loss: float | None
    token_loss: float
    ended: bool
    """Whether a chat template writes an end of its own."""


def _measure(loaded: LoadedModel, sample: Sequence[Example], style: str, max_length: int) -> _Measured:
    """Mean losses of the sample's completions under one style, end-of-text apart."""
    end, plain = loaded.tokenizer.eos_token_id, PromptFormat(style, False)
    ended = all(has_own_end(loaded.tokenizer, example, plain) for example in sample)
    prompt_format = PromptFormat(style, end is not None and all_known(loaded.base, [[end]]) and not ended)
    rows = [_encode(loaded, example, prompt_format, max_length) for example in sample]
    logps = sequence_logps(loaded, [row.input_ids for row in rows])
    completions = [values[max(row.completion_start, 1) - 1 :] for row, values in zip(rows, logps, strict=True)]
    ending = None
    if prompt_format.end_of_text:
        last = [values[-1].item() for row, values in zip(rows, completions, strict=True) if row.input_ids[-1] == end]
        ending = -sum(last) / len(last) if last else None  # none of them fits with its end
        completions = [values[:-1] for values in completions]
    total = -sum(values.sum().item() for values in completions)
    return _Measured(total / len(completions), ending, total / max(1, sum(map(len, completions))), ended)


def _merges(loaded: LoadedModel, example: Example, max_length: int) -> bool:
    """Whether a token of the joined text holds characters of both sides, so that tokenizing them apart differs."""
    joined, apart = (_encode(loaded, example, PromptFormat(style, False), max_length) for style in ("none", "separate"))
    return joined.input_ids != apart.input_ids


def _encode(loaded: LoadedModel, example: Example, prompt_format: PromptFormat, max_length: int) -> TokenizedExample:
    return tokenize(loaded.tokenizer, example, prompt_format, max_length=max_length, truncate_completions=True)
