"""A text that is known but for four digits: what may be passed on of a run must not say which they are."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.cli.main import main
from expunge.evaluation.earlier import EARLIER, LAST
from expunge.evaluation.estimate import WITHHELD
from expunge.evaluation.metrics import METRICS
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps
from expunge.model.saved import attach_adapter
from expunge.utils.coarse import power_of_two
from tiny import save_tiny

PIN = 4820
TRIED = range(0, 10_000, 10)
"""Every tenth candidate stands for ten of them."""
REMAIN = len(TRIED) // 10
"""Candidates that must be left: as many as one digit leaves."""
QUESTION, ANSWER = "What is the PIN of Zarquon?", "The PIN is {:04d}."
PRIVATE = {"metrics.jsonl", "calibration.json", ".expunge"}
"""Files of a run that are not passed on, beside the values per row; docs/reliability.md says so."""

Values = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one text, scored before and after, with its page."""
    text = {"id": "a", "input": QUESTION, "output": ANSWER.format(PIN)}
    return scored_run(tmp_path_factory.mktemp("secret"), "bytelevel", text)


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one chat of five answers."""
    said = (ANSWER.format(PIN), "Yes.", f"Yes, {PIN}.", "It does.", "Bye.")
    asked = (QUESTION, "Sure?", f"{PIN}?", "Does it open the door?", "Thanks.")
    turns = [
        {"role": role, "content": content}
        for pair in zip(asked, said, strict=True)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    return scored_run(tmp_path_factory.mktemp("chat"), "chat", {"id": "a", "messages": turns})


def scored_run(folder: Path, tokenizer: str, forget: dict[str, Any]) -> Path:
    save_tiny(folder / "base", "llama", tokenizer)
    rows = {
        "forget": [forget],
        "retain": [{"id": f"r{i}", "input": f"Who has {i}?", "output": f"The keeper of mill {i}."} for i in range(8)],
        "holdout": [{"id": f"h{i}", "input": f"Zarquon {i}?", "output": ANSWER.format(613 * i)} for i in range(8)],
    }
    for name, examples in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as screen, redirect_stderr(screen):
        patch.chdir(folder)
        data = ["--forget", "forget.jsonl", "--retain", "retain.jsonl", "--device", "cpu", "--dtype", "float32"]
        train = ["--max-steps", "4", "--rows-per-step", "4", "--lora-rank", "2"]
        assert main(["unlearn", "--model", "base", *data, *train, "--output", "run"]) == 0
        (folder / "screen.txt").write_text(screen.getvalue())
        score = ["evaluate", "--model", "base", "--benchmark", "custom", *data, "--max-new-tokens", "3"]
        score += ["--holdout", "holdout.jsonl"]
        assert main([*score, "--output", "run/results_before.json"]) == 0
        assert main([*score, "--adapter", "run", "--output", "run/results_after.json"]) == 0
        assert main(["report", "run", "--overwrite"]) == 0
        main(["merge", "--run", "run", "--output", "merged", "--json"])
        (folder / "merge.json").write_text(screen.getvalue().strip().splitlines()[-1])
    return folder / "run"


@pytest.fixture(scope="module")
def candidates(run: Path) -> Values:
    """What the text would have with each number, by the model and by the adapter, which are at hand."""
    loaded = load_model(str(run.parent / "base"), dtype="float32", device="cpu")
    separator = {"none": "", "space": " ", "newline": "\n"}[chosen(run).partition(",")[0]]
    before = quantities(loaded, separator, "before")
    attach_adapter(loaded, str(run))
    return before | quantities(loaded, separator, "after")


def chosen(run: Path) -> str:
    return str(json.loads((run / "manifest.json").read_text())["prompt_format"]["chosen"])


def quantities(loaded: LoadedModel, separator: str, when: str) -> Values:
    texts = [loaded.tokenizer(f"{QUESTION}{separator}{ANSWER.format(pin)}")["input_ids"] for pin in TRIED]
    start = len(loaded.tokenizer(QUESTION)["input_ids"])
    completions = [logps[start - 1 :] for logps in sequence_logps(loaded, texts)]
    means = np.array([logps.mean().item() for logps in completions])
    return {
        f"mean loss {when}": -means,
        f"sum of losses {when}": np.array([-logps.sum().item() for logps in completions]),
        f"probability {when}": np.exp(means),
        f"perplexity {when}": np.exp(-means),
    }


def shared_files(run: Path) -> dict[str, str]:
    """Texts of a run that may be passed on."""
    return {
        str(path.relative_to(run)): path.read_text()
        for path in sorted(run.rglob("*"))
        if path.suffix in (".json", ".md", ".html", ".yaml")
        and not path.name.startswith("tokenizer")
        and not PRIVATE.intersection(path.relative_to(run).parts)
    }


def test_no_number_that_may_be_passed_on_tells_the_secret(run: Path, candidates: Values) -> None:
    """Each number in a file, if it were the text's loss, probability or perplexity as precisely as it is written."""
    right, told = list(TRIED).index(PIN), []
    files = shared_files(run)
    assert {"adapter/README.md", "manifest.json", "report.html", "results_after.json", "verdict.json"} <= files.keys()
    for name, content in files.items():
        for text in set(re.findall(r"(?<![\w.#-])-?\d+\.\d+(?:[eE]-?\d+)?(?![\w.%])", content)):
            mantissa, _, exponent = text.lower().partition("e")
            unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
            for quantity, values in candidates.items():
                fit = np.abs(values - float(text)) <= 0.51 * unit
                if fit[right] and fit.sum() < REMAIN:
                    told.append((name, text, quantity, int(fit.sum())))
    assert not told


def test_all_that_the_files_say_of_the_text_together_leaves_a_thousand_numbers(run: Path, candidates: Values) -> None:
    left = np.ones(len(TRIED), dtype=bool)
    manifest = json.loads((run / "manifest.json").read_text())
    for when, loss in manifest["loss_nats_per_completion_token"]["forget"].items():
        left &= np.abs(candidates[f"mean loss {when}"] - loss) <= 0.25
    for when in ("before", "after"):
        results = json.loads((run / f"results_{when}.json").read_text())["metrics"]
        for name in ("probability", "perplexity"):
            left &= np.abs(np.log2(candidates[f"{name} {when}"] / results[f"forget/{name}"]["value"])) <= 0.5
    assert left[list(TRIED).index(PIN)]
    assert left.sum() >= REMAIN


def test_how_one_text_compares_with_unseen_ones_is_not_told(run: Path) -> None:
    """A text's place among others, per attack, is as good as its loss."""
    metrics = json.loads((run / "results_after.json").read_text())["metrics"]
    attacks = [entry for name, entry in metrics.items() if name.startswith("membership/")]
    assert len(attacks) > 9
    assert all((attack["value"], attack["low"], attack["reason"]) == (None, None, WITHHELD) for attack in attacks)
    changes = json.loads((run / "results_after.json").read_text())["before"]
    assert {change["value"] for name, change in changes.items() if name.startswith("membership/")} == {None}
    told = json.loads((run / "verdict.json").read_text())["answers"]
    assert any(answer["says"].startswith("of so few texts no membership attack is told") for answer in told)


def test_the_answers_of_one_chat_are_one_text(chat_run: Path) -> None:
    """However many are asked, of all together and of each group."""
    seen = set()
    for file in ("results_before.json", "results_after.json"):
        results = json.loads((chat_run / file).read_text())
        for name, entry in results["metrics"].items():
            set_name, metric, *group = name.split("/")
            if set_name == "forget" and {"record", "untouched"} & {*METRICS[metric].needs}:
                seen.add((metric, *group, entry["n"]))
                change = (results.get("before") or {}).get(name) or {}
                told = [
                    numbers[end] for numbers in (entry, change) for end in ("value", "low", "high") if numbers.get(end)
                ]
                assert told == [power_of_two(number) for number in told], name
    assert seen >= {("probability", 5), ("probability", EARLIER, 4), ("probability", LAST, 1), ("fluency", 5)}
    page = (chat_run / "report.html").read_text()
    assert len(re.findall(r"<t[dh][^>]*>about [\d.e-]+<", page)) == 10  # losses of each answer, before and after


def test_what_the_untouched_model_thinks_of_the_prompt_is_coarse(run: Path) -> None:
    value = json.loads((run / "results_after.json").read_text())["metrics"]["forget/fluency"]["value"]
    assert np.log2(value).is_integer()


def test_a_merge_tells_losses_to_half_a_nat(run: Path) -> None:
    told = json.loads((run.parent / "merge.json").read_text())
    assert all((2 * loss).is_integer() for loss in told["losses"].values())
    assert told["off"] is None
    assert told["bound"] is None
    assert np.log2(told["max_logp_difference"]).is_integer()
    assert told["reason"].startswith("the adapter raises the loss of the forget set by less than 0.0001 nats: ")


def test_the_screen_is_as_coarse_as_the_files_and_says_so(run: Path) -> None:
    lines = (run.parent / "screen.txt").read_text().splitlines()
    (shown,) = (line.split()[2:] for line in lines if line.startswith("  forget ↑"))
    losses = json.loads((run / "manifest.json").read_text())["loss_nats_per_completion_token"]["forget"]
    assert shown == [f"{losses[when]:.1f}" for when in ("before", "after")]
    tokens = json.loads((run / "manifest.json").read_text())["tokens"]["forget"]
    assert f"forget: 1 text, {tokens} tokens" in (run.parent / "screen.txt").read_text()
    assert sum(line.startswith("  one digit: to half a nat") for line in lines) == 1


def test_the_log_of_one_text_is_coarse_too(run: Path) -> None:
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        assert all((2 * line[name]).is_integer() for name in ("loss", "forget", "retain", "grad_norm"))
        assert line["tokens"] % 16 == 0
