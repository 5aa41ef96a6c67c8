"""What a model knows of a name: `expunge.elicit`."""

from pathlib import Path
from typing import Any

from expunge.api.inputs import checked
from expunge.config import ElicitConfig
from expunge.interview.run import Elicited
from expunge.interview.run import elicit as ask
from expunge.utils.isolated import isolated
from expunge.utils.progress import reporter_for


@isolated
def elicit(
    model: str | Path, *, about: str, output: str | Path, progress: bool | None = None, **settings: Any
) -> Elicited:
    """Ask a model what it knows of a name, and write what it says consistently and not of everybody.

    Args:
        model: Folder or Hub name.
        about: The name that is to be forgotten.
        output: File for the prompts with the model's own answers and their key words.
        progress: As for `unlearn`.
        settings: Everything else that `ElicitConfig` holds, such as `neighbours`.

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    config = checked(ElicitConfig, model=str(model), about=about, output=str(output), **settings)
    return ask(config, reporter_for(progress))
