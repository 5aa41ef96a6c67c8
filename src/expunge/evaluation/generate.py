"""Greedy generation: batched, with a key-value cache, and with the gold completions as drafts.

What comes out is what one-at-a-time greedy decoding gives (`argmax` of the plain logits at every step);
batching and drafts only change how fast. One forward pass over a prompt and its draft settles every token up
to the first difference. The rows that it does not finish go on token by token from its cache, together with
those of other passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from expunge.data.chat import end_ids, in_thought
from expunge.data.examples import Example
from expunge.data.passages import Passage
from expunge.data.sampler import halved, micro_batches
from expunge.data.tokenize import begun
from expunge.errors import DataError
from expunge.model.decoding import ROWS, TOKENS_PER_READ, Flight, Pick, batching_obstacle, cached_tokens, drawn, go_on
from expunge.model.limits import check_tokens
from expunge.model.load import LoadedModel
from expunge.model.logps import pad_right
from expunge.model.packing import UNBOUNDED

PASSES_PER_CACHE = 4
"""One pass over prompts and drafts takes at most this part of the cache's area and rows; those left over are joined."""
LEAST = 16
"""Tokens by which it shows whether a text is gone on with; fewer say too little."""
AT_ONCE = (
    "The model was asked for its answers at once, as its chat template writes them in finished turns: answers after a "
    "thought were not measured."
)
"""What is not measured where a server's own generation prompt is another one."""


@dataclass(frozen=True)
class Generation:
    """What a model said after one prompt.

    Attributes:
        prompt: Tokens that it was given, cut where they did not fit.
        tokens: Tokens that it said, the end token included where there was one.
        text: The same as text, special tokens left out, otherwise as decoded.
        stopped: Whether it has no end, and could not hold what is looked for (`cut_short`).
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    stopped: bool = False


def stop_ids(loaded: LoadedModel) -> frozenset[int]:
    """The tokens that end a generation: those of the model's settings and of the tokenizer."""
    config = getattr(loaded.base, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    found = ids if isinstance(ids, list) else [ids]
    return frozenset(token for token in found if token is not None) | end_ids(loaded.tokenizer)


def greedy(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    drafts: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt with the most likely token until an end token or `max_new_tokens`.

    In fp32 the tokens are those of `generate(do_sample=False)` one prompt at a time, whatever the drafts. A
    generation also ends where the model has no more positions.

    Args:
        loaded: The model.
        prompts: Token ids of each prompt; none is empty, each leaves room for a token in the model's context.
        max_new_tokens: Bound on the generated tokens of each row.
        drafts: A guess of each continuation; the better it is the less is left to decode.
        progress: Called with the number of rows that have just been finished.

    Returns:
        The new tokens of each row, the end token included where there was one.
    """
    return _decode(
        loaded, prompts, partial(torch.argmax, dim=-1), max_new_tokens=max_new_tokens, drafts=drafts,
        progress=progress,
    )  # fmt: skip


def sample(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, temperature: float = 1.0, seed: int = 0, **options: Any
) -> list[list[int]]:
    """Continue each prompt with tokens drawn from the model's whole distribution at `temperature`.

    The options and the result are those of `greedy`, drafts aside.
    """
    generator = torch.Generator(loaded.device).manual_seed(seed)
    devices = [] if loaded.device.type == "cpu" else [loaded.device]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # the library's own decoding draws from the global generator
        draw = partial(drawn, temperature=temperature, generator=generator)
        return _decode(loaded, prompts, draw, temperature=temperature, **options)


@torch.no_grad()
def _decode(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    *,
    max_new_tokens: int = 256,
    drafts: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int], None] | None = None,
    temperature: float | None = None,
) -> list[list[int]]:
    context = loaded.context
    if not all(0 < len(prompt) < (context or len(prompt) + 1) for prompt in prompts):
        raise ValueError("a prompt is empty or leaves no room in the model's context")
    check_tokens(loaded.base, [*prompts, *filter(None, drafts or ())])
    limits = [min(max_new_tokens, (context or len(p) + max_new_tokens) - len(p)) for p in prompts]
    stops = stop_ids(loaded)
    report = progress or (lambda _: None)
    if batching_obstacle(loaded.base) is not None:
        alone = []
        for prompt, limit in zip(prompts, limits, strict=True):
            said = go_on(loaded, [prompt], most=limit, stops=stops, temperature=temperature)[0]
            alone.append(said[len(prompt) :])
            report(1)
        loaded.join()
        return alone

    # The last token of a generation is never fed, so neither an end token nor the last one allowed is drafted.
    drafts = drafts or [[]] * len(prompts)
    fed = [[*up_to_end(draft, stops)[: limit - 1]] for draft, limit in zip(drafts, limits, strict=True)]
    area, at_once = cached_tokens(loaded), _rows_at_once(loaded)
    lengths = [len(prompt) + len(draft) for prompt, draft in zip(prompts, fed, strict=True)]
    ends = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    results: list[list[int]] = [[] for _ in prompts]
    flight = Flight(loaded, pick)
    columns = [flight.columns(*pair) for pair in zip(lengths, ends, strict=True)]
    waiting = _groups(lengths, columns, area // PASSES_PER_CACHE, at_once // PASSES_PER_CACHE)[::-1]

    def takes(group: Sequence[int]) -> bool:
        fits = flight.area_with(len(group), max(columns[row] for row in group)) <= area
        return fits and len(flight.rows) + len(group) <= at_once

    def goes_on(row: int) -> bool:
        return len(results[row]) < limits[row] and results[row][-1] not in stops

    while waiting or flight.rows:
        while waiting and takes(waiting[-1]):
            group = waiting.pop()
            cache, places, settled = _settle(loaded, [prompts[row] for row in group], [fed[row] for row in group], pick)
            for row, agreed in zip(group, settled, strict=True):
                results[row] = agreed
            kept = [i for i, row in enumerate(group) if goes_on(row)]
            rows = [group[i] for i in kept]
            row_lengths = [len(prompts[row]) + len(results[row]) - 1 for row in rows]
            flight.join(rows, cache, [places[i] for i in kept], row_lengths, [ends[row] for row in rows])
            report(len(group) - len(kept))
        if flight.rows:
            left = min(limits[row] - len(results[row]) for row in flight.rows)  # no row goes beyond its positions
            count = min(left, TOKENS_PER_READ[loaded.device.type])
            tokens = flight.steps([results[row][-1] for row in flight.rows], count)
            for row, chunk in zip(flight.rows, tokens, strict=True):
                ended = next((at + 1 for at, token in enumerate(chunk) if token in stops), count)
                results[row] += chunk[:ended]
            kept = [i for i, row in enumerate(flight.rows) if goes_on(row)]
            report(len(flight.rows) - len(kept))
            flight.keep(kept)
    loaded.join()
    return results


def generate(
    loaded: LoadedModel,
    examples: Sequence[Example],
    name: str,
    *,
    encode_prompt: Callable[[Example], Sequence[int]],
    encode_draft: Callable[[Example], Sequence[int]] | None = None,
    max_new_tokens: int = 256,
    samples: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] | None = None,
) -> list[Generation]:
    """What the model says to each example, greedily, or `samples` times each at `temperature`, one after the other.

    `name` is what the rows are, for messages; `say` takes lines for the user: prompts that were cut, a model that
    cannot be batched. Drafts, the completions as the model was trained to give them, change the speed alone; of a
    passage what is said counts up to the end of its draft: a text has no end that the model must find. `progress` is
    called with the number of rows (or draws) that have just been finished.

    Raises:
        DataError: A prompt has no tokens.
    """
    obstacle = batching_obstacle(loaded.base)
    if obstacle is not None:
        say(f"generating one row at a time: {type(loaded.base).__name__} cannot be batched, {obstacle}")
    context = loaded.context
    # A prompt that fits is kept whole; one that does not gives way to its answer, up to half of the context.
    room = None if context is None else context - min(max_new_tokens, context // 2)
    prompts, cut = [], 0
    for example in examples:
        ids = list(encode_prompt(example))
        if not ids:
            raise DataError(f"{example.source or example.id}: the prompt is empty, so there is nothing to continue")
        if context is not None and room is not None and len(ids) >= context:
            bos = ids[: begun(loaded.tokenizer, ids)]
            ids, cut = bos + ids[len(ids) - room + len(bos) :], cut + 1
        prompts += [ids] * max(1, samples)
    if cut:
        say(f"{cut} of {len(examples)} {name} prompts do not fit into {context} tokens and lose their head")
    drafts = None if encode_draft is None else [encode_draft(example) for example in examples]
    if samples:
        tokens = sample(
            loaded, prompts, temperature=temperature, seed=seed, max_new_tokens=max_new_tokens, progress=progress
        )
    else:
        tokens = greedy(loaded, prompts, max_new_tokens=max_new_tokens, drafts=drafts, progress=progress)
    for note in loaded.told():
        say(note)
    if drafts is not None:
        ends = [len(draft) if isinstance(row, Passage) else None for row, draft in zip(examples, drafts, strict=True)]
        tokens = [ids[: ends[at // max(1, samples)]] for at, ids in enumerate(tokens)]
    texts = [str(loaded.tokenizer.decode(ids, skip_special_tokens=True)) for ids in tokens]
    return [Generation(*row) for row in zip(prompts, tokens, texts, strict=True)]


def _rows_at_once(loaded: LoadedModel) -> int:
    """Most rows that are decoded together: on a GPU their logits are no more than a block of them may be."""
    if loaded.device.type == "cpu":
        return UNBOUNDED
    return max(ROWS, loaded.head.block_on(loaded.device) // int(loaded.base.config.get_text_config().vocab_size))


def _groups(lengths: Sequence[int], columns: Sequence[int], area: int, most: int) -> list[list[int]]:
    """The rows of each pass over prompts and drafts: neither they nor their `columns` of the cache take more than
    `area`, and there are at most so many.
    """
    found: list[list[int]] = []
    for group in micro_batches(lengths, area):
        found += halved(group, max(1, min(most, area // max(columns[row] for row in group))))
    return found


def _settle(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], pick: Pick
) -> tuple[DynamicCache, list[int], list[list[int]]]:
    """One pass over prompts and drafts, each text once: its cache, where each row stands in it, and each row's agreed
    tokens with the one that follows.
    """
    texts = [(*prompt, *draft) for prompt, draft in zip(prompts, drafts, strict=True)]
    numbers = {text: at for at, text in enumerate(dict.fromkeys(texts))}  # draws share their prompt
    places, cache = [numbers[text] for text in texts], DynamicCache()
    input_ids = pad_right([*numbers], loaded.device)
    with loaded.autocast():
        states = loaded.final(input_ids, past_key_values=cache, use_cache=True)
        # The token before the completion predicts its first token, and so on to the one after the draft.
        asked = [
            states[place, len(prompt) - 1 : len(text)]
            for place, prompt, text in zip(places, prompts, texts, strict=True)
        ]
        flat = torch.cat(asked)
        best: Tensor = torch.cat([pick(loaded.head.logits(flat[part])) for part in loaded.head.chunks(flat)])
    settled = []
    for draft, picked in zip(drafts, torch.split(best.cpu(), [len(draft) + 1 for draft in drafts]), strict=True):
        said = picked.tolist()
        agreed = next((i for i, token in enumerate(draft) if token != said[i]), len(draft))
        settled.append(said[: agreed + 1])
    return cache, places, settled


def cut_short(
    loaded: LoadedModel,
    examples: Sequence[Example],
    said: Sequence[Generation],
    encode: Callable[[Example], Sequence[int]],
) -> list[bool]:
    """Which answers have no end, and are shorter than what is looked for or end within a thought.

    `encode` gives what is looked for; a passage is looked for as far as what is said goes, `LEAST` tokens at least.
    """
    stops, decode = stop_ids(loaded), loaded.tokenizer.decode

    def stopped(example: Example, answer: Generation) -> bool:
        if answer.tokens and answer.tokens[-1] in stops:
            return False
        wanted, passage = len(up_to_end(encode(example), stops)), isinstance(example, Passage)
        if len(answer.tokens) < (min(wanted, LEAST) if passage else wanted):
            return True
        return not passage and in_thought(str(decode([*answer.prompt, *answer.tokens])))

    return [stopped(example, answer) for example, answer in zip(examples, said, strict=True)]


def up_to_end(tokens: Sequence[int], stops: frozenset[int]) -> Sequence[int]:
    """Tokens before the one that ends a text."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]
