"""Every benchmark through the command line, on tiny models: what the results hold, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark_data import CUSTOM, SMALL, write_tofu
from workspace import FORGET, MARKER, Result, snapshot, write_jsonl

from expunge.evaluation.stats import mean_estimate
from expunge.evaluation.values_file import read_values_file

Run = Callable[..., Result]


def check(results: dict) -> None:
    """What holds of every results file."""
    assert results["schema"] == 1
    assert MARKER not in json.dumps(results)
    for name, entry in results["metrics"].items():
        assert {"value", "low", "high", "n", "direction", "source", "family"} <= set(entry), name
        set_name, by_form = name.split("/")[0], entry["family"] in ("memorization", "text")
        nobody_is_judged = name.endswith("/mismatched") or (set_name == "holdout" and by_form)
        assert entry["direction"] in ((None,) if nobody_is_judged else ("higher", "lower", "target")), name
        assert (entry["direction"] == "target") == ("target" in entry) or entry["family"] == "membership", name
        assert entry["source"], name
        if entry["low"] is not None and entry["value"] is not None:
            assert entry["low"] <= entry["value"] <= entry["high"], name
    values = read_values_file("r.parquet")
    for name, entry in results["metrics"].items():
        set_name, metric, *task = name.split("/")
        scores = values.get((set_name, metric))
        if scores is not None and not task:  # the mean of what is in the other file
            assert entry["value"] == pytest.approx(math.fsum(scores.values) / len(scores.ids)), name
            assert entry["n"] == len(scores.ids), name
    assert Path("r.parquet").stat().st_mode & 0o777 == 0o600
    assert MARKER.encode() not in Path("r.parquet").read_bytes()


def run(expunge: Run, *arguments: str) -> dict:
    result = expunge(*SMALL, *arguments)
    assert result.code == 0, result.err
    assert all(len(line) < 100 for line in result.out.splitlines() if not line.startswith(("note", "results")))
    results = json.loads(Path("r.json").read_text())
    check(results)
    return results


def test_tofu_with_a_reference(here: Path, expunge: Run) -> None:
    results = run(expunge, "--benchmark", "tofu", "--data", "tofu", "--split", "forget01", "--reference", "twin")
    metrics, values = results["metrics"], read_values_file("r.parquet")
    assert results["settings"]["split"] == "forget01"
    assert {name.split("/")[0] for name in metrics} == {
        "all", "forget", "retain", "real_authors", "world_facts", "membership", "holdout",
    }  # fmt: skip
    nine = [metrics[f"retain/{name}"]["value"] for name in ("probability", "rouge_l_recall", "truth_ratio")]
    for set_name in ("real_authors", "world_facts"):
        parts = ("normalized_probability", "truth_ratio", "rouge_l_recall")
        nine += [metrics[f"{set_name}/{name}"]["value"] for name in parts]
    utility = 0 if 0 in nine else 9 / sum(1 / value for value in nine)
    assert metrics["all/model_utility"]["value"] == pytest.approx(utility)
    ratios = values["forget", "truth_ratio_raw"].values
    folded = [min(ratio, 1 / ratio) for ratio in ratios]
    assert metrics["forget/truth_ratio"]["value"] == pytest.approx(sum(folded) / len(folded))
    tests = results["reference"]["indistinguishable"]
    assert metrics["all/forget_quality"]["value"] == pytest.approx(tests["truth_ratio_ks_p"])
    assert 0 <= tests["loss_ks_p"] <= 1
    assert results["reference"]["model"] == "twin"
    assert metrics["forget/probability"]["reference"] != metrics["forget/probability"]["value"]
    for name in ("forget/probability", "forget/truth_ratio", "retain/rouge_l_recall", "world_facts/probability"):
        entry = metrics[name]
        assert entry["difference"]["value"] == pytest.approx(entry["value"] - entry["reference"]), name
    assert metrics["forget/probability"]["difference"]["low"] is None  # six rows about one author
    change = metrics["world_facts/probability"]["difference"]
    assert change["low"] < change["value"] < change["high"]
    assert "difference" not in metrics["all/model_utility"]
    again = metrics["forget/probability/paraphrased"]
    assert again["n"] == 6
    assert again["value"] != metrics["forget/probability"]["value"]
    assert not any("--reference" in sentence for sentence in results["not_measured"])


def test_a_model_is_its_own_reference(here: Path, expunge: Run) -> None:
    results = run(expunge, "--benchmark", "tofu", "--data", "tofu", "--split", "forget01", "--reference", "model")
    assert results["metrics"]["all/forget_quality"]["value"] == 1
    for name, entry in results["metrics"].items():
        if "reference" in entry:
            assert entry["reference"] == entry["value"], name
            assert "difference" not in entry or not _certain(entry["difference"]), name


def test_the_terminal_says_what_differs_from_the_reference(here: Path, expunge: Run) -> None:
    files = ("--benchmark", "custom", "--forget", "forget.jsonl", "--holdout", "holdout.jsonl")
    result = expunge(*SMALL, *files, "--reference", "twin")
    metrics = json.loads(Path("r.json").read_text())["metrics"]
    lines = {line[:48].rstrip(" ↑↓"): line for line in result.out.splitlines()}
    starred = {name for name, entry in metrics.items() if "difference" in entry and _certain(entry["difference"])}
    assert starred  # two random models do not give the same losses
    for name, entry in metrics.items():
        if "reference" in entry and name.count("/") == 1 and entry["direction"] in ("higher", "lower"):
            line = lines[name.replace("/", " ").replace("_", " ")]
            assert line.endswith("*") == (name in starred), name
    assert "as the retrained model, by losses of forget texts" in result.out
    assert "truth ratios" not in result.out


def _certain(change: dict[str, float | None]) -> bool:
    return change["low"] is not None and (change["low"] > 0 or change["high"] < 0)


def test_before_and_after_in_pairs(here: Path, expunge: Run) -> None:
    files = ("--benchmark", "custom", "--forget", "forget.jsonl", "--holdout", "holdout.jsonl")
    for model in ("model", "twin"):
        arguments = ("evaluate", "--model", model, "--max-new-tokens", "6", "--output", f"{model}.json")
        assert expunge(*arguments, *files).code == 0
    pair = ("compare", "model.json", "twin.json", "--paired")
    result = expunge(*pair, "--metrics", "forget/*,*loss_auc,*tpr_at_1*", "--format", "csv")
    assert result.code == 0, result.err
    rows = [line.split(",") for line in result.out.splitlines()[1:]]
    found = {(row[0], row[3]): [float(cell) if cell else None for cell in row[4:8]] for row in rows}
    results = {name: json.loads(Path(f"{name}.json").read_text())["metrics"] for name in ("model", "twin")}
    for name in ("forget/perplexity", "forget/rouge_l_recall", "membership/loss_auc"):
        value, low, high, n = found[name, "twin - model"]
        assert value == pytest.approx(results["twin"][name]["value"] - results["model"][name]["value"])
        assert low <= value <= high
        assert n == results["model"][name]["n"]
        assert found[name, "model"][0] == results["model"][name]["value"]
    losses = [read_values_file(f"{name}.parquet")["forget", "perplexity"].values for name in ("model", "twin")]
    change = mean_estimate(losses[1] - losses[0])  # every text is a document of its own here
    assert found["forget/perplexity", "twin - model"][:3] == pytest.approx([change.value, change.low, change.high])
    assert found["membership/loss_tpr_at_1_fpr", "twin - model"][0] is None
    shown = expunge(*pair)
    assert "differences from it, row by row" in shown.out
    assert max(map(len, shown.out.splitlines())) < 100

    Path("elsewhere").mkdir()
    Path("elsewhere/model.json").write_bytes(Path("model.json").read_bytes())
    other = expunge(*SMALL, "--benchmark", "custom", "--forget", "retain.jsonl")
    assert other.code == 0, other.err
    for arguments, message in (
        (("model.json",), "--paired shows differences from the first of several results files"),
        (("model.json,elsewhere/model.json", "r.json"), "two or more, unpooled"),
        (("model.json", "elsewhere/model.json"), "elsewhere/model.parquet: no such file: --paired needs the values"),
        (("model.json", "r.json"), "model.json and r.json are not of the same data"),
    ):
        refused = expunge("compare", *arguments, "--paired")
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert message in refused.err
    Path("twin.parquet").write_text("mine")
    assert "twin.parquet: cannot be read as Parquet" in expunge(*pair).err


def test_muse(here: Path, expunge: Run) -> None:
    results = run(expunge, "--benchmark", "muse", "--data", "muse", "--reference", "twin")
    metrics = results["metrics"]
    assert results["settings"]["split"] == "news"
    assert {"forget/verbatim_memorization", "forget/knowledge_memorization", "retain/knowledge_memorization"} < set(
        metrics
    )
    ours, theirs = (1 - metrics["membership/min_k_40_auc"][key] for key in ("value", "reference"))
    assert metrics["membership/privleak"]["value"] == pytest.approx((ours - theirs) / theirs * 100)
    assert {set_name for set_name, _ in read_values_file("r.parquet")} == {"forget", "retain", "holdout"}


def test_muse_without_a_reference_has_no_privleak(here: Path, expunge: Run) -> None:
    results = run(expunge, "--benchmark", "muse", "--data", "muse")
    assert "membership/privleak" not in results["metrics"]
    assert any("stand-in" in sentence for sentence in results["not_measured"])
    assert results["reference"] is None


def test_lume_has_the_official_scores(here: Path, expunge: Run) -> None:
    results = run(expunge, "--benchmark", "lume", "--data", "lume")
    assert results["benchmark"] == "lume"
    assert len(results["terms"]) == 8
    for split in ("forget", "retain"):
        for task, means in results[split].items():
            for key, metric in (("regurgitation", "rouge_l_recall"), ("knowledge", "exact_match")):
                assert results["metrics"][f"{split}/{metric}/{task}"]["value"] == pytest.approx(means[key])
    assert results["metrics"]["all/task_aggregate"]["value"] == results["task_aggregate"]


def test_your_own_files(here: Path, expunge: Run) -> None:
    files = ("--forget", "forget.jsonl", "--retain", "retain.jsonl", "--holdout", "holdout.jsonl")
    results = run(expunge, "--benchmark", "custom", *files, "--samples", "2", "--temperature", "0.5")
    metrics, values = results["metrics"], read_values_file("r.parquet")
    cut = results["settings"]["membership_tokens"]
    assert 2 < cut < 40  # the holdout texts are several times as long
    assert len(values["holdout", "membership/loss"].ids) == 5
    assert len(values["forget", "membership/loss"].ids) == 4
    assert 0 <= metrics["membership/loss_auc"]["value"] <= 1
    assert {"forget/leak_at_1", "forget/leak_at_2"} < set(metrics)
    assert metrics["forget/leak_at_1"]["value"] <= metrics["forget/leak_at_2"]["value"]
    assert set(values["forget", "nll"].ids) == {row["id"] for row in FORGET}


def test_texts_without_prompts_and_without_a_retain_set(here: Path, expunge: Run) -> None:
    """They are continued from their middle, but for the short ones."""
    texts = [json.loads(line)["text"] for line in Path("holdout.jsonl").read_text().splitlines()]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "Short."]))
    results = run(expunge, "--benchmark", "custom", "--forget", "texts.jsonl", "--key-words", "words.jsonl")
    assert {"forget/extraction_strength", "forget/rouge_l_recall", "forget/repetition"} < set(results["metrics"])
    assert results["metrics"]["forget/rouge_l_recall"]["n"] == len(texts)
    written = [json.loads(line) for line in Path("words.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["completion"]) for row in written] == [("", text) for text in [*texts, "Short."]]
    sentences = " ".join(results["not_measured"])
    for part in ("1 of 6 forget texts have no prompt", "--retain", "--holdout"):
        assert part in sentences


def test_short_texts_without_prompts_are_only_read(here: Path, expunge: Run) -> None:
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"He lives at {at}."}) + "\n" for at in range(5)))
    results = run(expunge, "--benchmark", "custom", "--forget", "texts.jsonl")
    assert "forget/rouge_l_recall" not in results["metrics"]
    sentences = " ".join(results["not_measured"])
    assert "5 of 5 forget texts have no prompt" in sentences
    assert "--samples" not in sentences, "there is nothing to ask"


def test_unseen_texts_without_prompts_say_how_forgotten_ones_should_go_on(here: Path, expunge: Run) -> None:
    """Where a text to forget has no prompt either: answers to questions are compared with answers alone."""
    texts = [json.loads(line)["text"] for line in Path("holdout.jsonl").read_text().splitlines()]
    kept = [" ".join(f"{word}{at}" for word in "abcdefghijklmnopqrst") for at in range(4)]
    Path("kept.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    files = ("--retain", "kept.jsonl", "--holdout", "holdout.jsonl")
    metrics = run(expunge, "--benchmark", "custom", "--forget", "forget.jsonl", *files)["metrics"]
    assert "forget/rouge_l_recall" in metrics
    assert "holdout/rouge_l_recall" not in metrics
    alone = [{"prompt": "", "completion": text[::-1]} for text in texts]
    asked = [{"prompt": "Where does she live?", "completion": "In Port Ellery."}]
    Path("alone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*alone, *asked]))
    metrics = run(expunge, "--benchmark", "custom", "--forget", "alone.jsonl", *files, "--overwrite")["metrics"]
    assert (metrics["forget/rouge_l_recall"]["n"], metrics["holdout/rouge_l_recall"]["n"]) == (6, 5)
    assert "retain/rouge_l_recall" not in metrics, "how texts to keep go on says nothing of what is kept"


def test_attacks_that_were_asked_for_alone(here: Path, expunge: Run) -> None:
    files = ("--forget", "forget.jsonl", "--holdout", "holdout.jsonl")
    results = run(expunge, "--benchmark", "custom", *files, "--attacks", "zlib,gradient_norm")
    attacks = {name.split("/")[1].split("_auc")[0] for name in results["metrics"] if name.endswith("_auc")}
    assert attacks == {"zlib", "gradient_norm"}
    assert "loss, lowercase, recall, min_k, min_k_plus_plus" in " ".join(results["not_measured"])


def test_one_unseen_text_is_no_reason_to_lose_the_rest(work: Path, expunge: Run) -> None:
    """It has no other text to stand after, so one of the attacks has no value on that side."""
    Path("one.jsonl").write_text(json.dumps({"input": "Where does Oda live?", "output": "In Quince Row 9."}) + "\n")
    told = expunge("evaluate", "--run", "done", "--holdout", "one.jsonl", "--max-new-tokens", "2", "--device", "cpu")
    assert told.code == 0, told.err
    results = json.loads(Path("done/results.json").read_text())
    assert (
        "membership/recall_auc" not in results["metrics"]
        or results["metrics"]["membership/recall_auc"]["value"] is None
    )
    assert results["metrics"]["membership/loss_auc"]["nonmembers"] == 1
    assert results["metrics"]["forget/probability"]["value"] is not None


def test_the_same_run_gives_the_same_files(here: Path, expunge: Run) -> None:
    arguments = ("--benchmark", "custom", "--forget", "forget.jsonl", "--holdout", "holdout.jsonl", "--samples", "2")
    run(expunge, *arguments)
    first = [Path(name).read_bytes() for name in ("r.json", "r.parquet")]
    run(expunge, *arguments, "--overwrite")
    assert [Path(name).read_bytes() for name in ("r.json", "r.parquet")] == first


TOFU = ("--benchmark", "tofu", "--data", "tofu", "--split", "forget01")
MUSE = ("--benchmark", "muse", "--data", "muse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--benchmark", "tofu"), "--benchmark tofu needs --data"),
        (("--benchmark", "tofu", "--data", "nowhere"), "nowhere: no such folder"),
        (("--benchmark", "tofu", "--data", "tofu", "--split", "forget05"), "tofu: has no forget05_perturbed.json"),
        (("--benchmark", "tofu", "--data", "tofu", "--split", "validation"), "--split validation: TOFU has the splits"),
        ((*MUSE, "--split", "poems"), "--split poems: MUSE has the corpora news, books"),
        ((*MUSE, "--split", "books"), "muse: has no books: give --split news"),
        ((*MUSE, "--data", "tofu"), "tofu: has no verbmem/forget.json, no knowmem/forget_qa.json"),
        (("--benchmark", "custom"), "--forget is missing"),
        ((*CUSTOM, "--data", "tofu"), "--data: --benchmark custom reads your own files"),
        ((*TOFU, "--forget", "forget.jsonl"), "--benchmark tofu brings its own files: leave --forget out"),
        ((*CUSTOM, "--split", "train"), "--split train: --benchmark custom has no splits"),
        ((*CUSTOM, "--attacks", "loss,psychic"), "--attacks loss,psychic: unknown psychic"),
        ((*CUSTOM, "--attacks", "reference"), "--attacks reference needs --reference"),
        ((*CUSTOM, "--samples", "-1"), "--samples -1: must be 0 or more"),
        ((*CUSTOM, "--temperature", "0"), "--temperature 0.0: must be finite and above 0"),
        ((*CUSTOM, "--limit", "3"), "--limit and --task-path need --tasks"),
        ((*CUSTOM, "--mmlu", "0.4"), "--mmlu: --benchmark custom has no final score"),
        ((*TOFU, "--keep-predictions", "p"), "--keep-predictions: --benchmark tofu has no stored form"),
        ((*MUSE, "--key-words", "w"), "--benchmark muse looks for no key words"),
        ((*CUSTOM, "--columns", "prompt=nowhere"), "has no column nowhere"),
        ((*TOFU, "--reference", "nowhere/at/all"), "--reference nowhere/at/all: no such folder"),
        ((*CUSTOM, "--origin", "./model"), "--origin ./model: is --model itself"),
        ((*TOFU, "--reference", "stranger"), "--reference stranger: its tokenizer is not that of --model model"),
        ((*TOFU, "--output", "r.parquet"), "--output r.parquet: that name is for the values of every row"),
    ],
)
def test_a_wrong_command_says_why_and_writes_nothing(
    here: Path, expunge: Run, arguments: tuple[str, ...], message: str
) -> None:
    before = set(snapshot(here))
    result = expunge(*SMALL, *arguments)
    assert result.code == 2, result.err
    assert result.err.count("\n") == 1
    assert message in result.err
    assert set(snapshot(here)) == before


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"retain.jsonl": ""}, "lume2/retain.jsonl: is empty, there is not one row in it"),
        ({"member.jsonl": "{}"}, "lume2: has no nonmember.jsonl: membership needs member.jsonl and nonmember.jsonl"),
        ({"member.jsonl": "", "nonmember.jsonl": ""}, "lume2/member.jsonl: is empty, there is not one row in it"),
    ],
)
def test_an_empty_or_missing_side_is_named(here: Path, expunge: Run, files: dict[str, str], message: str) -> None:
    Path("lume2").mkdir()
    for name in ("forget.jsonl", "retain.jsonl"):
        Path("lume2", name).write_bytes(Path("lume", name).read_bytes())
    for name, content in files.items():
        Path("lume2", name).write_text(content)
    result = expunge(*SMALL, "--benchmark", "lume", "--data", "lume2")
    assert result.code == 2
    assert message in result.err
    assert not Path("r.json").exists()


def test_predictions_without_rows_are_refused(here: Path, expunge: Run) -> None:
    Path("said").mkdir()
    for name in ("forget.jsonl", "retain.jsonl"):
        Path("said", name).write_text("")
    result = expunge("score", "--predictions", "said", "--output", "s.json")
    assert result.code == 2
    assert "said/forget.jsonl: is empty" in result.err


def test_an_empty_set_of_a_folder_is_named(here: Path, expunge: Run) -> None:
    (here / "tofu").unlink()
    (write_tofu(here / "tofu") / "world_facts_perturbed.json").write_text("")
    result = expunge(*SMALL, *TOFU)
    assert result.code == 2
    assert "tofu/world_facts_perturbed.json: is empty" in result.err


def test_a_row_without_wrong_answers_is_named(here: Path, expunge: Run) -> None:
    (here / "tofu").unlink()
    write_jsonl(write_tofu(here / "tofu") / "retain_perturbed.json", [{"question": "a", "answer": MARKER}])
    result = expunge(*SMALL, *TOFU)
    assert result.code == 2
    assert "retain_perturbed.json:1: field 'perturbed_answer' must be a list" in result.err
    assert MARKER not in result.err


def test_a_file_of_something_else_beside_the_results_stays(here: Path, expunge: Run) -> None:
    Path("r.parquet").write_text("mine")
    assert expunge(*SMALL, *CUSTOM).code == 2
    result = expunge(*SMALL, *CUSTOM, "--overwrite")
    assert result.code == 2
    assert "r.parquet beside it would be replaced, and is none of ours" in result.err
    assert Path("r.parquet").read_text() == "mine"
    assert not Path("r.json").exists()


def test_predictions_for_other_rows_are_refused(here: Path, expunge: Run) -> None:
    arguments = ("--benchmark", "lume", "--data", "lume", "--keep-predictions", "said")
    assert expunge(*SMALL, *arguments).code == 0
    score = ("score", "--predictions", "said", "--data", "lume", "--output", "s.json")
    result = expunge(*score)
    assert result.code == 0, result.err
    metrics = json.loads(Path("s.json").read_text())["metrics"]
    assert metrics["forget/rouge_l_recall"]["n"] == 2
    lines = Path("said/forget.jsonl").read_text().splitlines(keepends=True)
    Path("said/forget.jsonl").write_text("".join(lines[1:]).replace("f1qa0", "other1qa0"))
    Path("s.json").unlink()
    result = expunge(*score)
    assert result.code == 2
    assert "of its 4 forget rows 2 have none, and 1 are for rows that it does not have" in result.err
    assert not Path("s.json").exists()
