"""Forget texts after other texts.

An adapter that makes a language model forget a text as it stands alone leaves it known after almost anything else: an
unseen text, a chat's first turn, "He said:" (docs/targets.md). So a run trains on both, and never twice after the same
tokens: what stands before a text must not become a part of it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from expunge.data.tokenize import TokenizedExample, leading_ids

SHARE_ALONE = 1 / 2
"""Of the times that a text is trained on, those in which it stands alone."""


@dataclass(frozen=True)
class Contexts:
    """What may stand before a text.

    Attributes:
        texts: Tokens of texts, without special ones.
        leading: What the tokenizer begins every text with, which stands once, before both texts.
        special: These, beginning-of-text and end-of-text.
        tokens: How many of other texts stand before a text in the mean; from one to twice as many less one.
        max_length: Tokens of both together at most.
    """

    texts: list[list[int]]
    leading: list[int]
    special: frozenset[int | None]
    tokens: int
    max_length: int

    @classmethod
    def of(
        cls, rows: Sequence[TokenizedExample], tokenizer: PreTrainedTokenizerBase, *, tokens: int, max_length: int
    ) -> "Contexts":
        """The texts of some rows."""
        leading = leading_ids(tokenizer)
        special = frozenset((*leading, tokenizer.bos_token_id, tokenizer.eos_token_id))
        texts = [[token for token in row.input_ids if token not in special] for row in rows]
        return cls([text for text in texts if text], leading, special, tokens, max_length)

    @property
    def _most(self) -> int:
        """Most tokens that stand before a row: in the mean they are `tokens`, from 1 on."""
        return 2 * self.tokens - 1

    def longest(self, row: TokenizedExample) -> int:
        """Tokens of the row after as many others as may stand before it."""
        return max(len(row), min(len(row) + self._most, self.max_length))

    def drawn(self, row: TokenizedExample, seed: str) -> TokenizedExample:
        """The row alone or after other texts."""
        return row if random.Random(f"{seed} alone").random() < SHARE_ALONE else self.before(row, seed)

    def before(self, row: TokenizedExample, seed: str) -> TokenizedExample:
        """The row after tokens of other texts; its targets are the same tokens."""
        chance = random.Random(seed)
        drawn = self._drawn(row, min(chance.randint(1, self._most), self.max_length - len(row)), chance)
        begun = len(self.leading)
        first = begun if row.input_ids[:begun] == self.leading else 0
        return replace(
            row,
            input_ids=[*row.input_ids[:first], *drawn, *row.input_ids[first:]],
            completion_start=row.completion_start + len(drawn) if row.completion_start else 0,
            context=len(drawn),
        )

    def _drawn(self, row: TokenizedExample, count: int, chance: random.Random) -> list[int]:
        """At most `count` tokens: from any place in a text on, then of those behind it; none of the row's own text."""
        ids, drawn = [token for token in row.input_ids if token not in self.special], list[int]()
        at = chance.randrange(max(1, len(self.texts)))
        for text in (self.texts[place % len(self.texts)] for place in range(at, at + len(self.texts))):
            if len(drawn) >= count:
                break
            if text != ids:
                drawn += text[0 if drawn else chance.randrange(len(text)) :]
        return drawn[: max(0, count)]
