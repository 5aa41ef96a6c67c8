"""`expunge demo`: make a model forget made-up people, and show it beside the one that never met them.

The model is the bundled subject, or a language model that learns the people first; then the retrained model is the same
language model that has learned those to keep alone.
"""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from expunge.config import UnlearnConfig
from expunge.data.examples import Example, read_examples
from expunge.data.lume import LumeData, read_lume
from expunge.data.tokenize import completion_ids, prompt_ids
from expunge.demo.teach import PROMPT_FORMAT, teach
from expunge.evaluation.assemble import assemble
from expunge.evaluation.benchmarks import semeval
from expunge.evaluation.generate import generate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics.generations import official_knowledge
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.predictions import Prediction
from expunge.evaluation.stats import mean_estimate
from expunge.evaluation.suite import Suite, reported
from expunge.evaluation.tables import semeval_table
from expunge.evaluation.values_file import values_path, write_values
from expunge.model.load import load_model
from expunge.model.saved import attach_adapter
from expunge.model.source import check_model
from expunge.runs.directory import is_staged
from expunge.runs.manifest import model_fingerprint
from expunge.runs.record import adapter_fingerprint, read_manifest
from expunge.runs.run import Run
from expunge.train.loop import unlearn
from expunge.utils.files import transaction, write_json
from expunge.utils.isolated import isolated
from expunge.utils.progress import Reporter

MAX_NEW_TOKENS = 96
NAMES = ("before", "after", "retrained")
SETTINGS: dict[str, Any] = {"lora_rank": 64}
"""What differs from the default recipe on the bundled subject: it is 224 wide where a language model is 576 and more,
and a wider adapter is done in fewer steps (208, 182 and 234 in place of 260, 234 and 260, seeds 0 to 2 on one core)."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        output: The run directory; `results_<name>.json` of each model lies in it.
        results: `before`, `after`, `retrained` -> content of its results file.
        answers: (question, what should come of it: "to forget" or "to keep", expected answer, answer of each model).
    """

    output: Path
    results: dict[str, dict[str, Any]]
    answers: list[tuple[str, str, str, dict[str, str]]]

    def __str__(self) -> str:
        lines = [semeval_table(self.results), ""]
        for question, aim, expected, answers in self.answers:
            lines += [f"{question}  ({aim})", f"  {'in the data':<13}{expected}"]
            lines += [f"  {name:<13}{answer}" for name, answer in answers.items()]
        return "\n".join(lines)


@isolated
def run_demo(
    output: str,
    reporter: Reporter | None = None,
    *,
    model: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seed: int = 0,
) -> DemoResult:
    """Make the subject forget made-up people, and score it before and after, and its retrained model.

    Args:
        output: Run directory to write.
        reporter: Where progress goes; warnings alone when None.
        model: A language model that learns the people first; what comes of it is kept in `output`-models. The bundled
            subject when None.
        overwrite: Replace an earlier run in `output`.
        resume: Go on with the interrupted run in `output`.
        seed: Seed of the run.

    Raises:
        RunError: `output` cannot be used.
        ModelError: `model` cannot be used.
        TrainingError: `model` has not learned the people.
    """
    reporter = reporter or Reporter(quiet=True)
    with as_file(files("expunge.demo") / "assets") as assets:
        data_dir, models = assets / "data", Path(f"{Path(output)}-models") if model else assets
        subject, without = models / "subject", models / "retrained"
        config = UnlearnConfig(
            recipe="default",
            model=str(subject),
            forget=str(data_dir / "forget.jsonl"),
            retain=str(data_dir / "retain.jsonl"),
            holdout=str(data_dir / "holdout.jsonl"),
            retain_test=0.0,
            output=output,
            overwrite=overwrite,
            resume=resume,
            seed=seed,
            **({} if model else SETTINGS),
        )
        data, quiz = read_lume(data_dir), read_examples(data_dir / "quiz.jsonl")
        done = _lacks_scores(config)
        if model:
            check_model(model)
            if not done:
                Run.check(config).close()
            others = [*data.retain, *quiz]
            teach(model, [*data.forget, *others], subject, reporter)
            teach(model, others, without, reporter)
        folder = Path(output) if done else unlearn(config, reporter).output
        suite = reported(semeval.suite_of(data), folder)
        scored = ((subject, None), (subject, folder / "adapter"), (without, None))
        results, said, retrained = {}, {}, None
        for name, (base, adapter) in reversed(list(zip(NAMES, scored, strict=True))):
            reporter.say(f"scoring: {name}")
            file = folder / f"results_{name}.json"
            results[name], said[name], measured = _score(
                str(base), adapter, "auto" if model else "float32", suite, quiz, file, reporter, retrained
            )
            retrained = retrained or measured
    results, said = ({name: found[name] for name in NAMES} for found in (results, said))
    return DemoResult(folder, results, _examples(data, said))


def _lacks_scores(config: UnlearnConfig) -> bool:
    """Whether the demo's own run is at its end, and only its scores are missing."""
    folder = Path(config.output)
    if not config.resume or is_staged(folder) or not (folder / "manifest.json").is_file():
        return False
    config.validate()
    manifest = read_manifest(folder / "manifest.json")
    done = manifest.get("status") == "done" and manifest["settings"].get("seed") == config.seed
    return done and Path(config.model).is_dir() and manifest["model_sha256"] == model_fingerprint(config.model)


def _score(
    model: str,
    adapter: Path | None,
    dtype: str,
    suite: Suite,
    quiz: list[Example],
    file: Path,
    reporter: Reporter,
    retrained: Measurement | None,
) -> tuple[dict[str, Any], dict[str, Prediction], Measurement]:
    """Results of one model on all metrics and the quiz, written to `file`, its predictions by id, and its measurement.

    `retrained` is the measurement of the retrained model, to compare with.
    """
    loaded = load_model(model, dtype=dtype)
    if adapter:
        attach_adapter(loaded, str(adapter))
    measurement = measure(loaded, suite, PROMPT_FORMAT, Options(MAX_NEW_TOKENS), reporter=reporter)
    predictions = semeval.predictions_of(measurement, suite)
    answers = generate(
        loaded,
        quiz,
        "retain",
        encode_prompt=lambda example: prompt_ids(loaded.tokenizer, example, PROMPT_FORMAT),
        encode_draft=lambda example: completion_ids(loaded.tokenizer, example, PROMPT_FORMAT),
        max_new_tokens=MAX_NEW_TOKENS,
    )
    said = zip(quiz, answers, strict=True)
    right = [official_knowledge(answer.text, row.completion, "qa") or 0.0 for row, answer in said]
    quizzed = mean_estimate(right).read_as("higher", "utility", "exact match, the demo's own questions")
    measurement.utility = {"all/quiz": quizzed}
    results = assemble(
        "semeval", suite, measurement,
        reference=retrained, reference_name="retrained", model=model, adapter=str(adapter) if adapter else None,
        fingerprint={
            "base": model_fingerprint(model),
            "adapter": adapter_fingerprint(adapter) if adapter else None,
            "prompt_format": str(PROMPT_FORMAT),
        },
    )  # fmt: skip
    results["quiz"] = quizzed.value
    with transaction(file.parent):  # what an interrupted demo has left is measured again
        write_values(values_path(file), measurement.table, overwrite=True)
        write_json(file, results, overwrite=True)
    return results, {row.id: row for row in (*predictions.forget, *predictions.retain)}, measurement


def _examples(data: LumeData, said: dict[str, dict[str, Prediction]]) -> list[tuple[str, str, str, dict[str, str]]]:
    """Two questions about people to forget and one about a person to keep, with the answers of each model."""
    forget, retain = ([row for row in side if row.kind == "qa"] for side in (data.forget, data.retain))
    asked = [*((row, "to forget") for row in forget[:6:5]), *((row, "to keep") for row in retain[:1])]
    return [
        (row.prompt, aim, row.completion, {name: given[row.id].model_output.strip() for name, given in said.items()})
        for row, aim in asked
    ]
