"""Debian's Chromium, driven by playwright; the pages that are looked at."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from expunge.report import write_report
from report_runs import entry, write_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
LONG = "a_very_long_name_of_a_metric_" * 4


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser; fails with a plain message where it is missing, since these tests run on request alone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`: make test-browser")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.fail("no Chromium on this machine: apt-get install chromium")
    flags = ["--disable-gpu", "--disable-background-networking", "--no-sandbox"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page in the browser, with all that it said and asked for."""

    page: object
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def see(chromium):
    """Open a file: `see(path, width=390, dark=True, media="print")`."""
    contexts = []

    def show(path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, media: str = "screen") -> Seen:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.messages.append(message.text))
        seen.page.on("pageerror", lambda error: seen.messages.append(str(error)))
        seen.page.on("dialog", lambda dialog: (seen.messages.append(f"dialog {dialog.message}"), dialog.dismiss()))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.emulate_media(media=media)
        seen.page.goto(path.as_uri())
        return seen

    yield show
    for context in contexts:
        context.close()


def _other_rows_before(run: Path) -> None:
    """Numbers of as many rows before as the longest range of them needs."""
    path = run / "results_before.json"
    results = json.loads(path.read_text())
    for found in results["metrics"].values():
        found["n"] = 12_345
    path.write_text(json.dumps(results))


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    """Name -> page: of one run, of three seeds, of two methods, without scores, hostile, with 200 long metrics."""
    folder = tmp_path_factory.mktemp("pages")
    seeds = [write_run(folder / f"seed{seed}", seed=seed) for seed in range(3)]
    slow = [write_run(folder / f"slow{seed}", seed=seed + 5, settings={"epochs": 3}, steps=40) for seed in range(2)]
    strange = {f"utility/{EVIL}/{EVIL}": entry(0.5), "utility/rtl\u202eeuplav": entry(0.4)}
    runs = {
        "one": seeds[:1],
        "seeds": seeds,
        "methods": [*seeds, *slow],
        "unscored": [write_run(folder / "unscored", scored=False)],
        "hostile": [
            write_run(
                folder / "<b>run&",
                metrics=strange,
                ids=EVIL,
                manifest={"warnings": [EVIL], "versions": {EVIL: EVIL, "expunge": EVIL}},
            )
        ],
        "many": [
            write_run(
                folder / f"a-run-with-a-very-long-name-{'x' * 80}",
                metrics={f"utility/{LONG}{i}": entry(i / 200) for i in range(200)},
                settings={"model": f"org/{'a-model-with-a-very-long-name-' * 4}"},
            )
        ],
    }
    _other_rows_before(runs["many"][0])
    found = {name: write_report(folders, folder / f"{name}.html") for name, folders in runs.items()}
    (folder / "forget.jsonl").write_text(f'{{"input": "Who is Zarquon?", "output": "{"very long " * 40}"}}\n')
    internal = write_run(folder / "internal", scored=False, settings={"forget": str(folder / "forget.jsonl")})
    return found | {"internal": write_report([internal], show_examples=1)}
