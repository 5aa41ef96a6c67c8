"""Membership attacks: documents as a model reads them, and one score per document and attack.

An attack needs no more than the records of the documents (and, for one of them, of their lower-cased texts), so all
of them come out of the one teacher-forced pass.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from expunge.data.examples import Example
from expunge.data.tokenize import Join, TokenizedExample, tokenize, whole_text
from expunge.errors import DataError
from expunge.evaluate.metrics import TokenRecord
from expunge.evaluate.metrics import membership as attacks


@dataclass(frozen=True)
class Document:
    """A whole text, tokenized as the tokenizer does it, special tokens included.

    Attributes:
        row: Its tokens; all but the first are targets.
        text: The text that they stand for; without what a chat template puts around it.
        lower: The same of the text in lower case, where the two are framed by a chat template; None for plain text,
            whose lower case is made of `text`.
    """

    row: TokenizedExample
    text: str
    lower: TokenizedExample | None = None


def encode_documents(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Example],
    join: Join,
    *,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Document]:
    """Tokenize whole documents.

    Questions and answers are read as the model has met them: with `chat` in the frame of the tokenizer's template.

    Args:
        tokenizer: The model's.
        documents: The documents; prompt and completion are one text.
        join: What stands between the two.
        max_length: Tokens of a document that count, from its start (the model's context); all when None.
        say: Takes a line for the user when documents were cut.

    Raises:
        DataError: A document has fewer than two tokens.
    """
    found, cut = [], 0
    for document in documents:
        own = _encoded(tokenizer, document, join)
        if len(own.row) < 2:
            where = document.source or document.id
            raise DataError(f"{where}: has {len(own.row)} tokens, so there is nothing to predict")
        cut += max_length is not None and len(own.row) > max_length
        found.append(own if max_length is None else _cut(tokenizer, own, max_length))
    if cut:
        say(f"{cut} of {len(documents)} documents are longer than {max_length} tokens and count up to there")
    return found


def even_lengths(
    tokenizer: PreTrainedTokenizerBase, members: Sequence[Document], nonmembers: Sequence[Document]
) -> tuple[list[Document], list[Document], int]:
    """Cut the documents of both sides to the smaller of their median lengths; returns that length in tokens too."""
    bound = int(min(statistics.median(len(document.row) for document in side) for side in (members, nonmembers)))
    bound = max(2, bound)
    cut = [[_cut(tokenizer, document, bound) for document in side] for side in (members, nonmembers)]
    return cut[0], cut[1], bound


def lowercased(
    tokenizer: PreTrainedTokenizerBase, document: Document, max_length: int | None = None
) -> TokenizedExample | None:
    """The document in lower case, up to `max_length` tokens; None where too little is left of it to predict."""
    ids = document.lower.input_ids if document.lower else tokenizer(document.text.lower(), verbose=False)["input_ids"]
    return TokenizedExample(document.row.id, ids[:max_length], 0) if len(ids[:max_length]) > 1 else None


def _encoded(tokenizer: PreTrainedTokenizerBase, document: Example, join: Join) -> Document:
    text = whole_text(document, join)
    if join.style != "chat" or not document.prompt:
        return Document(TokenizedExample(document.id, tokenizer(text, verbose=False)["input_ids"], 0), text)
    framed = (tokenize(tokenizer, own, join, max_length=2**31) for own in (document, _in_lower_case(document)))
    row, lower = (replace(own, completion_start=0) for own in framed)
    return Document(row, text, lower)


def _in_lower_case(chat: Example) -> Example:
    turns = chat.messages and tuple({**turn, "content": turn["content"].lower()} for turn in chat.messages)
    return replace(chat, prompt=chat.prompt.lower(), completion=chat.completion.lower(), messages=turns)


def _cut(tokenizer: PreTrainedTokenizerBase, document: Document, most: int) -> Document:
    """The first `most` tokens of a document, and as large a share of it in lower case."""
    if len(document.row) <= most:
        return document
    ids = document.row.input_ids[:most]
    lower = document.lower and replace(
        document.lower,
        input_ids=document.lower.input_ids[: math.ceil(len(document.lower) * most / len(document.row))],
    )
    row = TokenizedExample(document.row.id, ids, 0)
    return Document(row, tokenizer.decode(ids, skip_special_tokens=True), lower)


def attack_scores(
    wanted: Sequence[str],
    documents: Sequence[Document],
    records: Sequence[TokenRecord],
    lower: Sequence[TokenRecord | None],
    shares: Sequence[float],
) -> dict[str, list[float | None]]:
    """Score of each document, larger = more likely a member, by attack; None where an attack does not apply.

    Args:
        wanted: Names of attacks; those that need another model or a gradient are left to the caller.
        documents: The documents.
        records: Their records.
        lower: Those of their lower-cased texts.
        shares: The k of the min-k attacks, each an attack of its own (`min_k_20`).
    """
    scores: dict[str, list[float | None]] = {}
    if "loss" in wanted:
        scores["loss"] = [attacks.loss(record) for record in records]
    if "zlib" in wanted:
        scores["zlib"] = [attacks.zlib(record, own.text) for record, own in zip(records, documents, strict=True)]
    if "lowercase" in wanted:
        scores["lowercase"] = [
            attacks.lowercase(record, other) if other is not None and other.logps.any() else None
            for record, other in zip(records, lower, strict=True)
        ]
    for name, function in (("min_k", attacks.min_k), ("min_k_plus_plus", attacks.min_k_plus_plus)):
        if name in wanted:
            for share in shares:
                scores[f"{name}_{round(100 * share)}"] = [function(record, share) for record in records]
    return scores
