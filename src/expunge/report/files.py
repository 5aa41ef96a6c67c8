"""What `expunge report` writes: the page, and on request its figures and tables as files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from expunge.errors import ConfigError, RunError
from expunge.report.collect import RunData, read_run
from expunge.report.verdict import verdict
from expunge.utils.files import check_replaceable, write_bytes, write_text

PAGE = "report.html"
MARK = '<meta name="generator" content="Expunge report">'
"""What tells a page of ours from other files."""
MOST_ROWS = 40
"""Rows of a figure; more go into further figures."""


def write_report(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    show_examples: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the page on one or several runs.

    Args:
        runs: Run directories; those that differ in the seed alone are pooled.
        output: The page; `report.html` in the run directory, of a single run, when None.
        figures: Folder for the figures as PNG, SVG and PDF and the scores as a LaTeX table.
        show_examples: Texts of the forget set to put on the page, for internal use.
        overwrite: Replace files that are there.

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
    doubled = [
        str(path) for i, path in enumerate(runs) if Path(path).resolve() in {Path(p).resolve() for p in runs[:i]}
    ]
    if doubled:
        raise ConfigError(f"{doubled[0]} is given twice: name every run once")
    output = Path(runs[0]) / PAGE if output is None else Path(output)
    data = _distinct([read_run(path) for path in runs])
    if not overwrite and output.exists():
        raise RunError(f"{output} exists already: give another name, or --overwrite to replace it")
    check_replaceable(output, [MARK], "a report page")
    from expunge.report.page import render  # matplotlib takes a second that a refusal need not wait for

    examples = []
    if show_examples:
        from expunge.report.examples import shown_examples

        examples = shown_examples(data[0], show_examples)
    page = render(data, examples)
    files = _figures(data, Path(figures)) if figures else []
    for path, content in files:
        write_bytes(path, content, overwrite=overwrite)
    write_text(output, page, overwrite=overwrite)
    return output


def verdict_sentence(run: str | Path) -> str:
    """The verdict on one run in one sentence, for a terminal."""
    return verdict(read_run(run)).sentence


def _distinct(runs: list[RunData]) -> list[RunData]:
    """The runs with names of their own: folders of the same name are told apart by the folder above."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _figures(runs: list[RunData], folder: Path) -> list[tuple[Path, bytes]]:
    """All figures, and the scores as a LaTeX table, as contents of files."""
    from expunge.report import figures
    from expunge.report.comparison import all_readings, group_runs, read_columns, tabulate
    from expunge.report.drawing import save, style
    from expunge.report.latex import latex_table
    from expunge.report.page import scales
    from expunge.report.selection_figures import looks, strengths

    groups = group_runs(runs)
    columns = read_columns(groups)
    families = tabulate(columns, all_readings(groups))
    files = []
    with style():
        drawn = [*figures.courses(groups), *(figures.distributions(runs[0]) if len(groups) == 1 else [])]
        drawn += [*looks(runs[0]), *strengths(runs[0])] if len(runs) == 1 else []
        drawn += [found for found in (figures.membership_curves(groups),) if found]
        drawn += [traded[0]] if (traded := figures.tradeoff(groups)) else []
        for family, rows in families.items():
            for whole in (True, False):
                parts = [
                    (scale.title, scale.rows[first : first + MOST_ROWS])
                    for scale in scales(family, rows, whole=whole)
                    for first in range(0, len(scale.rows), MOST_ROWS)
                ]
                for i, (title, part) in enumerate(parts):
                    name = f"{family}{'' if whole else '-tasks'}{f'-{i + 1}' if i else ''}"
                    drawn.append(figures.dots(name, title, columns, part))
        for own in drawn:
            files += save(own.figure, folder / own.name)
    if families:
        files.append((folder / "scores.tex", latex_table(columns, families).encode()))
    return files
