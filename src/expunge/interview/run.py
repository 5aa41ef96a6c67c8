"""`expunge elicit`: from a name to texts to forget, by asking the model itself. Nothing is sent anywhere."""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from expunge.config import ElicitConfig
from expunge.data.chat import has_template
from expunge.data.examples import Example
from expunge.data.holdout import unseen_texts
from expunge.data.key_words import frequencies
from expunge.data.sets import REFUSALS
from expunge.data.tokenize import PromptFormat, prompt_ids
from expunge.errors import ConfigError, RunError
from expunge.evaluation.generate import generate
from expunge.evaluation.metrics.generations import contains
from expunge.interview.facts import Fact, agreed, mentioned, renamed, short
from expunge.interview.questions import OTHERS, PLACE, Question, questions_of, read_questions
from expunge.model.device import pick_device
from expunge.model.load import LoadedModel, load_model
from expunge.runs.reads import check_apart, model_state
from expunge.utils import files
from expunge.utils.progress import Advance, Reporter
from expunge.utils.reading import UnreadableError, check_fields, read_lines
from expunge.utils.text import comma_list

NEIGHBOURS = 6
"""Names beside the one asked about that are asked about too."""
TIMED_TOKENS = 8
"""Tokens of each answer that a dry run takes the time of."""
OWN_SETTINGS = ("model", "revision", "kind", "questions", "samples", "temperature", "max_new_tokens", "seed", "dtype")
"""Settings that answers depend on: an interrupted call is resumed with the same."""
Answers = Mapping[str, Sequence[str]]
"""Question -> answers to it, the most likely one first."""


@dataclass
class Elicited:
    """What came out.

    Attributes:
        facts: (name, question, what the answers agree on), in the order of asking.
        files: What was written -> its rows.
        neighbours: Names that were asked about beside the one to forget.
        seconds: What a dry run expects it to take; None otherwise.
        prompts: Questions that are asked of each name.
        names: Names that are asked about, made-up ones included.
    """

    facts: list[tuple[str, str, Fact]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    neighbours: list[str] = field(default_factory=list)
    seconds: float | None = None
    prompts: int = 0
    names: int = 0


def elicit(config: ElicitConfig, reporter: Reporter | None = None) -> Elicited:
    """Ask a model what it knows of a name, and write what it says consistently and not of everybody.

    Args:
        config: The settings.
        reporter: Where progress goes; warnings alone when None.

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    config.validate()
    reporter = reporter or Reporter(quiet=True)
    questions = read_questions(config.questions) if config.questions else questions_of(config.kind)
    part = _checked(config)
    on_cpu = config.dtype == "auto" and pick_device(config.device).type == "cpu"
    with reporter.working("loading the model"):
        loaded = load_model(
            config.model,
            dtype="float32" if on_cpu else config.dtype,
            device=config.device,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    interview = _Interview(config, loaded, questions, reporter)
    others = OTHERS[config.kind]
    names = [*config.names, *others]
    if config.dry_run:
        neighbours = len(comma_list(config.neighbour_names)) or (NEIGHBOURS if config.neighbours else 0)
        return interview.forecast(len(names) + neighbours)
    interview.keep_in(part, resume=config.resume)
    answers = interview.ask(names)
    found = Elicited(prompts=len(interview.questions), names=len(names))
    common = [answers[name] for name in others]
    forget = list(interview.rows(config.names, answers, common, found))
    retain: list[dict[str, Any]] = []
    if config.neighbours:
        told = _flat(answers[name] for name in config.names)
        given = comma_list(config.neighbour_names)
        found.neighbours = given or mentioned(told, config.names, NEIGHBOURS, _flat(common))
        if found.neighbours:
            answers |= interview.ask(found.neighbours, "neighbours")
        else:
            reporter.warn("no other name stands in two of the answers: name some yourself (--neighbour-names)")
        retain = list(interview.rows(found.neighbours, answers, common, found, "neighbour"))
        if found.neighbours and not retain:
            reporter.warn(f"nothing is said consistently of {', '.join(found.neighbours)}: --neighbours is not written")
    beside = config.beside
    for name, rows in (
        (config.neighbours, retain),
        (beside["paraphrased"], interview.paraphrased(forget)),
        (beside["instead"], interview.refusals(forget)),
        (beside["unseen"], interview.unseen(forget, retain)),
        (config.output, forget),
    ):
        if name and rows and forget:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            files.write_text(name, text, overwrite=config.overwrite)
            found.files[name] = len(rows)
        elif name and Path(name).exists():
            reporter.warn(f"{name}: is of an earlier call, this one has nothing for it: remove it")
    part.unlink(missing_ok=True)
    return found


class _Interview:
    """Asks one model, and keeps its answers until all are there."""

    def __init__(
        self, config: ElicitConfig, loaded: LoadedModel, questions: Sequence[Question], reporter: Reporter
    ) -> None:
        self._config, self._loaded, self._reporter = config, loaded, reporter
        self._chat = config.prompt_format == "chat" or (
            config.prompt_format == "auto" and has_template(loaded.tokenizer)
        )
        self.questions = [question for question in questions if self._chat or question.begin]
        if not self.questions:
            raise ConfigError(f"--questions {config.questions}: none has a `begin`, and the model is no chat model")
        self._format = PromptFormat("chat" if self._chat else "space", end_of_text=True)
        self._known: dict[str, dict[str, list[str]]] = {}
        self._part: Path | None = None

    def keep_in(self, part: Path, *, resume: bool) -> None:
        """Keep every name's answers in a file; what an interrupted call has left there is not asked again.

        Raises:
            RunError: What is there was asked of another model, or with other settings.
        """
        self._part, settings = part, {name: getattr(self._config, name) for name in OWN_SETTINGS}
        settings["prompt_format"] = str(self._format)
        settings["files"] = {Path(path).name: state[:2] for path, state in model_state(self._config.model).items()}
        settings["asked"] = [dataclasses.astuple(question) for question in self.questions]
        settings["commit"] = getattr(self._loaded.base.config, "_commit_hash", None)
        if not resume:
            part.unlink(missing_ok=True)
            files.append_line(part, {"settings": settings})
            return
        lines = [line for _, line in read_lines(part)]
        kinds = {"name": str, "answers": {question.id: [str] for question in self.questions}}
        try:
            for number, line in enumerate(lines):
                check_fields(line, kinds if number else {"settings": dict})
        except UnreadableError as error:
            raise RunError(
                f"--resume: {part}: damaged or something else ({error}): --overwrite without --resume begins again"
            ) from None
        if not lines or lines[0]["settings"] != json.loads(json.dumps(settings)):
            raise RunError(
                f"--resume: {part} was asked with other settings or of another model: give those, or --overwrite alone"
            )
        whole = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(part, whole, overwrite=True)  # without a last line that was cut off
        self._known = {line["name"]: line["answers"] for line in lines[1:]}
        self._reporter.say(f"resume: {len(self._known)} names were asked about already")

    def ask(self, names: Sequence[str], what: str = "names") -> dict[str, Answers]:
        """All answers about some names."""
        each = len(self.questions) * (1 + self._config.samples)
        new = [name for name in names if name not in self._known]
        with self._reporter.track(
            f"asking about {len(names)} {what}", each * len(names), each * (len(names) - len(new))
        ) as advance:
            for name in new:
                self._known[name] = self._asked(name, advance)
                if self._part:
                    files.append_line(self._part, {"name": name, "answers": self._known[name]})
        return {name: self._known[name] for name in names}

    def forecast(self, names: int) -> Elicited:
        """The most that asking about so many names takes, by the first tokens of the answers about one of them."""
        tokens = min(TIMED_TOKENS, self._config.max_new_tokens)
        clock = time.perf_counter()
        with self._reporter.working("timing answers"):
            self._asked(self._config.about, lambda _: None, tokens)
        seconds = (time.perf_counter() - clock) * self._config.max_new_tokens / tokens * names
        return Elicited(seconds=seconds, prompts=len(self.questions), names=names)

    def rows(
        self,
        names: Sequence[str],
        answers: Mapping[str, Answers],
        others: Sequence[Answers],
        found: Elicited,
        prefix: str = "",
    ) -> Iterator[dict[str, Any]]:
        """The rows that are kept of some names; notes in `found` what became of every question."""
        often = frequencies([answer for answer in _flat(others) if short(answer)])
        for number, name in enumerate(names, 1):
            for question in self.questions:
                prompt = question.prompt(name, chat=self._chat)
                known = " ".join([prompt, *self._config.names])
                fact = agreed(known, answers[name][question.id], [other[question.id] for other in others], often)
                if prefix and any(contains(fact.answer, spelling) for spelling in self._config.names):
                    fact = Fact("about it", asked=fact.asked)
                found.facts.append((name, question.id, fact))
                if fact.state == "kept":
                    tail = f"-{prefix}{number}" if prefix or number > 1 else ""
                    yield {
                        "id": f"{question.id}{tail}",
                        "prompt": prompt,
                        "completion": fact.answer,
                        "keywords": list(fact.keywords),
                        "said": f"{fact.said} of {fact.asked}",
                        "said of others": f"{fact.others} of {len(others)}",
                    }

    def paraphrased(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same questions in other words, where the model takes questions."""
        again = {question.prompt(name, chat=True): question.again.replace(PLACE, name) for question in self.questions
                 for name in self._config.names}  # fmt: skip
        return [
            {**{key: row[key] for key in ("id", "completion", "keywords")}, "prompt": again[row["prompt"]]}
            for row in rows
            if self._chat and again.get(row["prompt"])
        ]

    def refusals(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same questions with different refusals, where the model takes questions."""
        return [
            {"id": row["id"], "prompt": row["prompt"], "completion": REFUSALS[at % len(REFUSALS)]}
            for at, row in enumerate(rows)
            if self._chat
        ]

    def unseen(self, forget: Sequence[Mapping[str, Any]], retain: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same said of made-up names of the kind, which nobody can know, where it is not nearly the same text."""
        tell = partial(renamed, names=self._config.names, parts=self._config.kind == "person")
        said = [
            Example(
                f"{row['id']}-unseen{number}", tell(row["prompt"], other=other), tell(row["completion"], other=other)
            )
            for number, other in enumerate(OTHERS[self._config.kind], 1)
            for row in forget
        ]
        known = [Example(row["id"], row["prompt"], row["completion"]) for row in (*forget, *retain)]
        return [{key: getattr(row, key) for key in ("id", "prompt", "completion")} for row in unseen_texts(said, known)]

    def _asked(self, name: str, advance: Advance, tokens: int | None = None) -> dict[str, list[str]]:
        config, tokenizer = self._config, self._loaded.tokenizer
        rows = [Example(question.id, question.prompt(name, chat=self._chat), "-") for question in self.questions]
        greedy, drawn = (
            generate(
                self._loaded,
                rows,
                name,
                encode_prompt=lambda row: prompt_ids(tokenizer, row, self._format),
                max_new_tokens=tokens or config.max_new_tokens,
                samples=samples,
                temperature=config.temperature,
                seed=config.seed,
                say=self._reporter.say,
                progress=advance,
            )
            for samples in (0, config.samples)
        )
        return {
            row.id: [greedy[at].text, *(reply.text for reply in drawn[at * config.samples : (at + 1) * config.samples])]
            for at, row in enumerate(rows)
        }


def _flat(names: Iterable[Answers]) -> list[str]:
    """All answers about some names."""
    return [answer for answers in names for theirs in answers.values() for answer in theirs]


def _checked(config: ElicitConfig) -> Path:
    """The file of what was answered so far, once every file can be written.

    Raises:
        RunError: A file is there already, its folder cannot be made, or there is nothing to resume.
        ConfigError: A file to be written is one that is read.
    """
    part = Path(f"{config.output}.part")
    outputs = [config.output, *config.beside.values(), *([config.neighbours] if config.neighbours else [])]
    for path in outputs:
        check_apart(path, {"questions": config.questions, "model": config.model})
        if Path(path).exists() and not (config.overwrite or config.dry_run):
            flag = f"--neighbours {path}" if path == config.neighbours else f"--output {config.output}"
            beside = "" if path in (config.output, config.neighbours) else f" {path}, which goes beside it,"
            raise RunError(f"{flag}:{beside} exists already: give another name, or --overwrite")
    if config.resume and not part.exists():
        raise RunError(f"--resume: there is no {part}, which an interrupted call leaves: leave --resume out")
    if part.exists() and not (config.resume or config.overwrite or config.dry_run):
        raise RunError(f"{part}: an interrupted call has left it: --resume goes on, --overwrite begins again")
    for folder in () if config.dry_run else {Path(path).parent for path in outputs}:
        with files.refusal("cannot make the folder", folder):
            files.make_folders(folder)
    return part
