"""Forget texts in lower case.

What a language model forgets as it stands it may still know in another writing (docs/targets.md).
"""

import random
from dataclasses import replace

from expunge.data.examples import Example
from expunge.data.sampler import Step


def in_lower_case(example: Example) -> Example:
    """The row with its prompt, its completion and what its turns say in lower case; a template's words stay."""
    turns = example.messages and tuple({**turn, "content": turn["content"].lower()} for turn in example.messages)
    return replace(example, prompt=example.prompt.lower(), completion=example.completion.lower(), messages=turns)


def rows_of(step: Step, share: float, count: int, seed: int) -> list[int]:
    """The forget rows of a step, a share of them in lower case: these stand behind the `count` rows as they are."""
    lower = [random.Random(f"{seed} {step.number} {at} lower").random() < share for at in step.forget]
    return [at + count * lowered for at, lowered in zip(step.forget, lower, strict=True)]
