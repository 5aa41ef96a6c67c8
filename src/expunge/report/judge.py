"""The verdict on a run: four questions, what was not measured, and what to do next.

Only four good answers are a success; a bad one is a failure, whatever the other numbers say.
"""

import math
import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from expunge.config.criteria import MET, NO_BETTER, Criteria
from expunge.report.answers import OWN_TARGET, STATES, TO_SCORE, Answer
from expunge.report.doubts import doubts
from expunge.report.questions import recognisable, rest_kept, speaks_well, still_said
from expunge.report.questions.rest import ON_TRAINED
from expunge.report.run_data import RunData, read_run
from expunge.report.scores import UNSEEN, number
from expunge.report.targets import tests_of, unseen_given
from expunge.runs.record import VERDICT
from expunge.utils.files import write_json
from expunge.utils.text import BABBLES, DECLINES

UNFINISHED = "The run is not finished"
FAILURES = (
    "the texts are still known", "one can tell that they were trained on", "the rest was damaged",
    "the model no longer speaks well",
)  # fmt: skip
WIDTH = 99
"""Columns of a terminal."""
WITHIN = "All four answers are good within the run's own criteria"
"""The lead of a success by criteria that allow more than others do."""
UNMEASURED = (
    "How a model that never saw the texts would score (--reference).",
    "Whether a test tells it from the retrained model (--reference).",
    "General ability, such as MMLU (--tasks).",
    "Whether the texts come back by fine-tuning, by rounding the weights or by other prompts.",
)
"""What was not measured, in the verdict's own words; what the results say are notes, whole sentences."""
RATIOS = {
    "membership/lowercase_auc": "In another writing the texts are still known: train on them in lower case, too "
    "(--lowercase-share 0.33).",
    "membership/recall_auc": "After other texts the texts are still known: train on them there (--context-tokens 24), "
    "and longer (--epochs).",
}
"""Attacks that compare a text with itself elsewhere, whose AUC falls where it is still known there; what to do then."""


@dataclass(frozen=True)
class Verdict:
    """All answers on a run.

    Attributes:
        tone: `good`, `bad` or `open`.
        lead: The result in a few words; that the run is not finished where that is so.
        answers: Whether it is still said, recognisable, the rest kept, the speech well.
        next: What to do now, most urgent first.
        criteria: What it was judged by.
        not_measured: What these answers do not rest on, and notes on what they rest on, a sentence each.
        warnings: Results that were left out, or are hard to compare; targets that may be none.
    """

    tone: str
    lead: str
    answers: tuple[Answer, ...]
    next: tuple[str, ...]
    criteria: Criteria
    not_measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def success(self) -> bool:
        """Whether all four answers are good."""
        return self.tone == "good"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.lead != UNFINISHED

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        return (
            f"{self.lead}. "
            + "; ".join(f"{answer.question} {answer.answer}: {answer.says}" for answer in self.answers)
            + "."
        )

    def __str__(self) -> str:
        lines = [self.lead]
        lines += [_folded(f"  {answer.question:<37}{answer.answer:<14}", answer.says) for answer in self.answers]
        others = [text for text in self.not_measured if text not in {answer.question for answer in self.answers}]
        unmeasured = [text for text in others if text in UNMEASURED]
        notes = [text for text in others if text not in UNMEASURED]
        notes += dict.fromkeys(note for answer in self.answers for note in answer.notes)
        sides = (("not measured", unmeasured), ("note", notes), ("warning", self.warnings), ("next", self.next))
        lines += [_folded(f"  {name:<14}", text) for name, texts in sides for text in texts]
        return "\n".join(lines)

    def at(self, run: str | Path) -> "Verdict":
        """The same with the run's path, quoted for a shell, where a command says `--run RUN`; for a terminal."""
        named = f"--run {shlex.quote(str(run))}"
        return replace(self, next=tuple(step.replace("--run RUN", named) for step in self.next))

    def as_dict(self) -> dict[str, Any]:
        """The content of verdict.json."""
        known = {name: value for name, value in asdict(self).items() if name != "tone"}
        return {"schema": 1, "success": self.success, **known}


def verdict(run: RunData | str | Path) -> Verdict:
    """Judge one run by what its directory holds, and by the criteria that it was started with.

    Raises:
        RunError: Not a run directory, or it is damaged.
        DataError: A results file is damaged.
    """
    run = read_run(run)
    given = {field.name: number(run.settings.get(field.name)) for field in fields(Criteria)}
    criteria = Criteria(**{name: value for name, value in given.items() if value is not None})
    answers = tuple(ask(run, criteria) for ask in (still_said, recognisable, rest_kept, speaks_well))
    lax = _lax(criteria, answers)
    tone, lead = _overall(run.finished, answers, lax)
    missing = tuple(dict.fromkeys(_not_measured(run, answers)))
    warnings = dict.fromkeys((*run.warnings, *doubts(run, criteria).values(), *_own_criteria(criteria, lax)))
    return Verdict(tone, lead, answers, _next(run, answers), criteria, missing, tuple(warnings))


def write_verdict(run: RunData | str | Path) -> Verdict:
    """Judge a run and write `verdict.json` into it, in place of an earlier one.

    Raises:
        RunError: Not a run directory, or it is damaged.
        DataError: A results file is damaged.
    """
    run = read_run(run)
    judged = verdict(run)
    write_json(run.path / VERDICT, judged.as_dict(), overwrite=True)
    return judged


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on several runs of one configuration: to every question the worst answer of them."""
    if len(verdicts) == 1:
        return verdicts[0]
    answers = []
    for given in zip(*(verdict.answers for verdict in verdicts), strict=True):
        low = min(given, key=lambda answer: STATES.index(answer.state))
        same = sum(answer.state == low.state for answer in given)
        where = f"in all {len(given)} runs" if same == len(given) else f"in {same} of {len(given)} runs"
        notes = dict.fromkeys(note for answer in given if answer.state == low.state for note in answer.notes)
        answers.append(replace(low, says=f"{low.says}, {where}", notes=tuple(notes)))
    lax = [verdict for verdict in verdicts if _lax(verdict.criteria, verdict.answers)]
    criteria = (lax or verdicts)[0].criteria
    tone, lead = _overall(all(verdict.finished for verdict in verdicts), answers, lax)
    wanting = sorted(
        [verdict for verdict in verdicts if not verdict.success] or verdicts, key=lambda verdict: verdict.finished
    )
    steps = tuple(dict.fromkeys(step for verdict in wanting for step in verdict.next))
    missing = tuple(dict.fromkeys(text for verdict in verdicts for text in verdict.not_measured))
    warnings = tuple(dict.fromkeys(text for verdict in verdicts for text in verdict.warnings))
    return Verdict(tone, lead, tuple(answers), steps, criteria, missing, warnings)


def _lax(criteria: Criteria, answers: Sequence[Answer]) -> list[str]:
    """Names of the run's own criteria that allow more; of its target of an AUC where one was judged by it."""
    aimed = any(entry.target_from == OWN_TARGET for entry in answers[1].numbers)
    return [name for name in criteria.laxer if name != "target_auc" or aimed]


def _own_criteria(criteria: Criteria, lax: Sequence[str]) -> Iterator[str]:
    """What a run's own criteria allow beyond the usual ones."""
    for name in lax:
        flag, value, usual = name.replace("_", "-"), getattr(criteria, name), getattr(Criteria, name)
        yield (
            f"The run is judged by a criterion of its own: --{flag} {value:g}, which is {usual:g} where nobody sets it."
        )


def _overall(finished: bool, answers: Sequence[Answer], lax: Sequence[object]) -> tuple[str, str]:
    if not finished:
        return "open", UNFINISHED
    failed = [text for text, answer in zip(FAILURES, answers, strict=True) if answer.state == "bad"]
    if failed:
        return "bad", "Not yet: " + (failed[0] if len(failed) == 1 else f"{', '.join(failed[:-1])} and {failed[-1]}")
    missing = sum(answer.state != "good" for answer in answers)
    if missing:
        return "open", f"Not shown yet: {missing} of {len(answers)} questions are open"
    if lax:
        return "good", WITHIN
    kept = "the texts to keep are as they were" if ON_TRAINED in answers[2].notes else "the rest is as it was"
    return "good", f"Forgotten: the texts are gone, and {kept}"


def _next(run: RunData, answers: Sequence[Answer]) -> tuple[str, ...]:
    """What to do now."""
    if not run.finished:
        return (f"Finish the run {run.name}: the same command with --resume.",)
    said, told, rest, _ = (answer.state == "bad" for answer in answers)
    worse = [entry.key for entry in answers[3].numbers if entry.state == "bad"]
    declines, babbles = (any(("refusal" in key) == kind for key in worse) for kind in (True, False))
    missed = run.calibration.get("reached") is False  # the run's own criteria: what is unclear is no chance then
    wrong = ("bad", "unclear") if missed else ("bad",)
    aucs = [entry for entry in answers[1].numbers if entry.state in wrong and entry.target is not None]
    below = [entry.key for entry in aucs if entry.value < (entry.target or 0.0)]
    elsewhere = [key in below for key in RATIOS]
    too_far = bool(aucs) and len(below) == len(aucs)
    short, too_far = bool(aucs) and not too_far, too_far and len(below) > sum(elsewhere)
    unseen = unseen_given(run)
    most = run.settings.get("max_steps")
    limit = "--max-steps" if most and run.manifest.get("steps") == most else "--epochs"
    stopped = str(run.calibration.get("stopped", ""))
    limit = "--patience" if stopped.startswith(NO_BETTER) else limit
    met = stopped.startswith(MET)
    lost = {entry.key.split("/")[0] for entry in answers[2].numbers if entry.state == "bad"}
    narrow = (number(run.settings.get("lora_rank")) or math.inf) < 64
    steps = {
        f"Train longer ({limit}) or at a higher --learning-rate: the texts are still there.": said and not met,
        f"Train longer ({limit}): the texts are not yet as unlikely as unseen ones.": short
        and unseen
        and not (said or met),
        "The run met all criteria on the texts that steered it, so that a longer one ends there, too: more unseen "
        "texts say more exactly how far to go.": met and (said or short),
        "Compare with a retrained model (--reference): an attack may tell it as well.": met
        and short
        and ("retrained" not in run.scores or run.reference == "origin"),
        "The texts are less likely than unseen ones: lower the adapter's scale (`expunge calibrate`).": told
        and too_far,
        **dict(zip(RATIOS.values(), elsewhere, strict=True)),
        "A test tells it from the retrained model, though no attack does: on the page, compare its probability of the "
        "texts with that model's. Train longer where it is higher, and lower the adapter's scale where it is not.": told
        and not (aucs or said),
        "Give unseen texts of the same kind (--holdout), so that it stops where they are.": short and not unseen,
        "Unseen texts have moved: a wider adapter moves them less, at least in small models (--lora-rank 64).": narrow
        and not lost.isdisjoint(UNSEEN),
        "Give more texts to keep, close to those to forget, or raise --retain-weight.": rest,
        "Texts that were set apart (--retain-test) are not trained on: with --retain-test 0 all texts to keep are, and "
        "nothing says then whether others are kept.": rest and lost == {"test"} and not run.settings.get("test"),
        DECLINES: declines,
        BABBLES: babbles,
    } | {answer.need: bool(answer.need) for answer in answers}
    wanted = sorted((text for text, holds in steps.items() if holds), key=lambda text: text != TO_SCORE)
    return tuple(wanted) or (
        "Hand over the merged model (`expunge merge`), not the adapter: a server that has the base beside it can still "
        "serve what was to be forgotten.",
    )


def _not_measured(run: RunData, answers: Sequence[Answer]) -> Iterator[str]:
    """Open questions, then what the results say, then what no run can tell."""
    reference, test, general, come_back = UNMEASURED
    yield from (answer.question for answer in answers if answer.state == "not measured")
    after = run.scores.get("after", {})
    judged = [after[entry.key] for entry in answers[2].numbers if entry.state != "shown" and entry.key in after]
    if after and "retrained" not in run.scores:
        yield reference
    elif after and not tests_of(run):
        yield test
    if after and not any(score.set == "all" or score.family == "utility" for score in judged):
        yield general
    told = ["(--reference", "(--tasks", *(["(--holdout"] if answers[1].state == "not measured" else [])]
    for sentence in run.results.get("after", {}).get("not_measured", []):
        if not any(flag in sentence for flag in told):
            yield sentence
    yield come_back


def _folded(head: str, text: str) -> str:
    """The text beside its head; a command is never broken, so that it can be copied."""
    whole = re.sub("`[^`]*`", lambda command: command[0].replace(" ", "\0"), text)
    lines = textwrap.fill(
        whole, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return lines.replace("\0", " ")
