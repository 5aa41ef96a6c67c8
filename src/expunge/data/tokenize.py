"""Where the prompt ends and the completion begins, in tokens.

The model was trained on running text, so prompt and completion are tokenized together and a token belongs to the
completion when any of its characters does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from expunge.data.examples import Example
from expunge.errors import ConfigError, DataError
from expunge.utils.files import fingerprint

SEPARATORS = {"none": "", "space": " ", "newline": "\n"}
DATE = "26 Jul 2024"
"""Today, for chat templates that take `date_string`: a run has the same tokens tomorrow. Llama 3 falls back on it."""


@dataclass(frozen=True)
class Join:
    """How a prompt goes over into its completion.

    Attributes:
        style: `none`, `space`, `newline`, `chat` (the chat template) or `separate` (the two sides tokenized apart).
        end_of_text: Whether the completion ends with the end-of-text token.
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
    """

    id: str
    input_ids: list[int]
    completion_start: int
    truncated: int = 0
    group: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def labels(self) -> list[int]:
        """The token ids from the completion on, -100 before it."""
        return [-100] * self.completion_start + self.input_ids[self.completion_start :]

    def targets(self, span: str) -> range:
        """Positions of the tokens that a term over `span` (`completion` or `all`) acts on; the first has no context."""
        return range(max(1, self.completion_start if span == "completion" else 1), len(self.input_ids))

    def spoken(self, end: int | None) -> range:
        """Positions of the completion up to end-of-text (`end`); what a chat template has behind is never said."""
        completion = self.targets("completion")
        return range(
            completion.start, next((at + 1 for at in completion if self.input_ids[at] == end), completion.stop)
        )


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    join: Join,
    *,
    max_length: int,
    truncate_completions: bool = False,
) -> TokenizedExample:
    """Tokenize one example under a join, within `max_length` tokens.

    Too long a text loses the head of its prompt (beginning-of-text stays), never its completion.

    Raises:
        DataError: The completion alone does not fit and `truncate_completions` is off, or nothing is left to predict.
        ConfigError: The join needs a chat template or an end-of-text token that the tokenizer does not have.
    """
    ids, start = _encode(tokenizer, example, join)
    if start >= len(ids):
        raise DataError(f"{example.source or example.id}: the tokenizer leaves nothing of the completion")
    if join.end_of_text and join.style != "chat":
        ids = [*ids, end_of_text_id(tokenizer)]
    bos = 1 if start and ids[0] == tokenizer.bos_token_id else 0
    excess = len(ids) - max_length
    # The first token of all has nothing to be predicted from, so a completion needs one token of context before it.
    completion_room = max_length - max(bos, min(start, 1))
    if len(ids) - start > completion_room:
        if not truncate_completions:
            raise DataError(
                f"{example.source or example.id}: the completion alone has {len(ids) - start} tokens and max_length is "
                f"{max_length}: raise --max-length or give --truncate-completions"
            )
        ids = ids[: start + completion_room]
    cut = max(0, len(ids) - max_length)
    ids, start = ids[:bos] + ids[bos + cut :], start - cut
    if len(ids) < 2:
        raise DataError(f"{example.source or example.id}: has a single token, so there is nothing to predict")
    return TokenizedExample(example.id, ids, start, truncated=max(0, excess), group=example.group)


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    join: Join,
    *,
    max_length: int,
    truncate_completions: bool = False,
) -> list[TokenizedExample]:
    """`tokenize` over a whole set."""
    options = {"max_length": max_length, "truncate_completions": truncate_completions}
    return [tokenize(tokenizer, example, join, **options) for example in examples]


def hash_rows(rows: Sequence[TokenizedExample]) -> str:
    """Hash of tokenized rows: their tokens and where their completions begin."""
    return fingerprint(*(f"{row.completion_start} {row.input_ids}" for row in rows))


def prompt_ids(tokenizer: PreTrainedTokenizerBase, example: Example, join: Join) -> list[int]:
    """What the model is given when it is asked to continue: the prompt, encoded by itself, as a user would.

    The separator is left to the model, since most tokenizers merge it into the word that follows.
    """
    if join.style == "chat":
        return _apply_template(tokenizer, example, completed=False)
    ids = tokenizer(example.prompt)["input_ids"]
    return _strip_eos(tokenizer, ids)


def completion_ids(tokenizer: PreTrainedTokenizerBase, example: Example, join: Join) -> list[int]:
    """What the model goes on with when it has learned the example, however long: a perfect draft of its answer."""
    text = tokenize(tokenizer, example, join, max_length=2**31)
    return text.input_ids[text.completion_start :]


def whole_text(example: Example, join: Join) -> str:
    """Prompt and completion as one text, as it may stand in a corpus; a chat's turns are lines."""
    separators = {**SEPARATORS, "separate": "", "chat": "\n"}
    return example.prompt + _separator(example, join.style, separators) + example.completion


def chat_turns(example: Example) -> tuple[Mapping[str, str], ...]:
    """The turns before the completion; a prompt alone is what the user says."""
    return example.messages or ({"role": "user", "content": example.prompt},)


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's end-of-text token.

    Raises:
        ConfigError: It has none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-text token: give --end-of-text no")
    return tokenizer.eos_token_id


def _encode(tokenizer: PreTrainedTokenizerBase, example: Example, join: Join) -> tuple[list[int], int]:
    if join.style == "chat":
        ids = _apply_template(tokenizer, example, completed=True)
        return ids, common_prefix(_apply_template(tokenizer, example, completed=False), ids)
    if join.style == "separate":
        prompt = _strip_eos(tokenizer, tokenizer(example.prompt)["input_ids"])
        return prompt + tokenizer(example.completion, add_special_tokens=False)["input_ids"], len(prompt)
    text = example.prompt + _separator(example, join.style) + example.completion
    # The separator belongs to what the model says, so the completion begins where the prompt's own characters end.
    boundary = len(example.prompt)
    if not tokenizer.is_fast:
        ids = _strip_eos(tokenizer, tokenizer(text)["input_ids"])
        prompt = _strip_eos(tokenizer, tokenizer(example.prompt)["input_ids"])
        return ids, common_prefix(prompt, ids)
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids = _strip_eos(tokenizer, encoded["input_ids"])
    spans = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    start = next((i for i, ((_, end), special) in enumerate(spans) if not special and end > boundary), len(ids))
    return ids, start


def _separator(example: Example, style: str, separators: Mapping[str, str] = SEPARATORS) -> str:
    """What stands between the two sides: nothing where there is no prompt or white space stands there already."""
    if not example.prompt or example.prompt[-1].isspace() or example.completion[0].isspace():
        return ""
    return separators[style]


def _strip_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Drop an end-of-text token that the tokenizer appends by itself: the join decides about it."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else list(ids)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two texts begin with alike."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def _apply_template(tokenizer: PreTrainedTokenizerBase, example: Example, *, completed: bool) -> list[int]:
    if not tokenizer.chat_template:
        raise ConfigError("--join chat: the tokenizer has no chat template")
    turns = [*chat_turns(example)]
    if completed:
        turns = [*turns, {"role": "assistant", "content": example.completion}]
    try:
        return list(
            tokenizer.apply_chat_template(
                turns,
                add_generation_prompt=not completed,
                return_dict=False,
                date_string=DATE,
            )
        )
    except Exception as error:  # a template is a program; its message may hold the text
        raise ConfigError(
            f"--join chat: {example.source or example.id}: the tokenizer's chat template fails on this row "
            f"({type(error).__name__}): choose another --join"
        ) from None
