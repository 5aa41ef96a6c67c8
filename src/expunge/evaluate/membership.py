"""The membership attack's raw material: how well a model knows whole documents.

The attack itself is one comparison of losses, `expunge.evaluate.semeval.membership_auc`.
"""

from collections.abc import Callable, Sequence

from expunge.data.examples import Example
from expunge.errors import DataError
from expunge.evaluate.generate import context_length
from expunge.model.load import LoadedModel
from expunge.model.logps import sequence_logps


def document_nlls(
    loaded: LoadedModel,
    documents: Sequence[Example],
    *,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Mean negative log-likelihood (nats per token) of each document, over all its tokens but the first.

    Prompt and completion are one text, tokenized as the tokenizer does it, special tokens included.

    Args:
        loaded: The model.
        documents: The documents.
        max_length: Tokens of a document that count, from its start; the model's context when None.
        say: Takes a line for the user when documents were cut.
        progress: Called with the number of documents that have just been done.

    Raises:
        DataError: A document has fewer than two tokens.
    """
    bound = max_length or context_length(loaded.base)
    encoded = [loaded.tokenizer(row.prompt + row.completion, verbose=False)["input_ids"] for row in documents]
    for row, ids in zip(documents, encoded, strict=True):
        if len(ids) < 2:
            raise DataError(f"{row.source or row.id}: has {len(ids)} tokens, so there is nothing to predict")
    cut = sum(len(ids) > bound for ids in encoded) if bound else 0
    if cut:
        say(f"{cut} of {len(documents)} documents are longer than {bound} tokens and count up to there")
    logps = sequence_logps(loaded, [ids[:bound] for ids in encoded], progress=progress)
    return [-own.double().mean().item() for own in logps]
