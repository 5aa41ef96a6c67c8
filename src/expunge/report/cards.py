"""The model card of a run, brought up to date with its results."""

from collections.abc import Sequence
from pathlib import Path

from expunge.errors import RunError
from expunge.report.collect import RunData, read_run
from expunge.report.comparison import of_run
from expunge.report.readings import ARROWS, Reading, label
from expunge.report.verdict import interval_text, verdict
from expunge.runs.card import Score, model_card
from expunge.utils.files import write_text

CARD = Path("adapter") / "README.md"


def write_cards(runs: Sequence[str | Path]) -> list[Path]:
    """Write the card of every run that has been scored again, with its scores; returns the cards' paths.

    Raises:
        RunError: A folder is no run directory, is damaged, or has no adapter.
        DataError: A results file is damaged.
    """
    written = []
    for run in map(read_run, runs):
        if "after" not in run.results:
            continue
        path = run.path / CARD
        if not path.parent.is_dir():
            raise RunError(f"{run.path}: there is no adapter in it whose card could be written")
        write_text(path, scored_card(run), overwrite=True)
        written.append(path)
    return written


def scored_card(run: RunData) -> str:
    """The card with what results files say, over all tasks."""
    found = of_run(run)
    scores = [
        Score(
            reading.key,
            label(reading),
            ARROWS.get(reading.direction or "", ""),
            reading.value,
            tuple(_text(found.get(role, {}).get(reading.key)) for role in ("before", "after", "reference")),
        )
        for reading in found["after"].values()
        if reading.value is not None and not reading.task
    ]
    benchmark = str(run.results["after"]["benchmark"])
    judged = verdict(run)
    return model_card(run.manifest, benchmark=benchmark, scores=scores, verdict=judged.sentence)


def _text(reading: Reading | None) -> str:
    return "–" if reading is None else interval_text(reading)
