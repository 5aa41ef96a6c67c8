"""The verdict on the demo's run, and on the demo's retrained model in its place.

    expunge demo --output RUN && python -m dev.verdicts RUN --docs

The retrained model never met the people that are forgotten: criteria that it does not meet could be met by nothing.
No half of the documents has steered it, so its membership is measured on all of them.
"""

import argparse
import json
import tempfile
from pathlib import Path

from bench.report import DOCS, write_between
from experiments.demo.subject import ASSETS
from expunge import EvaluateConfig, evaluate
from expunge.report import Verdict, verdict

PAGE = DOCS / "report.md"


def retrained_in_its_place(run: Path) -> Verdict:
    """The verdict on a copy of a run whose results after unlearning are those of the retrained model."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["loss_nats_per_completion_token"] = {}  # those are of the unlearned model
        (copy / "manifest.json").write_text(json.dumps(manifest))
        for name, model in (("before", "subject"), ("after", "retrained")):
            evaluate(
                EvaluateConfig(
                    model=str(ASSETS / model),
                    benchmark="semeval",
                    data=str(ASSETS / "data"),
                    output=str(copy / f"results_{name}.json"),
                )
            )
        after, retrained = (json.loads((place / "results_after.json").read_text()) for place in (run, copy))
        identity = {key: after[key] for key in ("model", "adapter")}  # results of another model are left out
        identity["fingerprint"] = after["fingerprint"] | {"data": retrained["fingerprint"]["data"]}
        (copy / "results_after.json").write_text(json.dumps(retrained | identity))
        return verdict(copy)


def main() -> None:
    """Print both, and with `--docs` write them into docs/report.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of a finished demo")
    parser.add_argument("--docs", action="store_true", help="write both into docs/report.md")
    arguments = parser.parse_args()
    for name, judged in (("demo", verdict(arguments.run)), ("retrained", retrained_in_its_place(arguments.run))):
        print(f"{judged}\n")
        if arguments.docs:
            write_between(PAGE, f"verdict-{name}", f"```\n{judged}\n```")


if __name__ == "__main__":
    main()
