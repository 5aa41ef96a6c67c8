"""`expunge report` and `expunge verdict`, and what a run ends with."""

from dataclasses import dataclass
from pathlib import Path

from expunge.cli.output import NOT_AS_PROMISED, Output
from expunge.errors import RunError


@dataclass(kw_only=True)
class ReportSettings:
    """Settings of `report`.

    Attributes:
        runs: Run directories; those that differ in the seed are pooled.
        output: Page to write; RUN/report.html of a single run.
        figures: Folder for the figures (PNG, SVG, PDF).
        show_examples: Texts of the FORGET SET to put on the page.
        card: Bring the model cards in the runs up to date with results.
        overwrite: Replace `output` and `figures`.
    """

    runs: list[str]
    output: str | None = None
    figures: str | None = None
    show_examples: int = 0
    card: bool = False
    overwrite: bool = False


def report(settings: ReportSettings, out: Output) -> int:
    """A page on one run or several: what was forgotten, what it cost, how sure that is."""
    from expunge.report import write_cards, write_report
    from expunge.report.run_data import read_run

    reporter = out.reporter()
    options = {name: getattr(settings, name) for name in ("figures", "show_examples", "overwrite")}
    with reporter.working("writing the report"):
        runs = [read_run(run) for run in settings.runs]
        page = write_report(runs, settings.output, reporter=reporter, **options)
        cards = write_cards(runs) if settings.card else []
    out.results = {"report": str(page), "figures": settings.figures, "cards": list(map(str, cards))}
    out.text(f"report    {page}" + (" (it holds texts of the forget set)" if settings.show_examples else ""))
    for name, path in (("figures", settings.figures), *(("card", card) for card in cards)):
        if path:
            out.text(f"{name:<10}{path}")
    return 0


@dataclass(kw_only=True)
class VerdictSettings:
    """Settings of `verdict`.

    Attributes:
        runs: Run directories.
        strict: End with exit code 3 when one of them is not a success.
    """

    runs: list[str]
    strict: bool = False


def verdict(settings: VerdictSettings, out: Output) -> int:
    """Is it forgotten, and is the rest kept: four answers, and what to do next."""
    from expunge.report import verdict as judge
    from expunge.report import write_verdict
    from expunge.report.run_data import read_run

    read = {run: read_run(run) for run in settings.runs}
    judged = {run: judge(data) for run, data in read.items()}
    for run, found in judged.items():
        out.text(f"{run}: {found.at(run)}" if len(judged) > 1 else str(found.at(run)))
    out.results = {run: found.as_dict() for run, found in judged.items()}
    for data in read.values():
        try:
            write_verdict(data)
        except RunError as error:  # a run that may only be read has a verdict, too
            out.reporter().warn(str(error))
    return NOT_AS_PROMISED if settings.strict and not all(found.success for found in judged.values()) else 0


def write_run_report(run: Path, out: Output) -> None:
    """The page and the card of a run that has just ended, or been scored."""
    from expunge.report import verdict as judge
    from expunge.report import write_cards, write_report
    from expunge.report.run_data import read_run

    with out.reporter().working("writing the report"):
        read = read_run(run)
        write_cards([read])
        page = write_report([read], overwrite=True)
        judged = judge(read)
    out.results["verdict"] = judged.as_dict()
    out.text(str(judged.at(run)))
    out.text(f"report    {page}")
