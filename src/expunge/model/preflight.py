"""Find out, on the model itself, how its training text went from prompt to completion."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data.examples import Example
from expunge.data.tokenize import SEPARATORS, Join, end_of_text_id, tokenize
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps

SAMPLE = 64
"""Examples that the preflight looks at."""


@dataclass(frozen=True)
class JoinReport:
    """What the preflight chose and by how much.

    Attributes:
        join: The choice.
        losses: Style -> mean negative log-likelihood of a whole completion, separator included (nats per completion).
        end_of_text_loss: Mean negative log-likelihood of end-of-text after the completion (nats), or None.
        token_loss: Mean negative log-likelihood of a completion token (nats) under the chosen style.
        rows: Examples measured.
    """

    join: Join
    losses: dict[str, float]
    end_of_text_loss: float | None
    token_loss: float
    rows: int

    def __str__(self) -> str:
        ranked = sorted(self.losses, key=self.losses.__getitem__)
        ahead = ""
        if len(ranked) > 1:
            gap = self.losses[ranked[1]] - self.losses[ranked[0]]
            ahead = f" ({gap:.2f} nats per completion better than {ranked[1]}, {self.rows} examples)"
        end = "" if self.end_of_text_loss is None else f"; end-of-text costs {self.end_of_text_loss:.2f} nats"
        return f"{self.join}{ahead}{end}"


def measure_join(
    loaded: LoadedModel,
    examples: Sequence[Example],
    *,
    style: str = "auto",
    end_of_text: str = "auto",
    max_length: int = 2048,
    seed: int = 0,
) -> JoinReport:
    """Choose the join under which the model finds the completions least surprising.

    The log-probability of a completion includes that of the separator, so styles compete as continuations of the same
    prompt. End-of-text is taken where the model emits it: where it costs no more than a token of the completions does
    on average, or no more than ln 2 (it is the likelier way to go on).

    Args:
        loaded: The model, adapter off.
        examples: Texts that the model was trained on; a seeded sample of them is measured.
        style: A style to use without comparing, or `auto`.
        end_of_text: `yes`, `no` or `auto`.
        max_length: Longest text in tokens.
        seed: Seed of the sample.
    """
    tokenizer = loaded.tokenizer
    with_prompt = [example for example in examples if example.prompt] or list(examples)
    sample = random.Random(seed).sample(with_prompt, min(SAMPLE, len(with_prompt)))
    has_end = tokenizer.eos_token_id is not None
    if style != "auto":
        styles = [style]
    elif not any(example.prompt for example in sample):
        styles = ["none"]
    else:
        styles = [*SEPARATORS, "separate", *(["chat"] if tokenizer.chat_template else [])]

    losses: dict[str, float] = {}
    ends: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for name in styles:
        join = Join(name, end_of_text=has_end and name != "chat")
        rows = [
            tokenize(tokenizer, example, join, max_length=max_length, truncate_completions=True) for example in sample
        ]
        own = [
            logps[max(row.completion_start, 1) - 1 :]
            for row, logps in zip(rows, sequence_logps(loaded, [row.input_ids for row in rows]), strict=True)
        ]
        if join.end_of_text:
            end = end_of_text_id(tokenizer)
            finished = [logps[-1].item() for row, logps in zip(rows, own, strict=True) if row.input_ids[-1] == end]
            ends[name] = -sum(finished) / max(1, len(finished))
            own = [logps[:-1] for logps in own]
        losses[name] = -sum(logps.sum().item() for logps in own) / len(own)
        tokens[name] = losses[name] * len(own) / max(1, sum(len(logps) for logps in own))
    best = min(losses, key=losses.__getitem__)
    ending = ends.get(best)
    if best == "chat":
        with_end = True  # the template decides
    elif end_of_text == "auto":
        with_end = ending is not None and ending <= max(tokens[best], math.log(2))
    else:
        with_end = end_of_text == "yes"
    return JoinReport(Join(best, with_end), losses, ending, tokens[best], len(sample))
