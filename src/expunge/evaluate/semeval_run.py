"""The official evaluation of one model: generate, measure the documents, score."""

from collections.abc import Callable, Sequence

from expunge.data.examples import Example
from expunge.data.lume import LumeData
from expunge.evaluate.generate import generate_predictions
from expunge.evaluate.membership import document_nlls
from expunge.evaluate.predictions import Predictions
from expunge.evaluate.semeval import SemevalScores, score
from expunge.model.load import LoadedModel
from expunge.progress import Reporter


def evaluate_semeval(
    loaded: LoadedModel,
    data: LumeData,
    *,
    encode_prompt: Callable[[Example], Sequence[int]],
    encode_draft: Callable[[Example], Sequence[int]] | None = None,
    max_new_tokens: int = 256,
    mmlu: float | None = None,
    reporter: Reporter | None = None,
) -> tuple[SemevalScores, Predictions]:
    """Score one model on the two splits and, where `data` has them, the member and non-member documents.

    Args:
        loaded: The model.
        data: The benchmark's rows.
        encode_prompt: Tokens that the model is given for a row.
        encode_draft: Tokens of the completion as the model was trained to give it; drafts change the speed
            alone.
        max_new_tokens: Bound on the generated tokens of each row.
        mmlu: Accuracy on MMLU, in [0, 1], for the final score.
        reporter: Where progress goes; silent when None.

    Raises:
        DataError: A row cannot be scored (an empty prompt, a document of one token).
    """
    reporter = reporter or Reporter(quiet=True)
    rows = {}
    for split, examples in (("forget", data.forget), ("retain", data.retain)):
        with reporter.track(f"answering {split} prompts", len(examples)) as advance:
            rows[split] = generate_predictions(
                loaded,
                examples,
                split,
                encode_prompt=encode_prompt,
                encode_draft=encode_draft,
                max_new_tokens=max_new_tokens,
                say=reporter.say,
                progress=advance,
            )
    losses: dict[str, list[float] | None] = {"member": None, "nonmember": None}
    if data.member is not None and data.nonmember is not None:
        for side, documents in (("member", data.member), ("nonmember", data.nonmember)):
            with reporter.track(f"losses of {side} documents", len(documents)) as advance:
                losses[side] = document_nlls(loaded, documents, say=reporter.say, progress=advance)
    predictions = Predictions(rows["forget"], rows["retain"], losses["member"], losses["nonmember"])
    scores = score(rows["forget"], rows["retain"], losses["member"], losses["nonmember"], mmlu)
    return scores, predictions
