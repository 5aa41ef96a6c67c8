"""`expunge demo`."""

from dataclasses import dataclass

from expunge.cli.output import Output
from expunge.cli.reports import write_run_report

REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Small, free (Apache-2.0) and without code of its own."""


@dataclass(kw_only=True)
class DemoSettings:
    """Settings of the demo.

    Attributes:
        output: Run directory to write.
        real: In place of the bundled subject take a language model, SmolLM2-135M-Instruct, which learns the made-up
            people first: minutes on a GPU. What comes of it is kept in OUTPUT-models.
        model: The same with another language model, a folder or a name on the Hub.
        overwrite: Replace an earlier run in `output`.
        resume: Go on with the interrupted run in `output`.
        seed: Seed of the run.
    """

    output: str = "expunge-demo"
    real: bool = False
    model: str | None = None
    overwrite: bool = False
    resume: bool = False
    seed: int = 0


def demo(settings: DemoSettings, out: Output) -> int:
    """Make the bundled model forget made-up people, and show it."""
    with out.starting():
        from expunge.demo.run import run_demo

    options = {name: value for name, value in vars(settings).items() if name not in ("output", "real")}
    options["model"] = settings.model or (REAL if settings.real else None)
    result = run_demo(settings.output, out.reporter(), **options)
    out.results = {"output": str(result.output), "results": result.results}
    out.text(f"{result}\n")
    out.text(f"adapter   {result.output / 'adapter'}")
    out.text(f"results   {result.output / 'results_after.json'} (and _before, _retrained)")
    write_run_report(result.output, out)
    return 0
