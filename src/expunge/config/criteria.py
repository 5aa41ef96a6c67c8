"""The one set of success criteria: early stopping aims at it, calibration keeps to it and the verdict judges by it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Criteria:
    """When unlearning counts as a success.

    Attributes:
        target_auc: Membership AUC (by loss, min-k and the like) of a model that never saw the forgotten texts: 0.5 by
            chance, or a retrained model's.
        auc_tolerance: Largest distance of an AUC from `target_auc`; the standard deviation of an AUC of as few texts by
            chance where that is larger.
        max_exact_match: Largest share of the forget completions that greedy decoding still says word for word; more
            where it guesses as large a share of completions that were never seen.
        min_retain: Least share that every retain score keeps of what the untouched model has.
        max_drift: Largest relative change of the loss of unseen texts, either way.
        max_repetition: Largest rise of the share of repeated four-grams in what is said, and of the share of prompts
            that are refused though they should be answered.
        max_left: Largest share of the way from the untouched model to a target that may be left on a metric of the
            forget set: a metric never comes to its target exactly, and a tenth is what texts differ by.
        max_perplexity: Largest factor between the perplexity of what is said and its target: half as likely a word is
            where readers begin to stumble.
        significance: A test that tells the model from a retrained one counts below this p.
    """

    target_auc: float = 0.5
    auc_tolerance: float = 0.05
    max_exact_match: float = 0.05
    min_retain: float = 0.98
    max_drift: float = 0.05
    max_repetition: float = 0.1
    max_left: float = 0.1
    max_perplexity: float = 2.0
    significance: float = 0.05
