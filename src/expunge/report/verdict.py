"""The verdict on a run: three questions, each answered by a stated rule from numbers and their intervals.

An answer is `yes`, `partly`, `no` or `unknown`. Only three times yes is a success; one no is a failure, whatever the
other numbers say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from expunge.report.collect import RunData
from expunge.report.comparison import of_run
from expunge.report.readings import Reading, kept, knowledge, label, number

LEFT = 0.10
"""Share of the way from the untouched model to the floor that may be left."""
LEAST_GAP = 0.02
"""A metric on which the untouched model is closer to the floor than this says nothing."""
KEPT = 0.95
"""Share of its value before that a score of the rest must keep."""
DRIFT = 0.10
"""Relative change of the loss of unseen texts that is allowed."""
UNSEEN = ("nonmember", "holdout")
"""Sets that the model has never seen."""
LOSSES = ("nll", "document_nll")
"""What the loss of a document is called, before and since it is among the metrics."""
LOSS_RISE = 0.1
"""Rise of a loss (nats per token) that is allowed where there is nothing to relate it to."""
AUC_MARGIN = 0.05
"""Distance of a membership AUC from its target that counts as none."""
AUC_WIDTH = 0.10
"""Distance from the target that the whole interval must keep for a yes."""
SIGNIFICANCE = 0.05
WORST_FIRST = ("no", "partly", "unknown", "yes")


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        question: The question.
        answer: `yes`, `partly`, `no` or `unknown`.
        says: The answer as a clause with its numbers.
        rule: The rule behind it.
        notes: What else a reader must know.
    """

    question: str
    answer: str
    says: str
    rule: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """All findings on a run.

    Attributes:
        tone: `good`, `bad` or `open`.
        lead: The result in a few words.
        findings: Forgotten, kept, not to be told apart.
    """

    tone: str
    lead: str
    findings: tuple[Finding, Finding, Finding]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return f"{self.lead}: " + "; ".join(finding.says for finding in self.findings) + "."


def verdict(run: RunData) -> Verdict:
    """Judge one run by what its directory holds."""
    found = of_run(run)
    findings = (forgotten(run, found), held(run, found), indistinguishable(run, found))
    return Verdict(*_overall(run, [finding.answer for finding in findings]), findings)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The verdict on several runs of one configuration: on every question the worst of them.

    Where their answers are the same the first run's numbers stand for all.
    """
    if len(verdicts) == 1:
        return verdicts[0]
    findings = []
    for own in zip(*(verdict.findings for verdict in verdicts), strict=True):
        low = min(own, key=lambda finding: WORST_FIRST.index(finding.answer))
        same = sum(finding.answer == low.answer for finding in own)
        where = f"in all {len(own)} runs" if same == len(own) else f"in {same} of {len(own)} runs"
        findings.append(Finding(low.question, low.answer, f"{low.says}, {where}", low.rule, low.notes))
    lead = min(verdicts, key=lambda verdict: ("bad", "open", "good").index(verdict.tone))
    return Verdict(lead.tone, lead.lead, tuple(findings))


def _overall(run: RunData, answers: list[str]) -> tuple[str, str]:
    if not run.finished:
        return "open", "Not finished"
    if all(answer == "yes" for answer in answers):
        return "good", "Forgotten, kept, and not to be told apart from a model that never saw the texts"
    if "no" in answers or "partly" in answers:
        failed = [
            words
            for answer, words in zip(answers, ("not forgotten", "damaged", "still recognisable"), strict=True)
            if answer in ("no", "partly")
        ]
        if answers[0] == "partly":
            failed[0] = "not wholly forgotten"
        text = failed[0] if len(failed) == 1 else ", ".join(failed[:-1]) + " and " + failed[-1]
        return "bad", "Not a success: " + text
    return "open", "Not proven"


# --- forgotten? ----------------------------------------------------------------------------------


def forgotten(run: RunData, found: Mapping[str, Mapping[str, Reading]]) -> Finding:
    """Whether every metric of the forget set has come down to the floor: the reference's value, or 0 without one."""
    question = "Is it forgotten?"
    reference = found.get("reference", {})
    rule = (
        f"Yes when on every metric of the forget texts at most {LEFT:.0%} of the way from the untouched model to "
        f"{'the reference' if reference else '0'} is left, and the upper end of its interval says so too; no when on "
        f"average half of the way or more is left."
    )
    before, after = found.get("before", {}), knowledge(found.get("after", {}))
    states, shares = {}, {}
    for key, reading in after.items():
        floor = reference[key].value if key in reference else (0.0 if not reference else None)
        if key not in before or before[key].value is None or floor is None:
            continue
        gap = before[key].value - floor
        if gap < LEAST_GAP:
            continue
        shares[key] = (reading.value - floor) / gap
        high = (reading.high - floor) / gap if reading.bounded else shares[key]
        low = (reading.low - floor) / gap if reading.bounded else shares[key]
        states[key] = "yes" if high <= LEFT else "no" if low > LEFT else "unknown"
    if not shares:
        return _forgotten_by_losses(run, question, rule, scored=bool(after))
    notes = [] if reference else ["Without a reference model 0 stands in for what a model that never saw them says."]
    if not any(after[key].bounded for key in shares):
        notes.append("These results hold no intervals: the values alone decide.")
    key = max(shares, key=shares.__getitem__)
    average = sum(max(0.0, share) for share in shares.values()) / len(shares)
    gone = sum(state == "yes" for state in states.values())
    floor = f", {number_text(reference[key].value)} in the reference" if key in reference else ""
    most = (
        f"{label(after[key])}: {number_text(before[key].value)} before, {interval_text(after[key])} after{floor}, so "
        f"{max(0.0, shares[key]):.0%} of the way is left"
    )
    if all(state == "yes" for state in states.values()):
        where = f"all {len(states)} metrics" if len(states) > 1 else "the one metric"
        says = f"the texts are forgotten on {where} (most is left on {most})"
        return Finding(question, "yes", says, rule, tuple(notes))
    says = f"forgotten beyond doubt on {gone} of {len(states)} metrics (most is left on {most})"
    if "no" not in states.values():
        return Finding(
            question,
            "unknown",
            says.replace(" (", ", the intervals of the others leave it open (", 1),
            rule,
            tuple(notes),
        )
    return Finding(question, "no" if average >= 0.5 else "partly", says, rule, tuple(notes))


def _forgotten_by_losses(run: RunData, question: str, rule: str, *, scored: bool) -> Finding:
    why = "no results before unlearning to compare with" if scored else "no scores of the forget texts"
    pair, unseen = run.losses.get("forget"), run.losses.get("holdout")
    if not _numbers(pair):
        return Finding(question, "unknown", f"whether the texts are forgotten is unknown ({why})", rule)
    says = _moved("forget", pair)
    if _numbers(unseen):
        says += f" (texts never seen: {number_text(unseen['before'])} before)"
        gap = unseen["before"] - pair["before"]
        if gap > 0 and pair["after"] - pair["before"] < LEFT * gap:
            return Finding(question, "no", says, rule, (f"Judged by losses: {why}.",))
    elif pair["after"] <= pair["before"]:
        return Finding(question, "no", says, rule, (f"Judged by losses: {why}.",))
    return Finding(question, "unknown", says + f", which alone proves nothing ({why})", rule)


# --- kept? ---------------------------------------------------------------------------------------


def held(run: RunData, found: Mapping[str, Mapping[str, Reading]]) -> Finding:
    """Whether the rest is still known, and texts that nobody mentioned are as likely as before."""
    question = "Is the rest kept?"
    rule = (
        f"Yes when every score of the texts to keep and of general ability has at least {KEPT:.0%} of its value "
        f"before, and the loss of texts that the model has never seen moved by at most {DRIFT:.0%}; no when one of "
        "them has not, unless its interval reaches that far."
    )
    before, after = found.get("before", {}), kept(found.get("after", {}))
    shares, states = {}, {}
    for key, reading in after.items():
        if key not in before or not before[key].value:
            continue
        shares[key] = reading.value / before[key].value
        high = reading.high / before[key].value if reading.bounded else shares[key]
        states[key] = "yes" if shares[key] >= KEPT else "no" if high < KEPT else "unknown"
    drift, drift_says = _drift(run, found)
    if not shares:
        return _held_by_losses(run, question, rule, drift, drift_says)
    key = min(shares, key=shares.__getitem__)
    lowest = f"{label(after[key])} {number_text(before[key].value)} before, {interval_text(after[key])} after"
    bad = [key for key, state in states.items() if state == "no"]
    notes = () if drift is not None else ("Drift on texts that the model has never seen was not measured.",)
    parts = []
    if bad:
        parts.append(
            f"{len(bad)} of {len(shares)} scores of the rest fell below {KEPT:.0%} of their value (lowest: {lowest})"
        )
    elif min(shares.values()) >= 1:
        parts.append(f"the rest is kept (none of {len(shares)} scores fell)")
    else:
        parts.append(f"the rest is kept (lowest of {len(shares)} scores: {lowest})")
    if drift_says:
        parts.append(drift_says)
    if bad or drift == "no":
        answer = "no"
    elif "unknown" in states.values():
        answer = "unknown"
    else:
        answer = "yes"
    joint = " but " if drift == "no" and not bad else " and "
    return Finding(question, answer, joint.join(parts), rule, notes)


def _drift(run: RunData, found: Mapping[str, Mapping[str, Reading]]) -> tuple[str | None, str]:
    """`yes` (no drift to speak of), `no`, or None where nothing was measured; and the clause.

    Of the losses on the training's own unseen texts and of those in the results, the larger change counts. A run is not
    reported on the texts that steered it, so the results before and after are compared where they are of as many
    texts, and only if what the adapter does to each text was not measured.
    """
    changes = []
    pair = run.losses.get("holdout")
    if _numbers(pair) and pair["before"] > 0:
        changes.append((pair["after"] / pair["before"] - 1, f"{pair['before']:.2f} to {pair['after']:.2f}"))
    before, after = found.get("before", {}), found.get("after", {})
    losses = {own.set: own for own in after.values() if own.name in LOSSES and own.set in UNSEEN and own.value}
    drifts = [own.value for own in after.values() if own.family == "drift" and own.target == 0]
    for drift in (own for own in drifts if own is not None):
        now = next(iter(losses.values())).value if losses else None
        if now is not None and now > drift:
            changes.append((drift / (now - drift), f"{now - drift:.2f} to {now:.2f}"))
        else:
            changes.append((drift / (LOSS_RISE / DRIFT), f"what it was to {drift:+.2f}"))
    for own in losses.values() if not drifts else ():
        earlier = before.get(own.key)
        if earlier and earlier.value and earlier.n == own.n:
            changes.append((own.value / earlier.value - 1, f"{earlier.value:.2f} to {own.value:.2f}"))
    if not changes:
        return None, ""
    change, text = max(changes, key=lambda pair: abs(pair[0]))
    if abs(change) <= DRIFT:
        return (
            "yes",
            f"the loss of unseen texts moved by {f'{change:+.0%}' if abs(change) >= 0.005 else 'less than 1%'}",
        )
    return "no", f"the loss of unseen texts went from {text} nats per token ({change:+.0%}), which is damage"


def _moved(name: str, pair: Mapping[str, float]) -> str:
    before, after = number_text(pair["before"]), number_text(pair["after"])
    return f"the loss of the {name} texts went from {before} to {after} nats per token"


def _held_by_losses(run: RunData, question: str, rule: str, drift: str | None, drift_says: str) -> Finding:
    pair = run.losses.get("retain")
    says = []
    rise = 0.0
    if _numbers(pair):
        rise = pair["after"] - pair["before"]
        says.append(_moved("retain", pair))
    if drift_says:
        says.append(drift_says)
    if drift == "no" or rise > max(LOSS_RISE, DRIFT * (pair["before"] if _numbers(pair) else 0)):
        return Finding(question, "no", " and ".join(says), rule, ("Judged by losses: no scores of the rest.",))
    text = " and ".join(says) + ", no scores" if says else "no losses and no scores"
    return Finding(question, "unknown", f"whether the rest is kept is unknown ({text})", rule)


# --- distinguishable? ----------------------------------------------------------------------------


def indistinguishable(run: RunData, found: Mapping[str, Mapping[str, Reading]]) -> Finding:
    """Whether membership attacks, or tests against a reference, tell the forgotten texts from unseen ones."""
    question = "Does it look like a model that never saw the texts?"
    reference = found.get("reference", {})
    rule = (
        f"Yes when the interval of every membership AUC lies within {AUC_WIDTH:g} of its target (without an interval: "
        f"the value within {AUC_MARGIN:g}); no when an interval, or a value without one, stays more than "
        f"{AUC_MARGIN:g} away, on either side, or when a test against the reference gives p < {SIGNIFICANCE:g}. "
        "The target is the reference's AUC, or 0.5 without one."
    )
    states, distance, targets = {}, {}, {}
    attacks = {
        key: reading
        for key, reading in found.get("after", {}).items()
        if reading.family == "membership" and reading.name.endswith("auc") and reading.value is not None
    }
    for key, reading in attacks.items():
        known = reference.get(key)
        target = known.value if known and known.value is not None else reading.target
        targets[key] = target = 0.5 if target is None else target
        distance[key] = abs(reading.value - target)
        states[key] = _auc_state(reading, target)
    tests = _tests(run)
    notes = [] if reference else ["0.5 is only a stand-in: without a reference model the true target is unknown."]
    if attacks and not any(reading.bounded for reading in attacks.values()):
        notes.append("These results hold no interval of the AUC: the value alone decides.")
    parts = []
    if attacks:
        candidates = [key for key in attacks if states[key] == "no"] or list(attacks)
        key = max(candidates, key=distance.__getitem__)
        whose = "in the reference" if key in reference else "ideally"
        numbers = f"{label(attacks[key])} {interval_text(attacks[key])}, {number_text(targets[key])} {whose}"
        what = {
            "no": "a membership attack tells forgotten from unseen texts",
            "unknown": "whether a membership attack tells forgotten from unseen texts is open, the interval is wide",
            "yes": "no membership attack tells forgotten from unseen texts",
        }[states[key]]
        if states[key] == "no" and attacks[key].value < targets[key]:
            what = "forgotten texts stand out as less likely than unseen ones"
        parts.append(f"{what} ({numbers})")
    failed = [name for name, p in tests.items() if p < SIGNIFICANCE]
    if failed:
        parts.append(f"a test tells it from the reference ({_test(failed[0])}p = {tests[failed[0]]:.2g})")
    if not parts:
        return Finding(question, "unknown", "membership was not measured", rule, tuple(notes))
    answers = [*states.values(), *(["no"] if failed else [])]
    return Finding(question, min(answers, key=WORST_FIRST.index), " and ".join(parts), rule, tuple(notes))


def _test(name: str) -> str:
    """A test's name before its p: `loss_ks_p` is a Kolmogorov-Smirnov test of losses."""
    return (
        f"{name.removesuffix('_p').removesuffix('_ks').replace('_', ' ')}, {'Kolmogorov-Smirnov, ' * ('_ks' in name)}"
    )


def _auc_state(reading: Reading, target: float) -> str:
    if reading.value is None:
        return "unknown"
    if not reading.bounded:
        return "yes" if abs(reading.value - target) <= AUC_MARGIN else "no"
    if reading.low > target + AUC_MARGIN or reading.high < target - AUC_MARGIN:
        return "no"
    return "yes" if abs(reading.low - target) <= AUC_WIDTH and abs(reading.high - target) <= AUC_WIDTH else "unknown"


def _tests(run: RunData) -> dict[str, float]:
    reference = run.results.get("after", {}).get("reference")
    tests = reference.get("indistinguishable") if isinstance(reference, Mapping) else None
    if not isinstance(tests, Mapping):
        return {}
    return {str(name): p for name, value in tests.items() if (p := number(value)) is not None}


def _numbers(pair: Mapping[str, object] | None) -> bool:
    return pair is not None and number(pair.get("before")) is not None and number(pair.get("after")) is not None


# --- text ----------------------------------------------------------------------------------------


def number_text(value: float | None) -> str:
    """A number as the page writes it: three digits after the point below 10, fewer above."""
    if value is None:
        return "–"
    if value and (abs(value) >= 1e5 or abs(value) < 5e-4):
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def interval_text(reading: Reading) -> str:
    """Value and 95% interval."""
    if not reading.bounded:
        return number_text(reading.value)
    return f"{number_text(reading.value)} (95% interval {number_text(reading.low)} to {number_text(reading.high)})"
