"""Membership attacks: documents as a model reads them, and one score per document and attack.

An attack needs no more than the records of the documents (and, for one of them, of their lower-cased texts), so all
of them come out of the one teacher-forced pass.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from expunge.data.examples import Example
from expunge.data.tokenize import Join, TokenizedExample, whole_text
from expunge.errors import DataError
from expunge.evaluate.metrics import TokenRecord
from expunge.evaluate.metrics import membership as attacks


@dataclass(frozen=True)
class Document:
    """A whole text, tokenized as the tokenizer does it, special tokens included.

    Attributes:
        row: Its tokens; all but the first are targets.
        text: The text that they stand for.
    """

    row: TokenizedExample
    text: str


def encode_documents(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Example],
    join: Join,
    *,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Document]:
    """Tokenize whole documents.

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
        text = whole_text(document, join)
        ids = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) < 2:
            where = document.source or document.id
            raise DataError(f"{where}: has {len(ids)} tokens, so there is nothing to predict")
        if max_length is not None and len(ids) > max_length:
            ids, cut = ids[:max_length], cut + 1
            text = tokenizer.decode(ids, skip_special_tokens=True)
        found.append(Document(TokenizedExample(document.id, ids, 0), text))
    if cut:
        say(f"{cut} of {len(documents)} documents are longer than {max_length} tokens and count up to there")
    return found


def even_lengths(
    tokenizer: PreTrainedTokenizerBase, members: Sequence[Document], nonmembers: Sequence[Document]
) -> tuple[list[Document], list[Document], int]:
    """Cut the documents of both sides to the smaller of their median lengths; returns that length in tokens too."""
    bound = int(min(statistics.median(len(document.row) for document in side) for side in (members, nonmembers)))
    bound = max(2, bound)

    def cut(document: Document) -> Document:
        if len(document.row) <= bound:
            return document
        ids = document.row.input_ids[:bound]
        return Document(TokenizedExample(document.row.id, ids, 0), tokenizer.decode(ids, skip_special_tokens=True))

    return [cut(document) for document in members], [cut(document) for document in nonmembers], bound


def lowercased(
    tokenizer: PreTrainedTokenizerBase, document: Document, max_length: int | None = None
) -> TokenizedExample | None:
    """The document in lower case, up to `max_length` tokens; None where too little is left of it to predict."""
    ids = tokenizer(document.text.lower(), verbose=False)["input_ids"][:max_length]
    return TokenizedExample(document.row.id, ids, 0) if len(ids) > 1 else None


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
