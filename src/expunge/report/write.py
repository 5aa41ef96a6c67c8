"""What `expunge report` writes: the page, on request its figures as files, and model cards with scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import ConfigError, RunError
from expunge.report.forget_texts import shown_examples
from expunge.report.groups import Group, group_runs, read_columns, tabulate
from expunge.report.judge import verdict, write_verdict
from expunge.report.run_data import RunData, read_run
from expunge.report.scores import ARROWS
from expunge.runs import card
from expunge.utils.files import check_replaceable, write_bytes, write_text
from expunge.utils.progress import Reporter
from expunge.utils.text import MISSING, unique_names

if TYPE_CHECKING:
    from expunge.report.drawing import Drawn

PAGE, CARD = "report.html", Path("adapter") / "README.md"
MARK = '<meta name="generator" content="Expunge report">'
"""What tells a page of ours from other files."""
MOST_ROWS = 40
"""Rows of a figure; more go into further figures."""


def write_report(
    runs: Sequence[RunData | str | Path],
    output: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    show_examples: int = 0,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write the page on one or several runs; on a single one, without `output`, `verdict.json` into its folder as well.

    Args:
        runs: Run directories, or what has been read of them; those that differ in the seed alone are pooled.
        output: The page; `report.html` in the run directory, of a single run, when None.
        figures: Folder for the figures as PNG, SVG and PDF.
        show_examples: Texts of the forget set to put on the page, for internal use.
        overwrite: Replace files that are there.
        reporter: Where warnings go, of results that are left out for one.

    Returns:
        The page's path.

    Raises:
        RunError: A folder is no run directory or is damaged, or a file is there and `overwrite` is not set.
        DataError: A results file or the forget texts cannot be read.
        ConfigError: The arguments contradict each other.
    """
    if show_examples < 0:
        raise ConfigError(f"--show-examples {show_examples}: must be 0 or more")
    if output is None and len(runs) != 1:
        raise ConfigError("--output is missing: name the page on several runs")
    paths = [run.path if isinstance(run, RunData) else Path(run) for run in runs]
    places = [path.resolve() for path in paths]
    if doubled := [path for i, path in enumerate(paths) if places[i] in places[:i]]:
        raise ConfigError(f"{doubled[0]} is given twice: name every run once")
    page = paths[0] / PAGE if output is None else Path(output)
    data = _distinct([read_run(run) for run in runs])
    if not overwrite and page.exists():
        raise RunError(f"{page} exists already: give another name, or --overwrite to replace it")
    check_replaceable(page, [MARK], "a report page")
    if figures and Path(figures).exists() and not Path(figures).is_dir():
        raise RunError(f"--figures {figures}: there is a file of this name: give a folder")
    from expunge.report.page import draw, render  # matplotlib takes a second that a refusal need not wait for

    examples = shown_examples(data[0], show_examples) if show_examples else []
    groups = group_runs(data)
    drawings = draw(groups)
    text = render(groups, drawings, examples)
    if figures:
        for path, content in _figures(groups, drawings.all, Path(figures)):
            write_bytes(path, content, overwrite=overwrite)
    write_text(page, text, overwrite=overwrite)
    if output is None:
        write_verdict(data[0])
    reporter = reporter or Reporter(quiet=True)
    for run in data:
        if not run.finished:
            reporter.warn(f"{run.name}: the run is not finished: the same command with --resume finishes it")
        for warning in run.warnings:
            reporter.warn(f"{run.name}: {warning}")
    return page


def write_cards(runs: Sequence[RunData | str | Path]) -> list[Path]:
    """Write the model card of every run that has been scored again, with its scores; returns the cards' paths.

    Raises:
        RunError: A folder is no run directory, is damaged, or has no adapter.
        DataError: A results file is damaged.
    """
    written = []
    for run in map(read_run, runs):
        if "after" in run.scores:
            path = run.path / CARD
            if not path.parent.is_dir() or not run.finished:
                raise RunError(f"{run.path}: there is no finished adapter in it whose card could be written")
            write_text(path, scored_card(run), overwrite=True)
            written.append(path)
    return written


def scored_card(run: RunData) -> str:
    """The card with what results files say, over all tasks."""
    scores = [
        card.Line(key, score.label, ARROWS.get(score.direction or "", ""), score.value, _shown(run, key))
        for key, score in run.scores["after"].items()
        if score.known and not score.task
    ]
    benchmark = str(run.results["after"]["benchmark"])
    return card.model_card(
        run.manifest, benchmark=benchmark, scores=scores, verdict=verdict(run).sentence, reference=run.reference
    )


def _shown(run: RunData, key: str) -> tuple[str, str, str]:
    found = (run.scores.get(role, {}).get(key) for role in ("before", "after", "retrained"))
    before, after, reference = (MISSING if score is None else score.text for score in found)
    return before, after, reference


def _distinct(runs: list[RunData]) -> list[RunData]:
    """The runs with names of their own: folders of the same name are told apart by the folders above."""
    names = unique_names([run.path.resolve().parts[1:] or (run.name,) for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _figures(groups: Sequence[Group], drawn: "list[Drawn]", folder: Path) -> list[tuple[Path, bytes]]:
    """All figures, those of the page's tables too, as contents of files."""
    from expunge.report.drawing import save, style
    from expunge.report.figures import dots
    from expunge.report.page import scales

    columns = read_columns(groups)
    families = tabulate(columns, [run for group in groups for run in group.runs])
    with style():
        for family, rows in families.items():
            for whole in (True, False):
                parts = [
                    (scale.title, scale.rows[first : first + MOST_ROWS])
                    for scale in scales(family, rows, whole=whole)
                    for first in range(0, len(scale.rows), MOST_ROWS)
                ]
                for i, (title, part) in enumerate(parts):
                    name = f"{family}{'' if whole else '-tasks'}{f'-{i + 1}' if i else ''}"
                    drawn.append(dots(name, title, columns, part))
        return [file for figure in drawn for file in save(figure.figure, folder / figure.name)]
