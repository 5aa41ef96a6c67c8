"""Decoding of many rows together: one cache that is written in place, and on a GPU one launch a token.

    flight = Flight(loaded, pick)
    flight.join(rows, cache, kept, lengths, ends)  # what a pass over their beginnings has left
    tokens = flight.steps(last_tokens, 8)          # eight more of each row, in one transfer
    flight.keep(places)                            # the others have ended

Rows end at one column of the cache, so that a sliding window sees the right tokens; what stands to the left of a
shorter row is masked. On CUDA a step is captured as a graph over the whole cache once it has been taken a few times;
the graph is used only if it gives the logits of the step that it stands for.
"""

import inspect
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from expunge.model.captured import Recorder
from expunge.model.limits import first_position
from expunge.model.load import LoadedModel
from expunge.model.memory import free_memory
from expunge.model.packing import MASK, UNBOUNDED, head_width, send, unusual_layers

CACHED_TOKENS = {"cpu": 2**13, "cuda": 2**18}
"""Largest (rows, columns) area of the cache when rows are added to it, per device type; see `Flight.columns`."""
CACHE_SHARE = 0.25
"""Of a GPU's free memory, what the cache may take: passes over beginnings, and attention, copy a part of it."""
TOKENS_PER_READ = {"cpu": 1, "cuda": 8}
"""Tokens that each row is given before the host reads them, per device type: a read makes a GPU wait."""
ROWS, COLUMNS = 32, 128
"""The cache grows by multiples of so many rows and tokens; fewer than 32 rows by multiples of four."""
STEPS_BEFORE_CAPTURE = 1
"""Steps with one cache after which its graph is captured: what ends sooner is not worth it."""
APART = 0.1
"""Relative difference of the logits that a graph may make, from other shapes of the products in bfloat16: some 3 % in a
language model. A wrong place or mask makes several times as much."""

Pick = Callable[[Tensor], Tensor]
"""From logits `(rows, vocab)` to the next token of each row, `(rows,)`."""
Over = Callable[[Sequence[int], int], bool]
"""Whether a text, of which so many tokens are new, is at its end."""


def drawn(
    logits: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """Tokens `(rows,)` drawn from the whole distribution of `logits` `(rows, vocab)`.

    What `torch.multinomial` draws of one sample, without its checks, for which a GPU would wait. `noise` are the
    exponentials `(rows, vocab)` that it would draw, where they have been drawn already.
    """
    shares = (logits.float() / temperature).softmax(-1)
    return (shares / (exponentials(logits, len(logits), generator) if noise is None else noise)).argmax(-1)


def batching_obstacle(model: PreTrainedModel) -> str | None:
    """Why rows of this model cannot share a batch and a cache, or None when they can."""
    config = model.config.get_text_config()
    parameters = inspect.signature(model.forward).parameters
    kinds = unusual_layers(model, ("full_attention", "sliding_attention"))
    stacked = getattr(config, "num_hidden_layers", None) is not None
    if getattr(model, "_is_stateful", False) or "past_key_values" not in parameters or not stacked:
        return "its state is not a key-value cache"
    if "position_ids" not in parameters or getattr(config, "alibi", False):
        return "its positions cannot be given row by row"
    if kinds:
        return f"it has {', '.join(kinds)} layers"
    return None


def cached_tokens(loaded: LoadedModel) -> int:
    """Largest (rows, width) area of a cache for this model on its device."""
    most = CACHED_TOKENS[loaded.device.type]
    return most if (fits := tokens_that_fit(loaded)) is None else max(1, min(most, fits))


def tokens_that_fit(loaded: LoadedModel) -> int | None:
    """The (rows, width) area of a cache in its share of a GPU's free memory; None of another device."""
    if loaded.device.type == "cpu" or (free := free_memory(loaded.device)) is None:
        return None
    config = loaded.base.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * head_width(config) * loaded.dtype.itemsize
    return int(CACHE_SHARE * free / token)


class _Layer(DynamicLayer):
    """Keys and values of one layer, `(rows, heads, columns, head_dim)`, written by the flight that they belong to."""

    def __init__(self, flight: "Flight", like: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(cast(Tensor, like.keys), cast(Tensor, like.values))
        self._flight: Flight = weakref.proxy(flight)  # else the buffers would outlive it until garbage is collected

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        pairs = (self.keys, key_states), (self.values, value_states)
        keys, values = (self._flight.write(cast(Tensor, buffer), states) for buffer, states in pairs)
        return keys, values

    def get_seq_length(self) -> int:
        return self._flight.width


def rounded_rows(rows: int) -> int:
    """The rows of a cache that has room for so many."""
    multiple = ROWS if rows > ROWS else min(4, rows)
    return -(-rows // multiple) * multiple


class Flight:
    """The rows that are being decoded.

    Args:
        loaded: The model.
        pick: Chooses the next tokens.

    Attributes:
        rows: What the caller calls them, in the order of the cache.
    """

    def __init__(self, loaded: LoadedModel, pick: Pick) -> None:
        self._loaded, self._pick, device = loaded, pick, loaded.device
        self._cache, self._layers = DynamicCache(), list[_Layer]()
        self._first = first_position(loaded.base)
        self._room = (0, 0)
        """Rows and columns of the cache."""
        self._end = 0
        """Column behind the last token of every row."""
        self._sizes, self._columns = list[int](), list[int]()
        self._lengths, self._tokens = (torch.empty(0, dtype=torch.long, device=device) for _ in range(2))
        """Tokens of each row, and its last one; of rows that no one uses, too."""
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._captures = device.type == "cuda"
        self._window = getattr(loaded.base.config.get_text_config(), "sliding_window", None) or UNBOUNDED
        self._reserved = max(COLUMNS, self._window // COLUMNS * COLUMNS)  # at most, beforehand
        self._taken, self._whole = 0, False
        self._replay: Callable[[], None] | None = None
        self._logits = torch.empty(0, device=device)
        self.rows: list[int] = []

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(self._sizes, default=0)

    def columns(self, length: int, end: int) -> int:
        """Columns of the cache that a row of `length` tokens takes, which may have `end` of them in the end.

        On a GPU all of them from the start, since a graph is of one cache; on the CPU the cache grows with its rows.
        """
        return length if self._lengths.device.type == "cpu" else -(-end // COLUMNS) * COLUMNS

    def area_with(self, rows: int, columns: int) -> int:
        """Rows of the cache times columns after joining `rows` that take so many; 0 when they would stand alone."""
        return rounded_rows(len(self.rows) + rows) * max(self.width, columns, *self._columns) if self.rows else 0

    def join(
        self, rows: Sequence[int], cache: DynamicCache, kept: Sequence[int], lengths: Sequence[int], ends: Sequence[int]
    ) -> None:
        """Add rows: the `kept` ones of a right-padded `cache`, whose first `lengths` tokens are valid; in the end they
        may have `ends`.
        """
        if not rows:
            return
        if not self._layers:
            self._layers = [_Layer(self, cast(DynamicLayer, layer)) for layer in cache.layers]
            self._cache.layers = [*self._layers]
        count, longest = len(self.rows), max(lengths)
        self._columns += map(self.columns, lengths, ends)
        self._reserve(count + len(rows), max(self.width, longest), 1, cache)
        sizes, index = (send(torch.tensor(values), self._lengths.device) for values in (lengths, kept))
        source = (torch.arange(longest, device=sizes.device) - longest + sizes[:, None]).clamp(min=0)[:, None, :, None]
        place, columns = slice(count, count + len(rows)), slice(self._end - longest, self._end)
        for layer, given in zip(self._layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                aligned = torch.take_along_dim(getattr(given, name)[index], source, dim=2)
                getattr(layer, name)[place, :, columns] = aligned
        self._lengths[place] = sizes
        self._sizes += lengths
        self.rows = [*self.rows, *rows]

    def _reserve(self, rows: int, width: int, more: int, like: DynamicCache) -> None:
        """Make room for so many rows of at most `width` tokens and for `more` columns behind them."""
        room, columns = self._room, max(width + more, min(max(self._columns), self._reserved))
        fits = rows <= room[0] and columns <= room[1]
        if fits and width <= self._end <= room[1] - more:
            return
        count, live = len(self.rows), slice(self._end - self.width, self._end)
        if not fits:
            self._room = rounded_rows(rows), -(-columns // COLUMNS) * COLUMNS
            self._taken, self._replay = 0, None
        for layer, given in zip(self._layers, like.layers, strict=True):
            for name in ("keys", "values"):
                states = getattr(given, name)
                kept = getattr(layer, name)[:count, :, live].clone() if count else None
                if self._room != room:
                    shape = self._room[0], states.shape[1], self._room[1], states.shape[3]
                    setattr(layer, name, states.new_zeros(shape))
                if kept is not None:
                    getattr(layer, name)[:count, :, width - self.width : width] = kept
        self._end = width
        if self._room != room:
            lengths = self._lengths.new_zeros(self._room[0])
            lengths[:count] = self._lengths[:count]
            self._lengths, self._tokens = lengths, torch.zeros_like(lengths)

    def steps(self, tokens: Sequence[int], count: int) -> list[list[int]]:
        """Feed the last token of each row; returns the next `count` ones of each, in one transfer."""
        self._reserve(len(self.rows), self.width, count, self._cache)
        self._tokens[: len(self.rows)] = send(torch.tensor(tokens), self._tokens.device)
        found = torch.stack([self._step() for _ in range(count)], dim=1)
        return found.tolist()

    def _step(self) -> Tensor:
        count = len(self.rows)
        self._column.fill_(self._end)
        if self._replay is None:
            logits = self._forward(count)
            if self._captures and self._taken == STEPS_BEFORE_CAPTURE:
                self._capture(logits)
        else:
            self._replay()
            logits = self._logits[:count]
        self._lengths[:count] += 1
        self._sizes = [size + 1 for size in self._sizes]
        self._end += 1
        self._taken += 1
        found = self._pick(logits)
        self._tokens[:count] = found
        return found

    def _forward(self, rows: int) -> Tensor:
        """Logits `(rows, vocab)` behind the tokens that are set."""
        lengths = self._lengths[:rows]
        first, last = (0, self._room[1]) if self._whole else (self._end - self.width, self._end + 1)
        places = torch.arange(first, last, device=lengths.device)
        mask = (places <= self._column) & (places >= self._column - lengths[:, None])
        with self._loaded.autocast():
            logits: Tensor = self._loaded.base(
                input_ids=self._tokens[:rows, None],
                # transformers looks into a mask of two dimensions, which cannot be captured.
                attention_mask=mask[:, None, None] if self._whole else mask.long(),
                position_ids=lengths[:, None] + self._first,
                past_key_values=self._cache,
                use_cache=True,
            ).logits[:, -1]
        return logits

    def write(self, buffer: Tensor, states: Tensor) -> Tensor:
        """Put what one token of each row has into a buffer; gives what attention sees of it."""
        if self._whole:
            return buffer.index_copy_(2, self._column, states.to(buffer.dtype))
        rows = len(states)
        buffer[:rows, :, self._end : self._end + 1] = states
        return buffer[:rows, :, self._end - self.width : self._end + 1]

    def _capture(self, logits: Tensor) -> None:
        """Capture a step, if it gives the `logits` of the one that was just taken; else say why not."""

        def work() -> None:
            self._whole = True
            try:
                self._logits = self._forward(self._room[0])
            finally:
                self._whole = False

        why = self._obstacle()
        try:
            if not why:
                recorder = Recorder(self._lengths.device)
                recorder.warm_up(work)
                replay = recorder.record(work)
                self._logits.zero_()  # a graph that computes nothing must not be found right by what stood there
                replay()
                apart = float((self._logits[: len(logits)] - logits).norm() / logits.norm())
                if apart <= APART:
                    self._replay = replay
                else:
                    why = f"its logits are {apart:.2g} from those of the step"
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
        if why:
            self._captures = False
            self._loaded.note(f"decoding is not captured: {why}")

    def _obstacle(self) -> str:
        """Why a step cannot be captured; empty where nothing is known."""
        attention = self._loaded.base.config.get_text_config()._attn_implementation
        reasons = {
            "processes share the weights of the layers": self._loaded.lockstep is not None,
            f"attention is {attention}": attention != MASK,
            f"rows may be longer than the {self._window} tokens that a layer sees": self._window < self._room[1],
        }
        return next((reason for reason, found in reasons.items() if found), "")

    def keep(self, kept: Sequence[int]) -> None:
        """Let go of all rows but those at the places `kept`, and of the width that only the others needed."""
        if len(kept) == len(self.rows):
            return
        live = slice(self._end - max((self._sizes[place] for place in kept), default=0), self._end)
        lists = self.rows, self._sizes, self._columns
        self.rows, self._sizes, self._columns = ([values[place] for place in kept] for values in lists)
        if kept:
            index = send(torch.tensor(kept), self._lengths.device)
            for layer in self._layers:
                for buffer in (layer.keys, layer.values):
                    assert buffer is not None
                    buffer[: len(kept), :, live] = buffer[index, :, live]
            self._lengths[: len(kept)] = self._lengths[index]
        self._lengths[len(kept) :] = 0  # a graph goes on with rows that no one uses: they must not leave the context


@torch.no_grad()
def written(loaded: LoadedModel, begun: Sequence[Sequence[int]], *, most: int, over: Over) -> list[list[int]]:
    """As `go_on` at temperature 1, with the same texts from the same random numbers, and no read of each token.

    Where half of the rows are over they are let go of; what such a row has behind, until then, is not to be read.
    """
    cache, length = DynamicCache(), len(begun[0])
    read, every = TOKENS_PER_READ[loaded.device.type], range(len(begun))
    with loaded.autocast():
        ids = send(torch.tensor(begun), loaded.device)
        first = drawn(loaded.base(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]).tolist()
    texts = [[*text, token] for text, token in zip(begun, first, strict=True)]
    flight = Flight(loaded, lambda logits: drawn(logits, noise=exponentials(logits, len(begun))[places]))
    flight.join(every, cache, every, [length] * len(texts), [length + most] * len(texts))
    places = torch.arange(len(begun), device=loaded.device)
    del cache
    going, left = {row for row in every if not over(texts[row], 1)}, most - 1
    while going and left:
        if 2 * len(going) <= len(flight.rows):
            flight.keep([place for place, row in enumerate(flight.rows) if row in going])
            places = send(torch.tensor(flight.rows), loaded.device)
        count = min(left, read)
        for row, new in zip(flight.rows, flight.steps([texts[row][-1] for row in flight.rows], count), strict=True):
            texts[row] += new
            if over(texts[row], len(new)):
                going.discard(row)
        left -= count
    return texts


def exponentials(logits: Tensor, rows: int, generator: torch.Generator | None = None) -> Tensor:
    """What `rows` draws from logits `(any, vocab)` take: they are the same whichever of the rows are still there."""
    return logits.new_empty(rows, logits.shape[-1], dtype=torch.float32).exponential_(1, generator=generator)


def go_on(
    loaded: LoadedModel,
    begun: Sequence[Sequence[int]],
    *,
    most: int,
    stops: Collection[int],
    temperature: float | None = None,
) -> list[list[int]]:
    """The library's own decoding, by the plain logits alone, for models whose rows cannot share a batch.

    It would take penalties, filters, beams and the like from the model's `generation_config` wherever a call leaves a
    setting open, so that one gives way to the call's own for as long.

    Args:
        loaded: The model.
        begun: Token ids of beginnings of one length.
        most: Bound on the new tokens of each.
        stops: Tokens that end a text.
        temperature: Of the draws from the whole distribution; greedy when None.

    Returns:
        Each beginning with what follows; what stands behind a stop fills up.
    """
    stacked = getattr(loaded.base.config.get_text_config(), "num_hidden_layers", None) is not None
    drawn = {} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=most,
        eos_token_id=sorted(stops) or None,
        pad_token_id=min(stops, default=0),
        use_cache=stacked,  # the library makes caches for layers that are one stack
        **drawn,
    )
    ids = torch.tensor(begun, device=loaded.device)
    generate = cast("Callable[..., Tensor]", loaded.base.generate)  # of a mixin that the model's class has
    before, loaded.base.generation_config = loaded.base.generation_config, settings
    try:
        with loaded.autocast():
            written: list[list[int]] = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                synced_gpus=False,  # `loaded.join` keeps the processes of a sharded model together
            ).tolist()
    finally:
        loaded.base.generation_config = before
    return written
