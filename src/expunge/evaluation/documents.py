"""The documents of membership attacks as a model reads them: whole texts, cut alike on both sides."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from expunge.data.chat import turns_of
from expunge.data.examples import Example
from expunge.data.lowercase import in_lower_case
from expunge.data.tokenize import PromptFormat, TokenizedExample, begun, document_ids, tokenize, whole_text
from expunge.data.words import common_prefix
from expunge.errors import DataError

HALF_CHARACTER = "\ufffd"
"""What decodes from a token that holds a part of a character."""
BEFORE = 64
"""Tokens of another text that stand before a document."""


@dataclass(frozen=True)
class Document:
    """A whole text, tokenized as the tokenizer does it, special tokens included.

    Attributes:
        row: Its tokens. All but the first are targets, or but those that the tokenizer sets before every text, where
            they are several; of a chat all from where its first turn says something.
        text: The text that they stand for; without what a chat template puts around it.
        lower: The row of the same chat in lower case; None for plain text, whose lower case is made of `text`.
    """

    row: TokenizedExample
    text: str
    lower: TokenizedExample | None = None

    def __len__(self) -> int:
        return len(self.row) - self.row.completion_start


def encode_documents(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Example],
    prompt_format: PromptFormat,
    *,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Document]:
    """Tokenize whole documents.

    Under `chat`, questions and answers are read in the frame of the tokenizer's template, as the model has met them;
    what stands before the first words of the user (a system turn, too) is no target. A text without a prompt is read
    as it stands. Up to `max_length` tokens of a document count, from its start (the model's context; all when None);
    `say` takes a line for the user when some were cut.

    Raises:
        DataError: A document has no token that could be predicted.
        ConfigError: The chat template fails on one.
    """
    found, cut = [], 0
    for document in documents:
        encoded = (
            _framed(tokenizer, document, prompt_format) if prompt_format.style == "chat" and document.prompt else None
        )
        if encoded is None:
            text = whole_text(document, prompt_format)
            ids = document_ids(tokenizer, text)
            first = begun(tokenizer, ids)
            encoded = Document(TokenizedExample(document.id, ids, first if first > 1 else 0), text)
        if not encoded.row.targets("completion"):
            where = document.source or document.id
            raise DataError(f"{where}: has {len(encoded.row)} tokens, so there is nothing to predict")
        cut += max_length is not None and len(encoded.row) > max_length
        found.append(
            encoded
            if max_length is None
            else _cut(tokenizer, encoded, max(1, max_length - encoded.row.completion_start))
        )
    if cut:
        say(f"{cut} of {len(documents)} documents are longer than {max_length} tokens and count up to there")
    return found


def even_lengths(
    tokenizer: PreTrainedTokenizerBase, members: Sequence[Document], nonmembers: Sequence[Document]
) -> tuple[list[Document], list[Document], int]:
    """Cut the documents of both sides to the smaller of their median lengths; returns that length in tokens too."""
    bound = int(min(statistics.median(map(len, side)) for side in (members, nonmembers)))
    bound = max(2, bound)
    cut = [[_cut(tokenizer, document, bound) for document in side] for side in (members, nonmembers)]
    return cut[0], cut[1], bound


def lowercased(
    tokenizer: PreTrainedTokenizerBase, document: Document, max_length: int | None = None
) -> TokenizedExample | None:
    """The document in lower case, up to `max_length` tokens; None where it is that already, or too little is left of it
    to predict.
    """
    if document.lower:
        row = replace(document.lower, input_ids=document.lower.input_ids[:max_length])
    else:
        row = replace(document.row, input_ids=document_ids(tokenizer, document.text.lower())[:max_length])
    same = row.input_ids == document.row.input_ids if document.lower else document.text.lower() == document.text
    return None if same or len(row) <= max(1, row.completion_start) else row


def lower_rows(
    tokenizer: PreTrainedTokenizerBase, sides: Mapping[str, Sequence[Document]], max_length: int | None = None
) -> dict[tuple[str, int], TokenizedExample]:
    """(side, number) -> the document in lower case; none where fewer than half of a side have another lower case."""
    found = {
        (side, i): row
        for side, documents in sides.items()
        for i, document in enumerate(documents)
        if (row := lowercased(tokenizer, document, max_length))
    }
    counts = Counter(side for side, _ in found)
    return found if all(2 * counts[side] >= len(documents) for side, documents in sides.items()) else {}


def after_another(
    document: Document, others: Sequence[Document], tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> TokenizedExample | None:
    """The document with another text before it, its tokens but the first as the completion.

    Args:
        document: The document.
        others: Texts of which the first that is not the document itself stands before it, up to `BEFORE` tokens.
        tokenizer: What it begins every text with stands once.
        max_length: Tokens of both together; the end of the document is cut.

    Returns:
        None where there is no other text, or no room for both.
    """
    row = document.row
    other = next((candidate.row.input_ids for candidate in others if candidate.row.input_ids != row.input_ids), None)
    if other is None:
        return None
    before = other[: min(BEFORE, (max_length or 2 * BEFORE) // 2)]
    first = begun(tokenizer, row.input_ids)
    tokens = row.input_ids[first:]
    start = len(before) + max(1, row.completion_start) - first
    ids = [*before, *tokens][:max_length]
    return TokenizedExample(row.id, ids, start) if start < len(ids) else None


def _framed(tokenizer: PreTrainedTokenizerBase, chat: Example, prompt_format: PromptFormat) -> Document:
    """A chat in the frame of the tokenizer's template."""
    turns = turns_of(chat)

    def ids(example: Example) -> list[int]:
        return tokenize(tokenizer, example, prompt_format, max_length=2**31).input_ids

    first = next((at for at, turn in enumerate(turns) if turn.get("role") not in ("system", "developer")), 0)

    def beginning(word: str) -> list[int]:
        return ids(replace(chat, messages=(*turns[:first], {**turns[first], "content": word}, *turns[first + 1 :])))

    # What comes before the first words of the user, whatever they are: special tokens, a system prompt.
    start = common_prefix(beginning("0"), beginning("1"))
    lower = in_lower_case(replace(chat, messages=turns))
    row, other = (TokenizedExample(chat.id, tokens, min(start, len(tokens) - 1)) for tokens in (ids(chat), ids(lower)))
    said = replace(chat, prompt="\n\n".join(turn["content"] for turn in turns[first:] if turn["content"]))
    return Document(row, whole_text(said, prompt_format), other)


def _cut(tokenizer: PreTrainedTokenizerBase, document: Document, most: int) -> Document:
    """The first `most` tokens of a document, and of a chat as large a share of its text and of its lower case."""
    if len(document) <= most:
        return document
    row, lower = document.row, document.lower
    cut = replace(row, input_ids=row.input_ids[: row.completion_start + most])
    if lower is None:
        text = str(tokenizer.decode(cut.input_ids, skip_special_tokens=True))
        return Document(cut, text.rstrip(HALF_CHARACTER))
    share = most / len(document)
    end = lower.completion_start + math.ceil(share * (len(lower) - lower.completion_start))
    text = document.text[: math.ceil(share * len(document.text))]
    return Document(cut, text, replace(lower, input_ids=lower.input_ids[:end]))
