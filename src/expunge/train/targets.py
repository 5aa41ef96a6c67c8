"""How unlikely each token of a forget text should end: its target NLL.

Which tokens a model that never saw the texts would find hard is told by three signs. In unseen texts: the untouched
model's NLL of such a token there, where the same three or fewer tokens stand before it (the words of a template stay
likely), else wherever it stands, else of tokens that stand there once; a token that the text had before is compared
with tokens that their text had before, since a name that is said again can be read off. In the texts to keep, which
such a model knows as well: their n-grams. The smaller of both is what is *expected* of the token. And in the untouched
model itself: what was hard to learn is a little less sure even of a text that is known by heart.

The tokens of a kind (task and kind of the row, `with_kinds`; prompt and completion apart) are put in the order of what
is expected of them and of their NLL before, the ranks added up, and take the NLLs of the unseen tokens of that kind,
the lowest first. So they end with the same mean, as many sure and as many unlikely tokens as texts that were never
seen. Answers of a form that enough unseen ones have, as telephone numbers, are a kind of their own (`of_their_form`). A
benchmark's unseen documents have neither kind nor prompt: they are of the kinds of which the documents are that
membership is judged on, whose prompts and completions are then one. Tokens of a kind without unseen texts take those of
the unseen tokens, of any kind, of which as much is expected. From an origin, a model that never saw the forget texts:
its own NLL of the token, times what the untouched model's NLL of unseen texts is of the origin's.

A prompt or completion that the model finds as unlikely as that already, or more, keeps the NLLs that it has.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expunge.config import UnlearnConfig
from expunge.data.kinds import form
from expunge.data.surprise import MOST_KNOWN, NGrams
from expunge.data.tokenize import TokenizedExample, evenly, leading_ids
from expunge.errors import DataError, ModelError
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.source import source_of
from expunge.train.setup import Prepared
from expunge.utils.distributed import Processes
from expunge.utils.progress import Reporter
from expunge.utils.text import UNSEEN_TEXTS

LONGEST = 4
"""Tokens in a row that are looked for in other texts, the last of which is predicted."""
SHORTER = 0.5
"""Places that what is known from a shorter context counts as."""
ALIKE = 4
"""Unseen answers of a form by which it is a kind of its own: by two that were guessed others would go on being said."""
MOST_UNSEEN = 200_000
"""Tokens of unseen texts that are counted, of rows evenly from all of them."""
Kind = tuple[str, bool]
"""Task and kind of a row, and whether a token is of its completion."""
Context = tuple[bool, tuple[int, ...]]
"""Whether the text had a token before, and the tokens that end with it."""


def target_values(
    prepared: Prepared, written: Sequence[TokenizedExample], processes: Processes, reporter: Reporter
) -> list[Tensor]:
    """`target_nlls` of the forget rows, and behind them of the same in lower case, where these are trained on, too."""
    origin = _load_origin(prepared.config) if prepared.config.origin else None
    nlls = target_nlls(prepared, written, processes, reporter, origin)
    if prepared.lower:
        silent = Reporter(silent=True)  # told of the texts once
        nlls += target_nlls(prepared.lower, written, processes, silent, origin)
    return nlls


def target_nlls(
    prepared: Prepared,
    written: Sequence[TokenizedExample],
    processes: Processes,
    reporter: Reporter,
    origin: LoadedModel | None = None,
) -> list[Tensor]:
    """For each forget row the target NLLs of its target tokens, nats, by `origin` or, where it is None, by unseen
    texts; the adapter must be off.

    `written` are texts of the untouched model, which stand for unseen ones where there are none: what it has written of
    them, their completions.
    """
    rows = prepared.forget
    if origin is not None:
        found, before = _from_origin(prepared, origin, processes, reporter)
    else:
        unseen = prepared.selection.unseen if prepared.selection else written
        found, before = _from_unseen(prepared, unseen, processes, reporter)
    if unknown := sum(map(_keep_unknown, rows, found, before)):
        reporter.warn(
            f"{unknown:,} of {len(rows):,} texts to forget are as unlikely as they should become: there is nothing to "
            "forget of them, and they stay as they are"
        )
    spans = [row.targets(prepared.config.forget_span) for row in rows]
    least = torch.finfo(torch.float32).eps
    return [values[span.start : span.stop].clamp(min=least) for values, span in zip(found, spans, strict=True)]


def _keep_unknown(row: TokenizedExample, values: Tensor, before: Tensor) -> bool:
    """Let a prompt or completion keep the NLLs that it has where their mean is that of its targets or more, since lower
    ones would teach it; whether the completion is such a one.
    """
    start, unknown = row.targets("completion").start, False
    for part in (slice(1, start), slice(start, None)):
        unknown = bool(before[part].mean() >= values[part].mean())  # nothing is, of a prompt without tokens
        if unknown:
            values[part] = before[part]
    return unknown


def _load_origin(config: UnlearnConfig) -> LoadedModel:
    """The model that the target NLLs come from.

    Raises:
        ModelError: It cannot be loaded, or does not fit beside the model.
    """
    name = config.origin or ""
    source = source_of(name)
    try:
        return load_model(
            name,
            dtype=config.dtype,
            device=config.device,
            load_in_4bit=config.load_in_4bit and not (source.adapters or source.gguf),
            trust_remote_code=config.trust_remote_code,
        )
    except ModelError as error:
        raise ModelError(str(error).replace("--model", "--origin", 1)) from None


def _from_origin(
    prepared: Prepared, origin: LoadedModel, processes: Processes, reporter: Reporter
) -> tuple[list[Tensor], list[Tensor]]:
    """For each forget row its target NLLs and those of the model, the first token's 0."""
    selection = prepared.selection
    forget = [row.input_ids for row in prepared.forget]
    unseen = [row.input_ids for row in (selection.unseen if selection else prepared.few_unseen)]
    with reporter.track("target NLLs by the origin", 2 * len(forget) + 2 * len(unseen)) as advance:
        theirs, ours = (
            sequence_logps(loaded, [*forget, *unseen], processes=processes, progress=advance)
            for loaded in (origin, prepared.loaded)
        )
    ratio = nll_ratio(ours[len(forget) :], theirs[len(forget) :])
    if unseen:
        reporter.say(f"target NLLs: the origin's, times {ratio:.3f}: the model's NLL of unseen texts over the origin's")
    first = torch.zeros(1)
    return (
        [torch.cat([first, -ratio * logps]) for logps in theirs[: len(forget)]],
        [torch.cat([first, -logps]) for logps in ours[: len(forget)]],
    )


def nll_ratio(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """A model's mean NLL over another one's of the same texts, from log-probabilities of tokens; 1 without texts.

    Of unseen texts it says how much harder an older or smaller model finds everything. Texts to keep would not say it:
    the model knows them by heart; nor would texts that it writes itself, which are likeliest by it (docs/targets.md).
    """
    sums = [math.fsum(chain.from_iterable(logps.tolist() for logps in side)) for side in (ours, theirs)]
    return sums[0] / sums[1] if sums[1] else 1.0


def _from_unseen(
    prepared: Prepared,
    unseen: Sequence[TokenizedExample],
    processes: Processes,
    reporter: Reporter,
) -> tuple[list[Tensor], list[Tensor]]:
    """For each forget row its target NLLs and those of the model, the first token's 0."""
    if not unseen:
        raise DataError(
            "the model writes nothing but what it should forget, so none of it stands for unseen texts: give --origin, "
            f"or --holdout, {UNSEEN_TEXTS}"
        )
    forget, total = like_unseen(prepared), sum(map(len, unseen))
    unseen = evenly(unseen, math.ceil(len(unseen) * MOST_UNSEEN / max(MOST_UNSEEN, total)))
    whose = "unseen texts" if prepared.selection else "the model's own texts"
    with reporter.track(f"target NLLs by {whose}", len(forget) + len(unseen)) as advance:
        ids = [row.input_ids for row in (*forget, *unseen)]
        logps = sequence_logps(prepared.loaded, ids, processes=processes, progress=advance)
    nlls = [[0.0, *(-text_logps).tolist()] for text_logps in logps]  # the first token has nothing to be predicted from
    before, theirs = nlls[: len(forget)], nlls[len(forget) :]
    if prepared.selection is None:  # what a text was begun with is nothing that the model has written
        starts = [row.targets("completion").start - 1 for row in unseen]
        theirs = [text_nlls[start:] for text_nlls, start in zip(theirs, starts, strict=True)]
        unseen = [
            replace(row, input_ids=row.input_ids[start:], completion_start=1)
            for row, start in zip(unseen, starts, strict=True)
        ]
    lacking = _kinds(forget) - _kinds(unseen)
    if lacking and prepared.selection:
        reporter.say(
            f"target NLLs: unseen texts have no {_named(lacking, unseen)}; tokens of other kinds stand for theirs"
        )
    tokens, kept = UnseenTokens(unseen, theirs), [*prepared.retain, *prepared.test]
    expected = at_most_surprise(forget, [tokens.expected(row) for row in forget], kept)
    forget, of_kinds = of_their_form(forget, unseen, prepared.loaded.tokenizer)
    among = theirs  # asked for where a kind has no unseen tokens of its own
    if _kinds(forget) - _kinds([row for _, row in of_kinds]):
        among = at_most_surprise(unseen, tokens.expected_by_the_others(), kept)
    known = [(row, among[at], theirs[at]) for at, row in of_kinds]
    values = unseen_nlls(forget, expected, before, *zip(*known, strict=True))
    return list(map(torch.tensor, values)), list(map(torch.tensor, before))


def like_unseen(prepared: Prepared) -> list[TokenizedExample]:
    """The forget rows; of one kind where unseen texts have prompts and no kinds; where unseen texts are documents,
    without kind or prompt, so are those of the kinds of which forgotten documents are.
    """
    rows, selection = prepared.forget, prepared.selection
    if selection is None or any(row.group for row in selection.unseen):
        return rows
    begun = len(leading_ids(prepared.loaded.tokenizer))
    if any(row.completion_start > max(1, begun) for row in selection.unseen):
        return [replace(row, group="") for row in rows]
    return [replace(row, group="", completion_start=0) if row.group in selection.kinds else row for row in rows]


def of_their_form(
    forget: Sequence[TokenizedExample], unseen: Sequence[TokenizedExample], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[TokenizedExample], list[tuple[int, TokenizedExample]]]:
    """Rows of both, the unseen ones by their place, as a kind of their own where their completion has the form of
    `ALIKE` unseen ones of their kind: by the mean of all answers a number could be picked out (`exposure`). What is
    left of a kind goes by the unseen ones left, or by all where these are fewer than `ALIKE` or have too few tokens.
    """

    def kind(row: TokenizedExample) -> str:
        told = tokenizer.decode(row.input_ids[row.completion_start :], skip_special_tokens=True)
        return f"{row.group}\0{form(str(told))}"

    kinds = [*map(kind, unseen)]
    known = {name for name, count in Counter(kinds).items() if count >= ALIKE}
    named = [replace(row, group=name) if (name := kind(row)) in known else row for row in forget]
    rest = [row for row, name in zip(unseen, kinds, strict=True) if name not in known]
    left, asked = _completion_lengths(rest), _completion_lengths(named)
    few = {group for group in asked if len(left[group]) < ALIKE or sum(left[group]) < max(asked[group])}
    found = [(at, replace(unseen[at], group=name)) for at, name in enumerate(kinds) if name in known]
    found += [(at, row) for at, row in enumerate(unseen) if row.group in few or kinds[at] not in known]
    return named, found


def _completion_lengths(rows: Sequence[TokenizedExample]) -> defaultdict[str, list[int]]:
    """Kind -> tokens of the completion of each of its rows."""
    found = defaultdict[str, list[int]](list)
    for row in rows:
        found[row.group].append(len(row.input_ids) - row.completion_start)
    return found


def at_most_surprise(
    rows: Sequence[TokenizedExample], expected: Sequence[Sequence[float]], kept: Sequence[TokenizedExample]
) -> list[list[float]]:
    """What is expected of each token, or what the n-grams of the texts to keep say of it, if that is less."""
    if not kept:
        return [list(values) for values in expected]
    known, asked = ([np.array(row.input_ids) for row in side] for side in (evenly(kept, MOST_KNOWN), rows))
    ngrams = NGrams(known, 1 + max(int(ids.max()) for ids in chain(known, asked)), LONGEST)
    pairs = zip(expected, map(ngrams.surprise, asked), strict=True)
    return [[0.0, *np.minimum(values[1:], surprise).tolist()] for values, surprise in pairs]


class UnseenTokens:
    """What is expected of a token: the untouched model's NLL of the same token in unseen texts.

    Means over longer contexts are drawn towards those over shorter ones, which count as `SHORTER` places.

    Args:
        unseen: Texts that the model has never seen.
        nlls: For each of them the untouched model's NLL of every token, the first one anything.
    """

    def __init__(self, unseen: Sequence[TokenizedExample], nlls: Sequence[Sequence[float]]) -> None:
        self._texts = list(zip(unseen, nlls, strict=True))
        self._sums: defaultdict[Context, float] = defaultdict(float)
        self._counts: Counter[Context] = Counter()
        for row, values in self._texts:
            self._count(row, values, 1)
        overall = fmean(value for values in nlls for value in values[1:])
        once: dict[bool, list[float]] = {False: [], True: []}
        for context, places in self._counts.items():
            if places == 1 and len(context[1]) == 1:
                once[context[0]].append(self._sums[context])
        self._rare = {again: fmean(values) if values else overall for again, values in once.items()}

    def _count(self, row: TokenizedExample, nlls: Sequence[float], sign: int) -> None:
        for context, at in _contexts(row.input_ids):
            self._sums[context] += sign * nlls[at]
            self._counts[context] += sign

    def expected(self, row: TokenizedExample) -> list[float]:
        """The NLL that each token of a text would have if the model had not seen it; of the first one 0."""
        nlls = [0.0] * len(row.input_ids)
        for context, at in _contexts(row.input_ids):
            shorter = self._rare[context[0]] if len(context[1]) == 1 else nlls[at]
            sums, counts = self._sums[context], self._counts[context]
            nlls[at] = (sums + SHORTER * shorter) / (counts + SHORTER) if counts else shorter
        return nlls

    def expected_by_the_others(self) -> list[list[float]]:
        """The same of every unseen text, each by the other ones."""
        found = []
        for row, nlls in self._texts:
            self._count(row, nlls, -1)
            found.append(self.expected(row))
            self._count(row, nlls, 1)
        return found


def unseen_nlls(
    rows: Sequence[TokenizedExample],
    expected: Sequence[Sequence[float]],
    before: Sequence[Sequence[float]],
    unseen: Sequence[TokenizedExample],
    among: Sequence[Sequence[float]],
    nlls: Sequence[Sequence[float]],
) -> list[list[float]]:
    """For each token of `rows` an NLL of an unseen token of its kind, the lowest for those that are easiest to expect.

    Args:
        rows: Texts to be forgotten.
        expected: For each of them what is expected of every token, the first one anything.
        before: The untouched model's NLLs of theirs.
        unseen: Texts that the model has never seen.
        among: What is expected of theirs, each by the other unseen texts.
        nlls: The untouched model's NLLs of theirs.

    Returns:
        For each row as many values as tokens, the first one 0.
    """
    known: defaultdict[Kind, list[tuple[float, float]]] = defaultdict(list)
    for row, guesses, actual in zip(unseen, among, nlls, strict=True):
        for at in range(1, len(actual)):
            known[row.group, at >= row.completion_start].append((guesses[at], actual[at]))
    everything = sorted(chain.from_iterable(known.values()), key=itemgetter(0))
    places: defaultdict[Kind, list[tuple[int, int]]] = defaultdict(list)
    for number, row in enumerate(rows):
        for at in range(1, len(row.input_ids)):
            places[row.group, at >= row.completion_start].append((number, at))
    found = [[0.0] * len(row.input_ids) for row in rows]
    for kind, own_places in places.items():
        guesses = [expected[number][at] for number, at in own_places]
        if kind in known:
            values = _spread([nll for _, nll in known[kind]], len(guesses))
        else:
            values = sorted(_beside(guesses, everything))
        hard = _ranks(guesses) + _ranks([before[number][at] for number, at in own_places])
        for place, value in zip(np.argsort(hard, kind="stable"), values, strict=True):
            number, at = own_places[place]
            found[number][at] = value
    return found


def _kinds(rows: Sequence[TokenizedExample]) -> set[Kind]:
    """The kinds that the tokens of some rows are of, the first of each row left out."""
    prompts = {(row.group, False) for row in rows if row.completion_start > 1}
    return prompts | {(row.group, True) for row in rows if len(row.input_ids) > max(1, row.completion_start)}


def _named(lacking: set[Kind], unseen: Sequence[TokenizedExample]) -> str:
    """Kinds that unseen texts lack, in words: whole ones, and prompts or completions of others."""
    known, names = {row.group for row in unseen}, set()
    for group, completion in lacking:
        part = ("completions" if completion else "prompts") if group in known else ""
        names.add(" of ".join(filter(None, (part, group))) or "texts without a task")
    return ", ".join(sorted(names))


def _spread(values: Sequence[float], count: int) -> list[float]:
    """So many of the values, evenly from the lowest to the highest."""
    ordered = sorted(values)
    return [ordered[(2 * rank + 1) * len(ordered) // (2 * count)] for rank in range(count)]


def _beside(guesses: Sequence[float], unseen: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Values of those `unseen` tokens, (expected, value), of which as much is expected as `guesses` say of others."""
    levels = [guess for guess, _ in unseen]
    for guess, count in Counter(guesses).items():
        low = min(bisect_left(levels, guess), len(levels) - 1)
        yield from _spread([value for _, value in unseen[low : max(low + 1, bisect_right(levels, guess))]], count)


def _ranks(values: Sequence[float]) -> NDArray[np.int64]:
    """Twice the place of each value in their order, the middle one for those that are equal."""
    ordered = np.sort(values)
    return np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right")


def _contexts(ids: Sequence[int]) -> Iterator[tuple[Context, int]]:
    """What each token but the first stands in, shortest first; and its place."""
    before = set(ids[:1])
    for at in range(1, len(ids)):
        for length in range(1, min(LONGEST, at + 1) + 1):
            yield (ids[at] in before, tuple(ids[at + 1 - length : at + 1])), at
        before.add(ids[at])
