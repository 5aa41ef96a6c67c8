"""What speaks against the texts of a run before its first step, told by the untouched model."""

from expunge.config.criteria import Criteria
from expunge.train.validation import Validator

HARDLY = 0.05
"""Share of the texts to forget below which next to none of them is said."""
BEGINNING = 2
"""Tokens that a text without a prompt may begin with."""
MOST_SAID = 0.1
"""Share of the unseen texts that a model that never saw them may say word for word, where they cannot be guessed."""


def doubts(validator: Validator, criteria: Criteria) -> list[str]:
    """Why the texts may be no measure: unseen ones are as familiar, or those to forget are known in another form."""
    untouched, found = validator.untouched, []
    if untouched.auc <= criteria.auc(untouched.auc_sd).most:
        found.append(
            "the untouched model finds the texts to forget no more familiar than the unseen ones "
            f"(AUC {untouched.auc:.2f}): it does not know them by heart, or has seen the unseen ones, too"
        )
    rows = validator.rows.forget
    asked = 2 * sum(row.completion_start > BEGINNING for row in rows) > len(rows)  # else the others hide what is said
    if asked and untouched.exact_match < HARDLY:
        found.append(
            "the untouched model says next to none of the texts to forget word for word after their prompts: if it "
            "should know them so, it learned them in another form (words around prompt and answer, a chat template), "
            "in which they may stay known: write the prompts in that form, or see --prompt-format"
        )
    return found + known_unseen(validator)


def known_unseen(validator: Validator) -> list[str]:
    """That many unseen texts are known to the untouched model, as a list of one; empty where they are not."""
    said, texts = validator.unseen_said
    if said <= max(1, MOST_SAID * texts):
        return []
    return [
        f"{said} of {texts} unseen texts are said word for word by the untouched model: has it seen them? The "
        "texts to forget end as well known as these are"
    ]
