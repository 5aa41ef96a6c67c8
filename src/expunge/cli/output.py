"""Where the results of a command go, and how it ends."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from expunge.utils.progress import Reporter
from expunge.utils.ranks import is_writer
from expunge.utils.text import printable

NOT_AS_PROMISED = 3
"""Exit code of a command that is done and whose result is not what was promised."""


@dataclass
class Output:
    """Where results go: text as it comes, or one JSON object at the end.

    Attributes:
        json: Print the results as JSON in place of the text.
        quiet: No progress; warnings are told all the same.
        results: What was found.
    """

    json: bool = False
    quiet: bool = False
    results: dict[str, Any] = field(default_factory=dict)

    def text(self, line: str = "") -> None:
        """Print a line for a person; of several processes the first one does."""
        if not self.json and is_writer():
            print(printable(line))

    def reporter(self) -> Reporter:
        """Where progress goes."""
        return Reporter(quiet=self.quiet)

    def starting(self) -> AbstractContextManager[None]:
        """Something that moves while the libraries load; of several processes the first one shows it."""
        return Reporter(quiet=self.quiet).working("starting")
