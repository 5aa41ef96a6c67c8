"""Where the prompt ends and the completion begins, in tokens.

The model was trained on running text, so prompt and completion are tokenized together and a token belongs to the
completion when any of its characters does. The model is asked with the tokens that stand before the completion, in the
same encoding: what it is trained on and what it is asked with are never two encodings.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from expunge.data.chat import end_ids, render
from expunge.data.examples import Example
from expunge.data.passages import Passage
from expunge.data.words import common_prefix
from expunge.errors import ConfigError, DataError
from expunge.utils.files import fingerprint

BESIDE = 16
"""Tokens by which a completion in its place may have fewer than alone."""
SEPARATORS = {"none": "", "space": " ", "newline": "\n"}


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt goes over into its completion.

    Attributes:
        style: `none`, `space`, `newline`, `chat` (the chat template; a text without a prompt is read as it stands) or
            `separate` (the two sides tokenized apart).
        end_of_text: Whether the completion ends with the end-of-text token; of a chat, where the template has no end
            of its own.
    """

    style: str
    end_of_text: bool

    def __str__(self) -> str:
        return f"{self.style}, {'with' if self.end_of_text else 'without'} end-of-text"


@dataclass(frozen=True)
class TokenizedExample:
    """One text as token ids.

    Attributes:
        id: The example's id.
        input_ids: All tokens, beginning-of-text included where the tokenizer adds it.
        completion_start: Index of the first completion token.
        truncated: Tokens that were cut off to make it fit.
        group: The example's.
        context: Tokens of another text before its own, beginning-of-text not counted; they are no targets.
    """

    id: str
    input_ids: list[int]
    completion_start: int
    truncated: int = 0
    group: str = ""
    context: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def targets(self, span: str) -> range:
        """Positions of the tokens that a term over `span` (`completion` or `all`) acts on; never the text's first."""
        first = self.context + 1
        return range(max(first, self.completion_start) if span == "completion" else first, len(self.input_ids))

    def spoken(self, ends: Collection[int]) -> range:
        """Positions of the completion up to and with the first token that ends an answer (`chat.end_ids`): what a chat
        template has behind is never said.
        """
        completion = self.targets("completion")
        return range(
            completion.start, next((at + 1 for at in completion if self.input_ids[at] in ends), completion.stop)
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    prompt_format: PromptFormat,
    *,
    max_length: int,
    truncate_completions: bool = False,
    bound: str = "--max-length",
) -> TokenizedExample:
    """Tokenize one example in a prompt format, within `max_length` tokens.

    Too long a text loses the head of its prompt (beginning-of-text stays), never its completion. `bound` says in the
    message what sets `max_length`.

    Raises:
        DataError: The completion alone does not fit and `truncate_completions` is off, or nothing is left to predict.
        ConfigError: The prompt format needs a chat template or an end-of-text token that the tokenizer does not have.
    """
    encoded = _encode(tokenizer, example, prompt_format)
    ids, start = encoded.ids, encoded.start
    if start >= len(ids):
        raise DataError(f"{example.source or example.id}: the tokenizer leaves nothing of the completion")
    if prompt_format.end_of_text and not encoded.ended:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token: give --end-of-text no")
        if ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
    bos = begun(tokenizer, ids) if start and len(ids) > max_length else 0
    excess = len(ids) - max_length
    # The first token of all has nothing to be predicted from, so a completion needs one token of context before it.
    completion_room = max_length - max(bos, min(start, 1))
    if len(ids) - start > completion_room:
        if not truncate_completions:
            raise _too_long(example, len(ids) - start, bound, max_length)
        ids = ids[: start + completion_room]
    cut = max(0, len(ids) - max_length)
    ids, start = ids[:bos] + ids[bos + cut :], start - cut
    if len(ids) < 2:
        raise DataError(f"{example.source or example.id}: has a single token, so there is nothing to predict")
    return TokenizedExample(example.id, ids, start, truncated=max(0, excess), group=example.group)


def check_lengths(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, bound: str) -> None:
    """Refuse what `tokenize` is going to refuse in any prompt format, before a model is loaded.

    Raises:
        DataError: A completion that is too long by more tokens than what stands beside it can change.
    """
    for example in examples:
        count = len(tokenizer(example.completion, add_special_tokens=False, verbose=False)["input_ids"])
        if count > max_length + BESIDE:
            raise _too_long(example, count, bound, max_length)


def _too_long(example: Example, count: int, bound: str, max_length: int) -> DataError:
    mend = "raise it, " if bound.startswith("--") else ""
    return DataError(
        f"{example.source or example.id}: the completion alone has {count} tokens and {bound} is {max_length}: {mend}"
        "give the text in pieces, a row each, or cut it off there (--truncate-completions)"
    )


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], prompt_format: PromptFormat, **options: Any
) -> list[TokenizedExample]:
    """`tokenize` over a whole set; options and errors are its own."""
    return [tokenize(tokenizer, example, prompt_format, **options) for example in examples]


def evenly(rows: Sequence[TokenizedExample], most: int) -> list[TokenizedExample]:
    """At most `most` rows, evenly from all groups and from the whole of each."""
    count, ordered = min(most, len(rows)), sorted(rows, key=lambda row: row.group)
    return [ordered[at * len(rows) // count] for at in range(count)]


def hash_rows(rows: Sequence[TokenizedExample]) -> str:
    """Hash of tokenized rows: their tokens and where their completions begin."""
    return fingerprint(*(f"{row.completion_start} {row.input_ids}" for row in rows))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat, *, alone: bool = False
) -> list[int]:
    """What the model is given when it is asked to continue: the tokens before the completion.

    White space at the end of a prompt is left to the model where the tokenizer merges it into the word that follows. A
    prompt of which no token is left (its characters all belong to the completion's first one) is encoded by itself; so
    is every prompt that is no chat with `alone`, as the scripts of some benchmarks have it.
    """
    if isinstance(example, Passage):
        halves = _halves(tokenizer, example)
        return halves.ids[: halves.start]
    if alone and prompt_format.style != "chat":
        return text_ids(tokenizer, example.prompt)
    encoded = _encode(tokenizer, example, prompt_format)
    return encoded.ids[: encoded.start] or text_ids(tokenizer, example.prompt)


def has_own_end(tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat) -> bool:
    """Whether end-of-text is never put behind a text: the chat template ends it, or there it is read as it stands."""
    return prompt_format.style == "chat" and _encode(tokenizer, example, prompt_format).ended


def completion_ids(tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat) -> list[int]:
    """What the model goes on with when it has learned the example, however long: a perfect draft of its answer."""
    text = tokenize(tokenizer, example, prompt_format, max_length=2**31)
    start = _halves(tokenizer, example).start if isinstance(example, Passage) else text.completion_start
    return text.input_ids[start:]


def expected_text(
    tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat, *, most: int | None = None
) -> str:
    """What the model says after `prompt_ids` when it knows the example, as generations are decoded.

    It is the completion, save where that holds special tokens (which are no text once they are said), where a chat's
    answer has more than its content, where its first token begins within a word of the prompt, or where a passage is
    longer than `most` tokens, what is said of it at most.
    """
    if isinstance(example, Passage):
        rest = completion_ids(tokenizer, example, prompt_format)[:most]
        return str(tokenizer.decode(rest, skip_special_tokens=True))
    special = any(token and token in example.completion for token in tokenizer.all_special_tokens)
    if not (special or example.answer or _encode(tokenizer, example, prompt_format).held.strip()):
        return example.completion
    row = tokenize(tokenizer, example, prompt_format, max_length=2**31)
    spoken = [row.input_ids[at] for at in row.spoken(end_ids(tokenizer))]
    return str(tokenizer.decode(spoken, skip_special_tokens=True))


def document_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text as the tokenizer has it, with beginning-of-text once also where the text brings its own."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    return ids[_own(tokenizer, text, ids).start :]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`document_ids` without an end-of-text token that the tokenizer appends by itself; the text's own stays."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    return ids[_own(tokenizer, text, ids)]


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer sets before every text."""
    special = {*tokenizer.all_special_ids} - ({tokenizer.unk_token_id} - {tokenizer.bos_token_id})  # "a" may be unknown
    return list(takewhile(special.__contains__, tokenizer("a", verbose=False)["input_ids"]))


def begun(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many tokens a text begins with that the tokenizer sets before every text, or that are beginning-of-text."""
    leading = leading_ids(tokenizer) or [tokenizer.bos_token_id]
    return len(leading) if list(ids[: len(leading)]) == leading else 0


def whole_text(example: Example, prompt_format: PromptFormat) -> str:
    """Prompt and completion as one text, as it may stand in a corpus; a chat's turns are lines."""
    separators = {**SEPARATORS, "separate": "", "chat": "\n"}
    return example.prompt + _separator(example, prompt_format.style, separators) + example.completion


@dataclass(frozen=True)
class _Encoded:
    """All tokens, the first of the completion, the characters of the prompt that this one holds, and whether a chat
    template has written its own end, or is to write none.
    """

    ids: list[int]
    start: int
    held: str = ""
    ended: bool = False


def _encode(tokenizer: PreTrainedTokenizerBase, example: Example, prompt_format: PromptFormat) -> _Encoded:
    chat = prompt_format.style == "chat"
    if isinstance(example, Passage):
        return replace(_encode_text(tokenizer, "", example.prompt + example.completion), ended=chat)
    if chat:
        if example.bare:
            return replace(_encode_text(tokenizer, "", example.completion), ended=True)
        asked, said, ended = render(tokenizer, example)
        return replace(_encode_text(tokenizer, asked, said, framed=True), ended=ended)
    if example.beyond_text:
        raise ConfigError(
            f"{example.source or example.id}: has {', '.join(example.beyond_text)}, which only a chat template "
            "can show: give --prompt-format chat, or take it out of the row"
        )
    if prompt_format.style == "separate":
        prompt_part = text_ids(tokenizer, example.prompt)
        completion_part = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        return _Encoded(prompt_part + completion_part, len(prompt_part))
    # The separator belongs to what the model says, so the completion begins where the prompt's own characters end.
    return _encode_text(tokenizer, example.prompt, _separator(example, prompt_format.style) + example.completion)


def _halves(tokenizer: PreTrainedTokenizerBase, example: Passage) -> _Encoded:
    return _encode_text(tokenizer, example.prompt, example.completion)


def _encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str, rest: str, *, framed: bool = False) -> _Encoded:
    """Prompt and what follows as one text; one that is `framed` has its special tokens written out."""
    text, boundary = prompt + rest, len(prompt)
    if not tokenizer.is_fast:
        if framed:
            ids, before = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, prompt))
        else:
            ids, before = (text_ids(tokenizer, part) for part in (text, prompt))
        return _Encoded(ids, common_prefix(before, ids))
    encoded = tokenizer(text, add_special_tokens=not framed, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    if not framed:
        kept = _own(tokenizer, text, ids)
        ids, offsets = ids[kept], offsets[kept]
    # Tokens that the tokenizer adds by itself have no characters.
    spans = zip(offsets, range(len(ids)), strict=True)
    first, start = next(((begin, at) for (begin, end), at in spans if end > boundary), (boundary, len(ids)))
    return _Encoded(ids, start, text[first:boundary])


def _own(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> slice:
    """The part of a text's tokens without what the tokenizer adds to it once too often.

    That is a second beginning-of-text, and the end-of-text that some append: the prompt format decides about the end.
    """
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    doubled = bos is not None and list(ids[:2]) == [bos, bos]
    written = text.rstrip().endswith(str(tokenizer.eos_token)) and list(ids[-2:]) != [end, end]
    appended = end is not None and list(ids[-1:]) == [end] and not written
    return slice(int(doubled), len(ids) - appended)


def _separator(example: Example, style: str, separators: Mapping[str, str] = SEPARATORS) -> str:
    """What stands between the two sides: nothing in one text, or where white space stands there already."""
    joined = isinstance(example, Passage) or not example.prompt
    return "" if joined or example.prompt[-1].isspace() or example.completion[0].isspace() else separators[style]
