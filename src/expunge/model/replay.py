"""Replay texts: the untouched model writes them itself, so that what it says of unseen texts can be held in place.

Nothing holds a model on texts that neither the forget nor the retain set is like, and pushing the forget set moves what
it says there. Texts that it would write by itself are the nearest to them that can be had without any data.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from expunge.data.tokenize import TokenizedExample, leading_ids
from expunge.data.words import common_prefix
from expunge.errors import TrainingError
from expunge.model.decoding import COLUMNS, ROWS, batching_obstacle, go_on, tokens_that_fit, written
from expunge.model.load import LoadedModel
from expunge.model.logps import in_halves
from expunge.model.packing import UNBOUNDED
from expunge.utils.distributed import ALONE, Processes

NEW_TOKENS = 96
"""Longest continuation."""
BATCH = {"cpu": 128, "cuda": 512}
"""Texts that are written at once, per device type, at most."""
KNOWN, FEWEST_KNOWN = 8, 3
"""A text that has so many tokens in a row from the forget set, and not from the retain set, is left out; so is one
that holds a whole forget text of fewer, down to the second number."""
Known = dict[int, set[tuple[int, ...]]]
"""Length -> the sequences of so many tokens that no replay text may hold."""


@torch.no_grad()
def write_texts(
    loaded: LoadedModel,
    forget: Sequence[TokenizedExample],
    retain: Sequence[TokenizedExample],
    *,
    tokens: int,
    seed: int,
    processes: Processes = ALONE,
    progress: Callable[[int], None] = lambda count: None,
) -> list[TokenizedExample]:
    """Let the model write different texts, at temperature 1, until there are `tokens` of them.

    Args:
        loaded: The untouched model.
        forget: Texts to forget; what repeats them is left out.
        retain: Texts to keep.
        tokens: Tokens of all texts together.
        seed: Seed of the beginnings and of the draws.
        processes: Those that need the texts; all get those of the first.
        progress: Called with the number of tokens that have just been written.

    Returns:
        The texts, which may be fewer than wanted where the model writes the same again and again. Their completions are
        what the model has written.
    """
    rng, beginnings = random.Random(f"{seed} replay"), Beginnings(loaded, [*forget, *retain])
    known = _known(forget, retain, loaded.tokenizer.eos_token_id, leading_ids(loaded.tokenizer))
    size = _batch(loaded)
    found: dict[tuple[int, ...], None] = {}
    written, most = 0, 8 * tokens
    devices = [] if loaded.device.type == "cpu" else [loaded.device]
    with torch.random.fork_rng(devices), loaded.adapter_off():
        torch.manual_seed(seed)
        while (before := sum(map(len, found))) < tokens and written < most:
            texts = _continue(loaded, beginnings.drawn(rng, size), known)
            loaded.join()  # each takes as many passes as its own texts do
            texts = processes.gather(texts)[0]
            found |= {text: None for text in texts if len(text) > 1 and not _holds(text, known)}
            written += sum(map(len, texts))
            progress(min(sum(map(len, found)), tokens) - before)
    chosen: list[TokenizedExample] = []
    total = 0
    for text in found:
        if total < tokens:
            chosen.append(TokenizedExample(f"replay-{len(chosen) + 1}", list(text), beginnings.length))
            total += len(text)
    return chosen


@torch.no_grad()
def seconds_per_token(loaded: LoadedModel, rows: Sequence[TokenizedExample]) -> float:
    """Time that writing one token takes, from one batch that is thrown away."""
    begun = Beginnings(loaded, rows).drawn(random.Random(0), _batch(loaded))
    clock = time.perf_counter()
    texts = _continue(loaded, begun, {})
    return (time.perf_counter() - clock) / sum(map(len, texts))


class Beginnings:
    """What replay texts begin with, by turns: the first token of a row, so that they are like the texts of the run, and
    any token of the vocabulary, so that they come from all that the model knows. Nothing of what the rows say.

    Tokens that the tokenizer sets before every text stand before both.

    Attributes:
        length: Tokens of a beginning.
    """

    def __init__(self, loaded: LoadedModel, rows: Sequence[TokenizedExample]) -> None:
        tokenizer, special = loaded.tokenizer, set(loaded.tokenizer.all_special_ids)
        self._before = leading_ids(tokenizer)
        self.length = len(self._before) + 1
        size = loaded.base.config.get_text_config().vocab_size
        rows = [row for row in rows if len(row.input_ids) >= self.length]
        self._rows = [row.input_ids[: self.length] for row in rows]
        tokens = sorted(token for token in {*tokenizer.get_vocab().values()} - special if token < size)
        self._tokens = tokens or [row[-1] for row in self._rows]

    def drawn(self, rng: random.Random, count: int) -> list[list[int]]:
        """So many beginnings of one length."""
        return [
            rng.choice(self._rows) if self._rows and at % 2 else [*self._before, rng.choice(self._tokens)]
            for at in range(count)
        ]


def _batch(loaded: LoadedModel) -> int:
    """Texts that are written at once: fewer where their cache would take too much of a GPU's free memory.

    By halving, since the draws depend on it: a little more or less memory should give the same texts.
    """
    size, fits = BATCH[loaded.device.type], None if batching_obstacle(loaded.base) else tokens_that_fit(loaded)
    while fits is not None and size > ROWS and size * -(-NEW_TOKENS // COLUMNS) * COLUMNS > fits:
        size //= 2
    return size


def _continue(loaded: LoadedModel, begun: list[list[int]], known: Known) -> list[tuple[int, ...]]:
    """What the model writes after each of some beginnings.

    Raises:
        TrainingError: The device's memory is too small for a single text.
    """
    try:
        return in_halves(loaded, begun, partial(_written, loaded, known))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {loaded.device} while the model writes replay texts: give --replay-weight 0"
        ) from error


def _written(loaded: LoadedModel, known: Known, begun: list[list[int]]) -> list[tuple[int, ...]]:
    """What the model writes after each of some beginnings of one length, up to the end-of-text token, or to what is
    `known`, which is not used.
    """
    end, length = loaded.tokenizer.eos_token_id, len(begun[0])
    most = max(1, min(NEW_TOKENS, (loaded.context or UNBOUNDED) - length))
    texts = []
    stops = set() if end is None else {end}
    if batching_obstacle(loaded.base) is None:
        before = max(known, default=1) - 1  # of what stands there already, the tokens that a new one may end

        def over(text: Sequence[int], new: int) -> bool:
            return not stops.isdisjoint(text[-new:]) or _holds(text[-new - before :], known)

        found = written(loaded, begun, most=most, over=over)
    else:
        found = go_on(loaded, begun, most=most, stops=stops, temperature=1.0)
    for text in found:
        ends = [at for at, token in enumerate(text) if token == end and at >= length]
        texts.append(tuple(text[: ends[0] + 1] if ends else text))
    return texts


def _known(
    forget: Sequence[TokenizedExample], retain: Sequence[TokenizedExample], end: int | None, leading: Sequence[int]
) -> Known:
    """By their length, the sequences of tokens that no replay text may hold; what stands before every text (`leading`),
    and end-of-text, are none of them.
    """
    texts = [row.input_ids[:-1] if row.input_ids[-1] == end else row.input_ids for row in forget]
    known: Known = {}
    for ids in (text[common_prefix(text, leading) :] for text in texts):
        size = min(KNOWN, len(ids))
        if size >= FEWEST_KNOWN:
            known.setdefault(size, set()).update(_windows(ids, size))
    return {
        size: windows - {window for row in retain for window in _windows(row.input_ids, size)}
        for size, windows in known.items()
    }


def _holds(text: Sequence[int], known: Known) -> bool:
    return any(not windows.isdisjoint(_windows(text, size)) for size, windows in known.items())


def _windows(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
