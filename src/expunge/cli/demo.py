"""`expunge demo`."""

from dataclasses import dataclass

from expunge.cli.output import Output
from expunge.cli.reports import write_run_report


@dataclass(kw_only=True)
class DemoSettings:
    """Settings of the demo.

    Attributes:
        output: Run directory to write.
        overwrite: Replace an earlier run in `output`.
        seed: Seed of the run.
    """

    output: str = "expunge-demo"
    overwrite: bool = False
    seed: int = 0


def demo(settings: DemoSettings, out: Output) -> int:
    """Make the bundled model forget made-up people."""
    with out.starting():
        from expunge.demo.run import run_demo

    result = run_demo(settings.output, out.reporter(), overwrite=settings.overwrite, seed=settings.seed)
    out.results = {"output": str(result.output), "results": result.results}
    out.text(f"{result}\n")
    out.text(f"adapter   {result.output / 'adapter'}")
    out.text(f"results   {result.output / 'results_after.json'} (and _before, _retrained)")
    write_run_report(result.output, out)
    return 0
