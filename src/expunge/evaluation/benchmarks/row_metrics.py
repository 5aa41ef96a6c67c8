"""From records and generations to one number per row: the metrics that a set of rows may list."""

from collections.abc import Callable, Sequence

from expunge.data.examples import Example
from expunge.evaluation.generate import Generation
from expunge.evaluation.metrics import TokenRecord, memorization, text, truth_ratio

Numbers = list[float | None]
"""A number per row; None for rows that a metric does not apply to."""

FORCED: dict[str, Callable[[TokenRecord], float]] = {
    "nll": memorization.mean_nll,
    "probability": memorization.probability,
    "perplexity": memorization.perplexity,
    "exact_memorization": memorization.exact_memorization,
    "extraction_strength": memorization.extraction_strength,
}
"""Metrics of a record alone."""
ROUGE = ("rouge_1_recall", "rouge_1_f1", "rouge_l_recall", "rouge_l_f1")
MUSE = ("verbatim_memorization", "knowledge_memorization")
OF_TEXT = (*ROUGE, *MUSE, "exact_match", "repetition")
"""Metrics of a generation."""
OF_KIND = {"sc": {"exact_match"}, "qa": set(ROUGE)}
"""Kind of a row -> metrics that are not taken of it: the official ones are for completions or for answers."""


def truth_metrics(
    correct: Sequence[TokenRecord],
    answers: Sequence[TokenRecord],
    wrong: Sequence[Sequence[TokenRecord]],
    *,
    forget: bool,
) -> dict[str, Numbers]:
    """Metrics that compare right with wrong answers, and `truth_ratio_raw`, which tests take.

    Args:
        correct: Records of the right answer that the truth ratio takes.
        answers: Records of the answer itself.
        wrong: Records of the wrong answers, row by row.
        forget: Whether the truth ratio is that of texts to forget or of texts to keep.
    """
    found: dict[str, Numbers] = {
        name: [] for name in ("truth_ratio_raw", "truth_ratio", "truth_probability", "normalized_probability")
    }
    aggregate = truth_ratio.forget_truth_ratio if forget else truth_ratio.retain_truth_ratio
    for right, answer, others in zip(correct, answers, wrong, strict=True):
        losses = [memorization.mean_nll(record) for record in others]
        ratio = truth_ratio.truth_ratio(memorization.mean_nll(right), losses)
        found["truth_ratio_raw"].append(ratio)
        found["truth_ratio"].append(aggregate(ratio))
        found["truth_probability"].append(truth_ratio.truth_probability(memorization.mean_nll(right), losses))
        found["normalized_probability"].append(
            truth_ratio.normalized_probability(memorization.mean_nll(answer), losses)
        )
    return found


def text_metrics(
    wanted: Sequence[str], examples: Sequence[Example], references: Sequence[str], said: Sequence[Generation | None]
) -> dict[str, Numbers]:
    """Metrics of what the model said.

    Args:
        wanted: Names of metrics; those that are not of texts are passed over.
        examples: The rows.
        references: What each generation is compared with.
        said: The generations; None for a row without a prompt.
    """
    names = [name for name in OF_TEXT if name in wanted]
    rows = [
        {} if own is None else _of_row(names, example, reference, own)
        for example, reference, own in zip(examples, references, said, strict=True)
    ]
    return {name: [row.get(name) for row in rows] for name in names}


def leaks(answers: Sequence[str], draws: Sequence[Sequence[str]]) -> dict[str, Numbers]:
    """leak@1 and leak@k of k draws per row; None for an answer that has no words.

    Args:
        answers: What must not be said.
        draws: What was said, row by row.
    """
    most = len(draws[0]) if draws else 0
    usable = [any(letter.isalnum() for letter in answer) for answer in answers]
    return {
        f"leak_at_{k}": [
            text.leak_at_k(said, answer, k) if ok else None
            for answer, said, ok in zip(answers, draws, usable, strict=True)
        ]
        for k in dict.fromkeys((1, most))
    }


def _of_row(names: Sequence[str], example: Example, reference: str, said: Generation) -> dict[str, float]:
    values: dict[str, float] = {}
    names = [name for name in names if name not in OF_KIND.get(example.kind, ())]
    if any(name in ROUGE for name in names):
        scores = text.rouge(said.text, reference)
        values |= {name: scores[name] for name in names if name in scores}
    if any(name in MUSE for name in names):
        score = text.muse_memorization(said.text, reference)
        values |= {name: score for name in names if name in MUSE}
    if "exact_match" in names:
        values["exact_match"] = text.exact_match(said.text, reference)
    if "repetition" in names:
        values["repetition"] = text.repetition(said.tokens)
    return values
