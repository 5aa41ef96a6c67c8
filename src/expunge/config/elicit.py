"""The settings of `elicit`."""

from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import Literal

from expunge.config.checks import ABOVE_ZERO, POSITIVE, SEED, Plain, check_types, exclusive, first_failed
from expunge.utils.text import comma_list


@dataclass(kw_only=True)
class ElicitConfig(Plain):
    """What a model is asked about a name, and how.

    Attributes:
        model: Folder or Hub name of the model.
        revision: Branch, tag or commit of a model on the Hub.
        about: The name that is to be forgotten.
        alias: Other ways to write it, separated by commas; each is asked about too.
        kind: What the name is of; it chooses the questions, and the made-up names that they are asked of as well.
        questions: File of your own questions: `ask` with {name} in its place, `again` (the same in other words) and
            `begin` (the beginning of a sentence, for a model that is no chat model).
        output: File for the prompts with the model's own answers and their key words, for you to read and edit. Beside
            it go the same questions in other words (_paraphrased, for testing only), with refusals (_instead), and the
            same said of made-up names, which the model cannot know (_unseen).
        neighbours: File for the same of names that the model mentions beside it: texts to keep.
        neighbour_names: Names to ask about for `neighbours`, separated by commas, instead of those that it mentions.
        samples: Answers drawn to each question, beside the most likely one.
        temperature: Of the draws.
        max_new_tokens: Longest answer, in tokens.
        seed: Seed of the draws.
        prompt_format: `chat` (the chat template), `space` (sentences to be gone on with), or what the model has.
        dtype: `float32`, `bfloat16` or `auto` (the fastest that a GPU has; on a CPU, where single tokens are faster so,
            float32).
        device: `auto`, `cpu`, `cuda` ...
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace earlier files of these names.
        resume: Go on where an interrupted call stopped.
        dry_run: Say what would be asked and how long it would take, and write nothing.
    """

    model: str
    revision: str | None = None
    about: str
    alias: str | None = None
    kind: Literal["person", "work", "place", "organization"] = "person"
    questions: str | None = None
    output: str
    neighbours: str | None = None
    neighbour_names: str | None = None
    samples: int = 8
    temperature: float = 0.7
    max_new_tokens: int = 64
    seed: int = 0
    prompt_format: Literal["auto", "chat", "space"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False

    def validate(self) -> None:
        """Check every range; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)
        first_failed(
            (
                (bool(self.about.strip()), "--about is empty: give the name that is to be forgotten"),
                (Path(self.output).suffix == ".jsonl", f"--output {self.output}: end it in .jsonl"),
                (self.neighbours is None or Path(self.neighbours).suffix == ".jsonl",
                 f"--neighbours {self.neighbours}: end it in .jsonl"),
                (self.neighbours is None or Path(self.output).suffix != ".jsonl"
                 or abspath(self.neighbours) not in map(abspath, (self.output, *self.beside.values())),
                 f"--neighbours {self.neighbours}: is the --output, or goes beside it: name another file"),
                (bool(self.neighbours) or not self.neighbour_names, "--neighbour-names need --neighbours, their file"),
                (self.samples >= 2, f"--samples {self.samples}: must be at least 2, so that answers can agree"),
                *ABOVE_ZERO.of(self, "temperature"),
                *POSITIVE.of(self, "max_new_tokens"),
                *SEED.of(self, "seed"),
                *exclusive(self, ("dry_run", "resume")),
            )
        )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """The name and its other spellings."""
        return list(dict.fromkeys([self.about.strip(), *comma_list(self.alias)]))

    @property
    def beside(self) -> dict[str, str]:
        """What goes beside the output (`paraphrased`, `instead`, `unseen`) -> its file."""
        path = Path(self.output)
        return {what: str(path.with_name(f"{path.stem}_{what}.jsonl")) for what in ("paraphrased", "instead", "unseen")}
