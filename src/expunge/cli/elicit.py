"""`expunge elicit`."""

import dataclasses
from collections import Counter
from pathlib import Path
from shlex import quote

from expunge.cli.output import NOT_AS_PROMISED, Output
from expunge.config import ElicitConfig
from expunge.utils.text import show_duration

STATES = {
    "kept": "yes",
    "varies": "no, the answers vary",
    "of everybody": "no, said of everybody",
    "declined": "no, it declines to answer",
    "about it": "no, says what is to be forgotten",
}
"""What became of a question -> what the table says."""


def elicit(settings: ElicitConfig, out: Output) -> int:
    """Ask a model what it knows of a name: texts to forget, with key words."""
    settings.validate()
    with out.starting():
        from expunge.data.holdout import FEWEST
    from expunge.interview.run import elicit as ask

    try:
        found = ask(settings, out.reporter())
    except KeyboardInterrupt:
        begun = Path(f"{settings.output}.part").exists()
        told = "what was answered is kept: the same command with --resume goes on" if begun else "nothing was written"
        raise KeyboardInterrupt(told) from None
    out.results = dataclasses.asdict(found) | {"facts": [[name, key, fact.state] for name, key, fact in found.facts]}
    if found.seconds is not None:
        answers = found.prompts * (1 + settings.samples)
        out.text(
            f"{found.names} names, made-up ones among them, {found.prompts} questions each, {answers} answers a name"
        )
        out.text(
            f"expected time   at most {show_duration(found.seconds)} (less with fewer --samples or --max-new-tokens)"
        )
        return 0
    out.text(f"{'name':<28}{'question':<14}{'said':>9}{'of others':>11}  kept")
    for name, question, fact in found.facts:
        said = f"{fact.said} of {fact.asked}" if fact.state == "kept" else ""
        theirs = f"{fact.others}" if fact.state == "kept" else ""
        out.text(f"{name[:27]:<28}{question[:13]:<14}{said:>9}{theirs:>11}  {STATES[fact.state]}")
    if not found.files:
        out.text("nothing is said consistently and of this name alone: nothing was written")
        return NOT_AS_PROMISED
    for file, rows in found.files.items():
        out.text(f"{rows:>4} rows   {file}")
    kept = Counter(fact.state for _, _, fact in found.facts)["kept"]
    out.text(
        f"Kept {kept} of {len(found.facts)} answers. They are the model's own words: read and edit the files. Then"
    )
    beside = settings.beside
    retain, unseen, instead, again = (
        f" --{flag} {quote(file)}" if file in found.files else ""
        for flag, file in (
            ("retain", settings.neighbours or ""),
            ("holdout", beside["unseen"]),
            ("instead", beside["instead"]),
            ("paraphrased", beside["paraphrased"]),
        )
    )
    enough = min(found.files.get(file, 0) for file in (settings.output, beside["unseen"])) >= 2 * FEWEST
    options = f"--model {quote(settings.model)} --forget {quote(settings.output)}{retain}"
    options += f" --revision {quote(settings.revision)}" if settings.revision else ""
    trust = " --trust-remote-code" if settings.trust_remote_code else ""
    out.text(f'  expunge unlearn {options}{trust}{unseen if enough else ""}{instead} --title "..." --output runs/one')
    sampled = f"--samples {settings.samples} --max-new-tokens {settings.max_new_tokens}"
    out.text(f"  expunge evaluate --run runs/one{trust}{again} {sampled}")
    if instead:
        out.text(f"Without{instead} it says something else, often wrong, or still a fact; with it, those refusals.")
    if not enough:
        most = 2 * FEWEST
        out.text(f"With {most} rows to forget, and {most} unseen ones, a run knows how far to go: --alias gives more.")
    return 0
