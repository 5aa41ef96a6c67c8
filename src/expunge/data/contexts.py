"""Forget texts after other texts.

An adapter that makes a language model forget a text as it stands alone leaves it known after almost anything else: an
unseen text, a chat's first turn, "He said:" (docs/method.md). So a run can train on both (`--context-tokens`), never
twice after the same tokens: what stands before a text must not become a part of it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from transformers import PreTrainedTokenizerBase

from expunge.data.tokenize import TokenizedExample

AFTER = " after another text"
"""Ends the group of a row that stands after another text."""


@dataclass(frozen=True)
class Contexts:
    """What may stand before a text.

    Attributes:
        texts: Tokens of texts, without special ones.
        bos: The beginning-of-text token, which stands once, before both texts.
        special: It and end-of-text.
    """

    texts: list[list[int]]
    bos: int | None
    special: frozenset[int | None]

    @classmethod
    def of(cls, rows: Sequence[TokenizedExample], tokenizer: PreTrainedTokenizerBase) -> "Contexts":
        """The texts of some rows."""
        special = frozenset((tokenizer.bos_token_id, tokenizer.eos_token_id))
        texts = [[token for token in row.input_ids if token not in special] for row in rows]
        return cls([text for text in texts if text], tokenizer.bos_token_id, special)

    def before(
        self, rows: Sequence[TokenizedExample], *, tokens: int, max_length: int, seed: str
    ) -> list[TokenizedExample]:
        """Each row after the tokens of other texts.

        Args:
            rows: Texts.
            tokens: As many of other texts in the mean; from one to twice as many less one.
            max_length: Of both together; a row that leaves no room, or has no other text, is left out.
            seed: Of the draws.
        """
        chance = random.Random(seed)
        found = []
        for row in rows:
            room = min(chance.randint(1, 2 * tokens - 1), max_length - len(row))
            drawn = self._drawn(row, room, chance)
            if drawn:
                start = row.completion_start + len(drawn) if row.completion_start else 0
                own = replace(row, completion_start=start, group=row.group + AFTER, context=len(drawn))
                found.append(replace(own, input_ids=self._joined(drawn, row.input_ids)))
        return found

    def renewed(self, row: TokenizedExample, seed: str) -> TokenizedExample:
        """The same row after as many tokens of other texts; as it is where these texts are too short for that."""
        own = alone(row, self.bos)
        drawn = self._drawn(own, row.context, random.Random(seed))
        return replace(row, input_ids=self._joined(drawn, own.input_ids)) if len(drawn) == row.context else row

    def _joined(self, before: list[int], ids: list[int]) -> list[int]:
        first = int(ids[0] == self.bos)
        return [*ids[:first], *before, *ids[first:]]

    def _drawn(self, row: TokenizedExample, count: int, chance: random.Random) -> list[int]:
        """At most `count` tokens: from any place in a text on, then of those behind it; none of the row's own text."""
        own = [token for token in row.input_ids if token not in self.special]
        others = [text for text in self.texts if text != own] if own in self.texts else self.texts
        drawn: list[int] = []
        at = chance.randrange(len(others)) if others else 0
        for text in islice(cycle(others), at, at + len(others)):
            if len(drawn) >= count:
                break
            drawn += text[0 if drawn else chance.randrange(len(text)) :]
        return drawn[: max(0, count)]


def alone(row: TokenizedExample, bos: int | None) -> TokenizedExample:
    """The row without the text before it."""
    if not row.context:
        return row
    ids = row.input_ids[row.context :]
    if row.input_ids[0] == bos:
        ids[0] = bos
    return replace(row, input_ids=ids, completion_start=max(0, row.completion_start - row.context), context=0)
