"""`evaluate --run`: what a run was made with is what it is scored with; and what a results file says it is of."""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from workspace import FORGET, MARKER, QUICK, RETAIN, UNLEARN, Result, write_jsonl

from expunge.config import EvaluateConfig
from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, prompt_ids, tokenize
from expunge.errors import RunError
from expunge.evaluation import run as evaluation
from expunge.evaluation.checks import resolved
from expunge.evaluation.generate import AT_ONCE, greedy
from expunge.evaluation.measurement import Values
from expunge.model.load import load_model
from tiny import save_tiny

Run = Callable[..., Result]
SMALL = ("--max-new-tokens", "4", "--device", "cpu")
FILES = ("--benchmark", "custom", "--forget", "forget.jsonl", "--retain", "retain.jsonl")


def read(path: str) -> dict:
    return json.loads(Path(path).read_text())


def test_a_run_is_scored_as_it_was_made(work: Path, expunge: Run) -> None:
    told = expunge("evaluate", "--run", "done", *SMALL)
    assert told.code == 0, told.err
    results, manifest = read("done/results.json"), read("done/manifest.json")
    assert (results["benchmark"], results["model"], results["adapter"]) == ("custom", "model", "done")
    assert results["fingerprint"]["base"] == manifest["model_sha256"]
    assert set(results["fingerprint"]["data"]) == {"forget", "retain"}
    assert results["fingerprint"]["prompt_format"] == manifest["prompt_format"]["chosen"]
    assert {"forget/probability", "retain/probability", "forget/fluency"} < set(results["metrics"])
    assert MARKER not in json.dumps(results)

    by_hand = expunge("evaluate", "--model", "model", "--adapter", "done", *FILES, *SMALL, "--output", "hand.json")
    assert by_hand.code == 0, by_hand.err
    as_model = expunge("evaluate", "--model", "done", *FILES, *SMALL, "--output", "model.json")
    assert as_model.code == 0, as_model.err
    for name in ("hand.json", "model.json"):
        assert read(name)["metrics"] == results["metrics"]
        assert read(name)["fingerprint"] == results["fingerprint"]

    write_jsonl(work / "others.jsonl", [{**row, "id": f"o{row['id']}"} for row in FORGET[:3]])
    told = expunge("evaluate", "--run", "done", *SMALL, "--forget", "others.jsonl", "--output", "o.json")
    assert told.code == 0, told.err
    assert read("o.json")["metrics"]["forget/probability"]["n"] == 3
    compared = expunge("compare", "done/results.json", "o.json")
    assert "were not measured alike: the forget data is not the same" in " ".join(compared.out.split())
    assert expunge("compare", "done/results.json", "o.json", "--pool").code == 2


def test_a_run_that_was_made_on_a_run_is_a_model_too(work: Path) -> None:
    shutil.copytree("done", "second")
    manifest = read("second/manifest.json")
    manifest["settings"]["model"] = "done"
    Path("second/manifest.json").write_text(json.dumps(manifest))
    asked = EvaluateConfig(model="second", benchmark="custom", forget="forget.jsonl", output="r.json")
    once = resolved(asked)
    assert (once.model, once.adapter) == ("done", "second")
    assert resolved(once) == once


def test_facts_are_counted_before_and_after_and_key_words_can_be_read_and_given(work: Path, expunge: Run) -> None:
    told = expunge("evaluate", "--run", "done", *SMALL, "--key-words", "words.jsonl")
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in Path("words.jsonl").read_text().splitlines()]
    assert [line["keywords"] for line in lines] == [[str(n + 3)] for n in range(4)]  # all live in Larch Lane
    assert Path("words.jsonl").stat().st_mode & 0o077 == 0
    results, before = read("done/results.json"), read("done/results_before.json")
    assert before["adapter"] is None
    score, change = results["metrics"]["forget/key_fact"], results["before"]["forget/key_fact"]
    assert change["value"] == score["value"] - before["metrics"]["forget/key_fact"]["value"]
    assert change["n"] == score["n"] == 4
    assert "forget, key facts said: 0 of 4 (0 before; change" in " ".join(told.out.split())
    assert "retain, refused: 0 of 6 (0 before" in " ".join(told.out.split())
    assert Path("done/results_before.parquet").exists()
    assert "Is it still said?" in told.out
    assert "  next  " in told.out
    assert read("done/verdict.json")["answers"][3]["state"] != "not measured"
    assert "report    done/report.html" in told.out
    assert "No scores: there is no results file" not in Path("done/report.html").read_text()

    assert expunge("evaluate", "--run", "done", *SMALL, "--key-words", "words.jsonl", "--overwrite").code == 2
    told = expunge("evaluate", "--run", "done", *SMALL, "--forget", "words.jsonl", "--output", "again.json")
    assert told.code == 0, told.err
    assert read("again.json")["metrics"] == results["metrics"]

    again = [{"id": row["id"], "prompt": f"Tell me, {row['input']}", "completion": row["output"]} for row in FORGET[1:]]
    write_jsonl(work / "p.jsonl", [*again, {**again[0], "id": "deleted"}])
    asked = ("evaluate", "--run", "done", *SMALL, "--paraphrased", "p.jsonl", "--output")
    told = expunge(*asked, "p.json")
    assert told.code == 0, told.err
    assert read("p.json")["metrics"]["forget/key_fact/paraphrased"]["n"] == 3
    assert "1 rows of --paraphrased are for ids that --forget has not" in " ".join(read("p.json")["not_measured"])
    assert "forget, paraphrased, key facts said: 0 of 3" in " ".join(told.out.split())
    write_jsonl(work / "p.jsonl", [*again, again[0]])
    assert "p.jsonl:4: is a second one for its id" in expunge(*asked, "q.json").err


def test_the_untouched_models_accuracy_stands_in_its_own_results(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("official").mkdir()
    kinds = ("sc1", "qa0", "sc1", "qa0")
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        records = [{**row, "id": row["id"] + kind, "task": "Task1"} for row, kind in zip(rows, kinds, strict=False)]
        write_jsonl(Path("official") / f"{name}.jsonl", records)
    accuracies = iter((0.25, 0.75))  # with the adapter, then without

    def run_tasks(*given: object, **named: object) -> dict[tuple[str, str], Values]:
        return {("all", "mmlu_acc"): Values(("a", "b"), ("", ""), ("a", "b"), np.full(2, next(accuracies)))}

    monkeypatch.setattr(evaluation, "check_tasks", lambda tasks, path: None)
    monkeypatch.setattr(evaluation, "run_tasks", run_tasks)
    asked = ("--benchmark", "lume", "--data", "official", "--tasks", "mmlu", "--output", "r.json")
    told = expunge("evaluate", "--run", "done", *SMALL, *asked)
    assert told.code == 0, told.err
    assert [read(name)["mmlu"] for name in ("r.json", "results_before.json")] == [0.25, 0.75]
    before = read("results_before.json")
    assert before["metrics"]["all/mmlu"]["value"] == 0.75
    assert "mmlu" not in before["missing"]
    assert not any("General abilities" in sentence for sentence in before["not_measured"])


def test_what_was_not_trained_on_is_reported_apart_and_judges_what_is_kept(work: Path, expunge: Run) -> None:
    write_jsonl(
        work / "many.jsonl", [{"prompt": f"Who is {n}?", "completion": f"{n * 7919} keeps."} for n in range(12)]
    )
    made = expunge(*UNLEARN, *QUICK, "--retain", "many.jsonl", "--output", "run")
    assert made.code == 0, made.err
    assert "2 of 12 retain texts are not trained on" in " ".join(made.err.split())
    assert "retain, not trained on" in made.out
    manifest = read("run/manifest.json")
    assert (manifest["rows"]["retain"], manifest["rows"]["test"], manifest["settings"]["retain_test"]) == (10, 2, 0.2)
    told = expunge("evaluate", "--run", "run", *SMALL)
    assert told.code == 0, told.err
    assert "these are not the test texts" not in told.err
    metrics = read("run/results.json")["metrics"]
    assert (metrics["retain/probability"]["n"], metrics["test/probability"]["n"]) == (10, 2)
    kept = json.loads(expunge("verdict", "run", "--json").out)["run"]["answers"][2]
    states = {number["key"].split("/")[0]: number["state"] for number in kept["numbers"] if "/prob" in number["key"]}
    assert (states["test"], states["retain"]) == ("shown", "good"), "two texts show nothing, unless one is lost"
    assert any("trained on" in note for note in kept["notes"])
    manifest["data"]["test"] = manifest["data"]["retain"]  # as where another version has set other texts apart
    Path("run/manifest.json").write_text(json.dumps(manifest))
    told = expunge("evaluate", "--run", "run", *SMALL, "--output", "again.json")
    assert "--retain many.jsonl: these are not the test texts that the run was made with" in " ".join(told.err.split())


def test_texts_to_judge_by_take_the_place_of_those_that_were_set_apart(work: Path, expunge: Run) -> None:
    write_jsonl(
        work / "many.jsonl", [{"prompt": f"Who is {n}?", "completion": f"{n * 7919} keeps."} for n in range(12)]
    )
    write_jsonl(work / "other.jsonl", [{"prompt": f"And {n}?", "completion": f"{n * 31} stays."} for n in range(3)])
    made = expunge(*UNLEARN, *QUICK, "--retain", "many.jsonl", "--output", "run")
    assert made.code == 0, made.err
    told = expunge("evaluate", "--run", "run", "--test", "other.jsonl", *SMALL)
    assert told.code == 0, told.err
    metrics = read("run/results.json")["metrics"]
    assert (metrics["retain/probability"]["n"], metrics["test/probability"]["n"]) == (12, 3)
    rows = [json.loads(line) for name in ("many", "other") for line in Path(f"{name}.jsonl").read_text().splitlines()]
    write_jsonl(work / "mixed.jsonl", rows[8:])
    told = expunge("evaluate", "--run", "run", "--test", "mixed.jsonl", *SMALL, "--overwrite")
    assert told.code == 0, told.err
    results = read("run/results.json")
    assert results["metrics"]["test/probability"]["n"] == 3
    assert any(note.startswith("4 of 7 test texts are, or nearly are, trained on") for note in results["not_measured"])


def test_texts_to_keep_are_told_from_those_of_the_run(work: Path, expunge: Run) -> None:
    def rows(name: str, count: int) -> str:
        file = f"{name}.jsonl"
        write_jsonl(
            work / file, [{"prompt": f"Who is {name} {n}?", "completion": f"{n * 79} stays."} for n in range(count)]
        )
        return file

    many, other, unseen = rows("many", 12), rows("other", 12), rows("unseen", 4)
    made = expunge(*UNLEARN, *QUICK, "--retain", many, "--holdout", unseen, "--eval-every", "0", "--output", "run")
    assert made.code == 0, made.err
    given = read("run/manifest.json")["texts"]
    assert set(given) == {"forget", "retain", "test", "kept", "holdout", "unsteered"}

    def notes(*more: str) -> tuple[str, str]:
        told = expunge("evaluate", "--run", "run", *SMALL, "--overwrite", *more)
        assert told.code == 0, told.err
        answers = read("run/verdict.json")["answers"]
        return answers[2]["answer"], " ".join(answers[1]["notes"] + answers[2]["notes"])

    answer, told = notes()
    assert "that the run trained on" in told
    assert "other texts to keep" not in told
    assert "other unseen texts" not in told
    measured = read("run/results.json")["fingerprint"]["texts"]
    assert measured == {name: given[name] for name in ("forget", "retain", "test", "holdout")}
    answer, told = notes("--retain", other)
    assert (answer, "trained on" in told) == ("unclear", False)
    assert "Measured on other texts to keep than the run's own." in told
    answer, told = notes("--test", other)  # beside the run's own
    assert "Measured on other texts to keep than the run's own, too." in told
    assert read("run/results.json")["fingerprint"]["texts"]["retain"] == given["kept"]
    answer, told = notes("--holdout", other)
    assert "Compared with other unseen texts than those that the run was given." in told
    for name in ("results.json", "results_before.json", "manifest.json"):
        assert "stays" not in Path(f"run/{name}").read_text()


def test_files_of_ones_own_need_no_benchmark_and_chats_keep_their_turns(work: Path, expunge: Run) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does Ann live?"}]
    rows = [{"id": "a", "messages": [*turns, {"role": "assistant", "content": "In Larch Lane 7."}]}]
    write_jsonl(work / "chat.jsonl", rows)
    asked = ("evaluate", "--model", "model", *SMALL, "--output", "r.json", "--prompt-format", "space")
    told = expunge(*asked, "--forget", "chat.jsonl", "--key-words", "words.jsonl")
    assert told.code == 0, told.err
    assert read("r.json")["benchmark"] == "custom"
    (line,) = map(json.loads, Path("words.jsonl").read_text().splitlines())
    assert line["messages"] == rows[0]["messages"]
    assert "prompt" not in line
    again = expunge(*asked, "--forget", "words.jsonl", "--overwrite")
    assert again.code == 0, again.err


def test_texts_alone_are_continued_from_their_middle(work: Path, expunge: Run) -> None:
    """They are those of the run, though they are asked in halves."""
    for name in ("forget", "unseen", "kept"):
        words = ([f"{name}{place * (number + 3)}" for place in range(20)] for number in range(4))
        write_jsonl(work / f"{name}.jsonl", [{"text": " ".join([*text, MARKER])} for text in words])
    files = ("--forget", "forget.jsonl", "--retain", "kept.jsonl", "--holdout", "unseen.jsonl", "--retain-test", "0")
    made = expunge("unlearn", "--model", "model", *files, *QUICK, "--output", "run", "--eval-every", "0")
    assert made.code == 0, made.err
    told = expunge("evaluate", "--run", "run", *SMALL)
    assert told.code == 0, told.err
    assert "these are not the forget texts" not in told.out + told.err
    results = read("run/results.json")
    assert {"forget/rouge_l_recall", "holdout/rouge_l_recall", "forget/repetition"} < set(results["metrics"])
    assert "retain/rouge_l_recall" not in results["metrics"]
    assert "4 of 4 retain texts have no prompt" in " ".join(results["not_measured"])
    assert MARKER not in json.dumps(results)
    answers = {answer["question"]: answer["answer"] for answer in read("run/verdict.json")["answers"]}
    assert answers["Does it still speak well?"] == "yes"


def test_a_run_needs_no_texts_to_keep(work: Path, expunge: Run) -> None:
    made = expunge("unlearn", "--model", "model", "--forget", "forget.jsonl", *QUICK, "--output", "run")
    assert made.code == 0, made.err
    manifest = read("run/manifest.json")
    assert [term["name"] for term in manifest["terms"]] == ["forget", "replay"]
    assert expunge("evaluate", "--run", "run", *SMALL).code == 0
    assert expunge("merge", "--run", "run", "--output", "merged").code != 2
    assert any("No texts to keep were given" in note for note in read("run/results.json")["not_measured"])


@pytest.mark.parametrize("style", ["newline", "space", "none", "chat"])
def test_the_prompt_format_is_that_of_the_run(work: Path, expunge: Run, style: str) -> None:
    if style == "chat":
        save_tiny(work / "model", "llama", "chat")
    made = expunge(*UNLEARN, *QUICK, "--output", "run", "--prompt-format", style, "--end-of-text", "no")
    assert made.code == 0, made.err
    scored = ("evaluate", "--model", "model", "--adapter", "run", *FILES, *SMALL)
    told = expunge(*scored, "--output", "r.json")
    assert told.code == 0, told.err
    end = "with" if style == "chat" else "without"  # a template that has its own
    assert read("r.json")["fingerprint"]["prompt_format"] == f"{style}, {end} end-of-text"
    told = expunge(*scored, "--output", "e.json", "--prompt-format", style, "--end-of-text", "no")
    assert told.code == 0, told.err
    assert read("e.json")["metrics"] == read("r.json")["metrics"]
    other = "space" if style == "newline" else "newline"
    told = expunge(*scored, "--output", "s.json", "--prompt-format", other)
    assert told.code == 0, told.err
    assert f"--prompt-format {other}: the run was made with --prompt-format {style}" in " ".join(told.err.split())
    perplexities = [read(name)["metrics"]["forget/perplexity"]["value"] for name in ("r.json", "s.json")]
    assert perplexities[0] != pytest.approx(perplexities[1], rel=0.01)
    compared = expunge("compare", "r.json", "s.json")
    assert "the prompt format is not the same" in " ".join(compared.out.split())


def test_texts_that_were_edited_after_the_run_are_said(work: Path, expunge: Run) -> None:
    """EleutherAI/lm-evaluation-harness#2579, meta-pytorch/torchtune#2459: scored in other tokens than trained in."""
    write_jsonl(work / "forget.jsonl", [{**FORGET[0], "output": "The new mill."}, *FORGET[1:]])
    told = expunge("evaluate", "--run", "done", *SMALL)
    assert told.code == 0, told.err
    assert "--forget forget.jsonl: these are not the forget texts that the run was made with" in " ".join(
        told.err.split()
    )


def test_results_of_another_model_are_not_shown_as_before(work: Path, expunge: Run) -> None:
    shutil.copytree("model", "other")
    settings = read("other/config.json")
    Path("other/config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    before = ("evaluate", *FILES, *SMALL, "--output", "done/results_before.json", "--overwrite")
    after = ("evaluate", "--model", "model", "--adapter", "done", *FILES, *SMALL, "--output", "done/results.json")
    for model, shown in (("other", False), ("model", True)):
        assert expunge(*before, "--model", model).code == 0
        told = expunge(*after, "--overwrite")
        assert told.code == 0, told.err
        assert ("results_before.json is not shown: its base model" in " ".join(told.err.split())) != shown
        assert ("before     after" in told.out) == shown


def test_the_untouched_model_is_measured_again_where_its_results_are_of_something_else(
    work: Path, expunge: Run
) -> None:
    made = expunge("unlearn", "--model", "model", "--forget", "forget.jsonl", *QUICK, "--output", "run")
    assert made.code == 0, made.err
    assert expunge("evaluate", "--run", "run", *SMALL).code == 0
    first = Path("run/results_before.json").read_bytes()
    asked = ("evaluate", "--run", "run", *SMALL, "--retain", "retain.jsonl")
    refused = expunge(*asked, "--output", "run/results_after.json")
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert "results_before.json: is of something else than what is measured now (retain data)" in refused.err
    assert "give --overwrite to measure the untouched model again" in refused.err
    assert Path("run/results_before.json").read_bytes() == first
    told = expunge(*asked, "--overwrite")
    assert told.code == 0, told.err
    assert "the untouched model, for what changed" in told.err
    assert "results_before.json is" not in told.err
    results, before = read("run/results.json"), read("run/results_before.json")
    assert before["fingerprint"]["data"] == results["fingerprint"]["data"]
    change, score = results["before"]["retain/probability"], results["metrics"]["retain/probability"]
    assert change["value"] == pytest.approx(score["value"] - before["metrics"]["retain/probability"]["value"])
    told = expunge(*asked, "--overwrite")
    assert "the untouched model, for what changed" not in told.err
    drawn = (*asked, "--samples", "2")
    refused = expunge(*drawn, "--output", "run/results_after.json")
    assert refused.code == 2
    assert "than what is measured now (samples, temperature, seed)" in refused.err
    assert expunge(*drawn, "--overwrite").code == 0
    assert "forget/key_fact_at_2" in read("run/results.json")["before"]
    assert "the untouched model, for what changed" not in expunge(*asked, "--overwrite").err  # it has more, not less
    before = read("run/results_before.json")
    shutil.copytree("model", "other")
    settings = read("other/config.json")
    Path("other/config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    by_hand = ("evaluate", "--model", "other", *FILES, *SMALL, "--output", "run/results_before.json", "--overwrite")
    assert expunge(*by_hand).code == 0
    assert expunge(*drawn, "--overwrite").code == 0
    assert read("run/results_before.json") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "nowhere"), "--run: nowhere/manifest.json"),
        (("--run", "done", "--adapter", "other"), "--run done: has an adapter: leave --adapter out"),
        (
            ("--model", "done", "--adapter", "done", "--output", "r.json"),
            "--model done: is a run, which has an adapter",
        ),
        (
            ("--model", "done", "--adapter", "done/adapter", "--output", "r.json"),
            "--model done: is a run, which has an adapter: leave --adapter out",
        ),
        (
            ("--model", "./other/../done", "--adapter", "done", "--output", "r.json"),
            "done: is a run, which has an adapter: leave --adapter out",
        ),
        (("--run", "done", "--model", "done"), "--model done: is a run, which has an adapter: leave --run out"),
        (("--output", "r.json"), "--model is missing: give a folder or a Hub name, or --run"),
        (("--run", "done", "--benchmark", "tofu"), "--benchmark tofu needs --data"),
        (("--run", "done", "--test", "t", "--retain-test", ".5"), "--test and --retain-test contradict each other"),
        (
            ("--model", "m", "--benchmark", "tofu", "--data", "d", "--output", "r.json", "--retain-test", "0.5"),
            "--benchmark tofu brings its own files: leave --retain-test out",
        ),
    ],
)
def test_what_contradicts_a_run_is_refused(work: Path, expunge: Run, arguments: tuple[str, ...], message: str) -> None:
    told = expunge("evaluate", *arguments)
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert message in told.err
    assert not Path("done/results.json").exists()


def test_data_that_has_moved_is_asked_for_by_its_flag(work: Path, expunge: Run) -> None:
    (work / "forget.jsonl").rename("moved.jsonl")
    told = expunge("evaluate", "--run", "done", *SMALL)
    assert told.code == 2
    assert "--run done: was made with --forget forget.jsonl, which is not here: give --forget" in told.err
    assert expunge("evaluate", "--run", "done", *SMALL, "--forget", "moved.jsonl").code == 0


def test_unseen_texts_that_are_trained_on_are_left_out_and_counted(work: Path, expunge: Run) -> None:
    seen = [f"{FORGET[0]['input']} {FORGET[0]['output']}", f"{RETAIN[1]['input']} {RETAIN[1]['output']}"]
    twins = [seen[0].upper(), seen[0].replace(" ", "\u00a0\n") + "!!", "Ｗho ｉs" + seen[1].removeprefix("Who is")]
    clean = [f"Tobias {n} closed the heavy book and slept until noon." for n in range(4)]
    write_jsonl(work / "holdout.jsonl", [{"text": text} for text in (*twins, *seen, *clean)])
    told = expunge("evaluate", "--model", "model", *FILES, *SMALL, "--holdout", "holdout.jsonl", "--output", "r.json")
    assert told.code == 0, told.err
    results = read("r.json")
    left_out = len(twins) + len(seen)
    assert f"{left_out} of 9 unseen texts are, or nearly are, among those to forget, to keep" in " ".join(
        results["not_measured"]
    )
    assert results["metrics"]["holdout/document_nll"]["n"] == len(clean)
    floor = results["metrics"]["holdout/exact_memorization"]  # what the forget set's number is judged by
    assert (floor["n"], floor["direction"]) == (len(clean), None)
    assert results["metrics"]["membership/loss_auc"]["n"] == len(FORGET) + len(clean)


def test_texts_that_were_cut_and_answers_that_were_stopped_are_said(work: Path, expunge: Run) -> None:
    """EleutherAI/lm-evaluation-harness#2585, huggingface/transformers#30998: what does not fit is dropped."""
    long = [{**FORGET[0], "output": "the old mill by the river " * 40}, *FORGET[1:]]
    write_jsonl(work / "long.jsonl", long)
    files = ("--benchmark", "custom", "--forget", "long.jsonl", "--retain", "retain.jsonl")
    loaded, style = load_model("model", dtype="float32", device="cpu"), PromptFormat("space", end_of_text=True)
    sets = {
        name: [Example(row["id"], row["input"], row["output"]) for row in rows]
        for name, rows in (("forget", long), ("retain", RETAIN))
    }
    whole = len(tokenize(loaded.tokenizer, sets["forget"][0], style, max_length=2**31))
    unended = {}
    for name, rows in sets.items():
        said = greedy(loaded, [prompt_ids(loaded.tokenizer, row, style) for row in rows], max_new_tokens=2)
        unended[name] = sum(loaded.tokenizer.eos_token_id not in tokens for tokens in said)
    notes = []
    for most in ("2", "200"):
        asked = ("--prompt-format", "space", "--end-of-text", "yes", "--max-new-tokens", most)
        told = expunge("evaluate", "--model", "model", *files, *asked, "--output", f"{most}.json")
        assert told.code == 0, told.err
        notes.append(" ".join(read(f"{most}.json")["not_measured"]))
        cut = f"1 of 4 forget texts were cut by {whole - 256:,} of their {whole:,} tokens"
        assert f"{cut}: the model's context is 256 tokens." in notes[-1]
        assert f"note      {read(f'{most}.json')['not_measured'][0]}" in told.out
    for name, count in unended.items():
        assert count > 0
        says = f"{count} of {len(sets[name])} answers to {name} prompts were stopped by --max-new-tokens 2 (or"
        assert says in notes[0]
        rouge = read("2.json")["metrics"][f"{name}/rouge_l_recall"]  # of as many answers the numbers say little
        assert rouge["stopped"] == count <= rouge["n"]
    assert read("200.json")["metrics"]["forget/rouge_l_recall"]["stopped"] == 1
    assert "stopped" not in read("200.json")["metrics"]["forget/probability"]
    assert "1 of 4 answers to forget prompts were stopped by --max-new-tokens 200 (or" in notes[1]
    assert "retain prompts were stopped" not in notes[1]


THINKS = (  # the generation prompt opens no thought, finished turns have one
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and '</think>' not in m.content %}"
    "<think></think>{% endif %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("thought", ["", "<think>In the file.</think>"])
def test_what_is_not_measured_of_thoughts_is_said(work: Path, expunge: Run, thought: str) -> None:
    save_tiny(work / "chatty", "llama", "chat")
    (work / "chatty/chat_template.jinja").write_text(THINKS)
    for name, given in (("forget", FORGET), ("retain", RETAIN)):
        rows = [{"prompt": row["input"], "completion": thought + row["output"]} for row in given]
        write_jsonl(work / f"{name}.jsonl", rows)
    told = expunge(
        "evaluate",
        "--model",
        "chatty",
        *FILES,
        "--prompt-format",
        "chat",
        "--max-new-tokens",
        "1",
        "--output",
        "r.json",
    )
    assert told.code == 0, told.err
    assert (AT_ONCE in read("r.json")["not_measured"]) == (not thought)


def test_the_untouched_model_is_no_reference(work: Path, expunge: Run) -> None:
    shutil.copytree("model", "copy")
    for flag, name in (("--reference", "model"), ("--reference", "copy"), ("--origin", "copy")):
        told = expunge("evaluate", "--run", "done", flag, name, "--output", "r.json")
        assert told.code == 2
        assert f"{flag} {name}: is the untouched model, which has seen the texts" in " ".join(told.err.split())
        assert not Path("r.json").exists()


def test_an_adapter_on_the_untouched_model_is_no_reference(work: Path, expunge: Run) -> None:
    for name in ("done", "done/adapter"):
        told = expunge("evaluate", "--run", "done", "--reference", name, "--output", "r.json")
        assert told.code == 2
        says = f"--reference {name}: is an adapter on the untouched model, which has seen the texts"
        assert says in " ".join(told.err.split())
        assert not Path("r.json").exists()


def test_a_model_that_was_merged_from_the_run_is_no_reference(work: Path, expunge: Run) -> None:
    """It has seen the texts, and would set the targets to what is left of them."""
    assert expunge("merge", "--run", "done", "--output", "merged").code == 0
    shutil.copytree("model", "copy")
    for flags in (("--run", "done"), ("--model", "merged", *FILES)):
        for name in ("merged", "copy"):
            told = expunge("evaluate", *flags, "--reference", name, "--output", "r.json")
            assert told.code == 2
            assert "which has seen the texts" in " ".join(told.err.split())
            assert not Path("r.json").exists()


def test_a_model_that_peft_merged_from_the_run_is_no_reference(work: Path, expunge: Run) -> None:
    """Its files say nothing of the adapter: what it computes does."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "done/adapter")
    AutoTokenizer.from_pretrained("model").save_pretrained("plain")
    model.merge_and_unload().save_pretrained("plain")
    shutil.copytree("plain", "rounded")
    AutoModelForCausalLM.from_pretrained("plain", dtype=torch.bfloat16).save_pretrained("rounded")
    write_jsonl(
        work / "f.jsonl", [{"text": f"{row['output']} {place}"} for row in FORGET for place in ("Or not.", "So?")]
    )
    for name in ("plain", "rounded"):
        asked = ("--forget", "f.jsonl", *SMALL, "--reference", name, "--output", "r.json")
        told = expunge("evaluate", "--run", "done", *asked)
        assert told.code == 2
        says = f"--reference {name}: gives the losses of the unlearned model, which has seen the texts"
        assert says in " ".join(told.err.split())
        assert not Path("r.json").exists()


def test_membership_is_judged_on_texts_that_are_alike_in_length(work: Path, expunge: Run) -> None:
    """Questions on one side alone would be told by being questions."""
    rng = random.Random(0)
    words = ["sea", "road", "old", "lamp", "stone", "bird", "cold", "river", "wood", "field"]
    long = [{"text": " ".join(rng.choices(words, k=14)), "task": "ab"[n % 2]} for n in range(32)]
    asked = [{"text": f"Who is {n}? {n}."} for n in range(9)]
    write_jsonl(work / "f.jsonl", [*long[:16], *asked])
    write_jsonl(work / "h.jsonl", [*long[16:], {"text": "And where?"}])
    files = ("--benchmark", "custom", "--forget", "f.jsonl", "--holdout", "h.jsonl", *SMALL)
    told = expunge("evaluate", "--model", "model", *files, "--output", "r.json")
    assert told.code == 0, told.err
    results = read("r.json")
    assert results["metrics"]["membership/loss_auc"]["n"] == 32
    assert [results["metrics"][f"membership/loss_auc/{task}"]["n"] for task in "ab"] == [16, 16]
    assert results["metrics"]["holdout/exact_memorization"]["n"] == 16, "targets are of kinds of 8 and more"
    assert any("9 to forget and 1 unseen ones, much shorter than most" in note for note in results["not_measured"])


def test_answers_are_drawn_to_unseen_prompts_too(work: Path, expunge: Run) -> None:
    """What is said in one of several answers is judged by how often it is guessed there."""
    unseen = [
        {"prompt": f"Where does Ulla {i} live?", "completion": f"Ulla lives at {i} Birch Road."} for i in range(8)
    ]
    write_jsonl(work / "h.jsonl", unseen)
    files = ("--benchmark", "custom", "--forget", "forget.jsonl", "--holdout", "h.jsonl", *SMALL)
    told = expunge("evaluate", "--model", "model", *files, "--samples", "2", "--output", "r.json")
    assert told.code == 0, told.err
    found = read("r.json")["metrics"]
    drawn = [found[f"holdout/leak_at_{k}"] for k in (1, 2)]
    assert [(entry["n"], entry["direction"]) for entry in drawn] == [(8, None)] * 2


def test_no_null_stands_alone(work: Path, expunge: Run) -> None:
    write_jsonl(work / "one.jsonl", FORGET[:1])
    write_jsonl(work / "unseen.jsonl", [{"text": "Tobias closed the heavy book and slept until noon."}])
    files = ("--benchmark", "custom", "--forget", "one.jsonl", "--holdout", "unseen.jsonl")
    told = expunge("evaluate", "--model", "model", *files, *SMALL, "--reference", "model", "--output", "r.json")
    assert told.code == 0, told.err
    results = read("r.json")
    for name, entry in results["metrics"].items():
        if None in (entry["value"], entry["low"], entry["high"]):
            assert entry["reason"], name
        if None in entry.get("difference", {}).values():
            assert entry["difference"]["reason"], name
    assert results["reference"]["rows"] == {"truth_ratio_ks_p": 0, "loss_ks_p": 1}
    tests = results["reference"]["indistinguishable"]
    assert [results["reference"]["missing"][name] for name, p in tests.items() if p is None]
    assert "all its rows are about one document" in told.out


def test_a_run_as_a_model_is_of_the_revision_that_it_was_made_on(work: Path) -> None:
    manifest = read("done/manifest.json")
    manifest["settings"] |= {"model": "owner/name", "revision": "v1"}
    Path("done/manifest.json").write_text(json.dumps(manifest))
    asked = EvaluateConfig(model="done", benchmark="custom", forget="forget.jsonl", output="r.json")
    for given, revision in ((None, "v1"), ("v2", "v2")):
        found = resolved(replace(asked, revision=given))
        assert (found.model, found.revision, found.adapter) == ("owner/name", revision, "done")


def test_a_revision_of_the_runs_model_is_not_one_of_another(work: Path) -> None:
    manifest = read("done/manifest.json")
    manifest["settings"] |= {"model": "owner/name", "revision": "v1"}
    Path("done/manifest.json").write_text(json.dumps(manifest))
    for model, revision in (("", "v1"), ("owner/name", "v1"), ("owner/other", None), ("model", None)):
        found = resolved(EvaluateConfig(run="done", model=model))
        assert (found.model, found.revision) == (model or "owner/name", revision)


def test_an_adapter_that_changes_while_it_is_scored_is_refused(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = evaluation.adapter_fingerprint
    seen = iter("ab")
    monkeypatch.setattr(evaluation, "adapter_fingerprint", lambda folder: measured(folder) + next(seen))
    told = expunge("evaluate", "--run", "done", *SMALL)
    assert told.code == 2
    assert "--adapter done: was changed while it was scored: evaluate again" in told.err
    assert not Path("done/results.json").exists()


def test_a_data_set_with_a_dot_in_its_name_is_no_file_that_is_missing(work: Path) -> None:
    manifest = read("done/manifest.json")
    for source, missing in (("owner/data-v1.5:train", False), ("texts.jsonl", True)):
        manifest["settings"]["forget"] = source
        Path("done/manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RunError, match="which is not here") if missing else nullcontext():
            assert resolved(EvaluateConfig(run="done")).forget == source


def test_a_run_in_4_bits_is_scored_in_4_bits_or_it_is_said(work: Path, expunge: Run) -> None:
    manifest = read("done/manifest.json")
    manifest["settings"]["load_in_4bit"] = True
    Path("done/manifest.json").write_text(json.dumps(manifest))
    assert resolved(EvaluateConfig(run="done")).load_in_4bit
    assert resolved(EvaluateConfig(run="done", load_in_4bit=False)).load_in_4bit is False
    told = expunge("evaluate", "--run", "done", *SMALL)
    assert told.code == 2
    assert "--load-in-4bit of --run done: needs a CUDA device, this is cpu: --load-in-4bit false" in told.err
    told = expunge("evaluate", "--run", "done", *SMALL, "--load-in-4bit", "false")
    assert told.code == 0, told.err
    assert "made with --load-in-4bit: it is scored on the whole weights, which are another model's" in told.err

    before = read("done/results_before.json")
    before["settings"]["load_in_4bit"] = True
    Path("done/results_before.json").write_text(json.dumps(before))
    told = expunge("evaluate", "--run", "done", *SMALL, "--load-in-4bit", "false", "--output", "done/more.json")
    assert told.code == 2
    assert "is of something else than what is measured now (weights in 4 bits or not)" in told.err
