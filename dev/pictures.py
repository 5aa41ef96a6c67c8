"""Pictures of the report of a run, as in docs/images: the first screen, and the course of training.

    python -m dev.pictures RUN NAME [--before RESULTS.json] [--folder docs/images]

A run of `python -m experiments.arms` has no results of the untouched model in its folder: they are `before.json` beside
the subjects. The report is that of a copy, so that the run stays as it is. Needs Chromium and the extra `browser`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import DOCS
from expunge.report import write_report

SCREENSHOTS = Path(__file__).parents[1] / "tests/browser/screenshots.py"
VIEWS = {"desktop": "", "course": "-course"}
"""Views of `tests/browser/screenshots.py`, and what their files here have behind the name."""


def main() -> None:
    """Write `NAME.png` and `NAME-course.png`."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("run", type=Path)
    given.add_argument("name")
    given.add_argument("--before", type=Path, help="results of the untouched model, with their Parquet")
    given.add_argument("--folder", type=Path, default=DOCS / "images")
    options = given.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / options.run.resolve().name  # which the page tells
        shutil.copytree(options.run, run, ignore=shutil.ignore_patterns("said", "predictions*", "checkpoint*"))
        if options.before:
            for suffix in (".json", ".parquet"):
                if (source := options.before.with_suffix(suffix)).exists():
                    shutil.copyfile(source, run / f"results_before{suffix}")
        page = write_report([run], Path(folder) / "page.html")
        subprocess.run([sys.executable, str(SCREENSHOTS), str(page), folder, *VIEWS], check=True)
        for view, end in VIEWS.items():
            path = options.folder / f"{options.name}{end}.png"
            shutil.move(Path(folder) / f"page-{view}.png", path)
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
