"""The `Example` record: one text to forget or to keep."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One text, split where the prompt ends.

    Attributes:
        id: Unique name of the row within its file (the file's `id` column, else `<stem>-<row number from 1>`).
        prompt: What the model is given; empty when the whole text is the completion.
        completion: What the model must forget or keep saying after the prompt; never empty.
        task: Group that the official scores average over (`Task1` ...); empty when the data has none.
        kind: `sc` (sentence completion: regurgitation), `qa` (question: knowledge) or empty.
        source: Where the row was read: `path:line`, for messages only.
    """

    id: str
    prompt: str
    completion: str
    task: str = ""
    kind: str = ""
    source: str = ""
