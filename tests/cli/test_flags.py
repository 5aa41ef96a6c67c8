"""How a command is said: flags, YAML files, help, what is refused, and what comes out of the terminal's end."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from workspace import QUICK, UNLEARN, Result, snapshot

from expunge.cli.commands import COMMANDS, recorded
from expunge.cli.settings import RENAMED, describe, parse, settings_of
from expunge.config import UnlearnConfig
from expunge.config.nested import by_group
from expunge.config.unlearn import GROUPS
from expunge.errors import ConfigError
from expunge.losses import FORGET_LOSSES

Run = Callable[..., Result]
SOURCE = str(Path(import_module("expunge").__file__ or "").parents[1])
FIRST_EDITION = {
    "demo": "output overwrite seed",
    "unlearn": "model forget retain output holdout instead benchmark data split columns recipe epochs max-steps "
    "learning-rate schedule warmup max-grad-norm beta level forget-weight rest-weight retain-weight kl-weight "
    "kl-direction forget-span kl-span anchor-weight anchors-per-forget instead-weight select-every target floor "
    "ceiling lora-rank lora-alpha target-modules tokens-per-step rows-per-step mix retain-per-forget max-length "
    "truncate-completions join end-of-text dtype device gradient-checkpointing load-in-4bit shard-base seed save-every "
    "report-to trust-remote-code overwrite resume from-manifest dry-run config",
    "evaluate": "model data output adapter benchmark split forget retain holdout columns reference attacks samples "
    "temperature seed tasks task-path limit keep-predictions mmlu max-new-tokens join dtype device shard-base "
    "trust-remote-code overwrite config",
    "score": "benchmark predictions output mmlu data split overwrite",
    "compare": "format output metrics names pool paired overwrite",
    "report": "output figures show-examples card overwrite",
    "calibrate": "run holdout target floor ceiling dtype device",
    "merge": "run output device overwrite",
}
"""Command -> its flags in the first edition: scripts use them."""
SETTINGS = {"model": "m", "output": "o", "epochs": 3, "lora_rank": 4, "loss": "npo", "eval_every": 0, "device": "cpu"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(*words: str, text: str | None = None) -> dict[str, Any]:
    """The settings that flags, and a YAML file below them, give to `unlearn`."""
    if text is not None:
        Path("c.yaml").write_text(text)
        words = (*words, "--config", "c.yaml")
    return parse(UnlearnConfig, words, "unlearn")


def refused(told: Result, message: str) -> None:
    """One line, exit code 2, nothing on standard output."""
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1), told.err
    assert message in told.err


# --- YAML ----------------------------------------------------------------------------------------


def test_a_file_may_be_nested_by_group_or_flat(here: Path) -> None:
    nested = by_group(SETTINGS)
    assert list(nested) == [
        name for name in GROUPS if name in ("run", "loss", "adapter", "optimisation", "evaluation", "device")
    ]
    assert given(text=yaml.safe_dump(nested)) == given(text=yaml.safe_dump(SETTINGS)) == SETTINGS
    mixed = {"model": "m", "loss": {"loss": "npo"}, "device": "cpu"}  # two names that groups have as well
    assert given(text=yaml.safe_dump(mixed)) == {"model": "m", "loss": "npo", "device": "cpu"}


@pytest.mark.parametrize(
    "text",
    [
        "model: m\nepochs: 3\noptimisation: {epochs: 4}\n",
        "model: m\nepochs: 3\nepochs: 4\n",
        "model: m\noptimisation: {epochs: 3, epochs: 4}\n",
        "model: m\nrun: {epochs: 3}\noptimisation: {epochs: 4}\n",
    ],
)
def test_a_setting_that_stands_twice_is_refused(here: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"--config c.yaml: .* twice"):
        given(text=text)


def test_a_home_folder_is_found_where_no_shell_has_looked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an equals sign, and in a file."""
    monkeypatch.setenv("HOME", str(here))
    found = given("--output=~/runs/one", text="model: ~/m\nforget: a~/b")
    assert found == {"output": str(here / "runs/one"), "model": str(here / "m"), "forget": "a~/b"}
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError("no home")))
    with pytest.raises(ConfigError, match=r"--output ~/runs: no home folder: write the whole path"):
        given("--output=~/runs")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--resume", "--output=~/done"), ""),
        (("--from-manifest=~/done/manifest.json",), ""),
        ((), "resume: true\noutput: ~/done\n"),
        ((), "from-manifest: ~/done/manifest.json\n"),
        (("--resume", "--output", "nowhere", "--output", "done"), ""),
    ],
)
def test_an_earlier_run_is_found_however_it_is_named(
    work: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], text: str
) -> None:
    monkeypatch.setenv("HOME", str(work))
    Path("c.yaml").write_text(text or "seed: 3\n")
    found = parse(UnlearnConfig, ("--config", "c.yaml", "--epochs", "9", *words), "unlearn", recorded)
    assert (found["model"], found["max_steps"], found["epochs"]) == ("model", 3, 9)
    assert found["seed"] == (0 if text else 3)


def test_flags_win_over_the_file_wherever_they_stand(here: Path) -> None:
    text = yaml.safe_dump(SETTINGS)
    assert given("--epochs", "9", text=text) == {**SETTINGS, "epochs": 9}
    assert parse(UnlearnConfig, ("--config", "c.yaml", "--epochs", "9"), "unlearn") == {**SETTINGS, "epochs": 9}
    assert given("--epochs", "8", "--epochs", "9", text=text)["epochs"] == 9  # and a later one over an earlier one


@pytest.mark.parametrize("end", ["yes", "no"])
def test_what_yaml_reads_otherwise_than_people_do(here: Path, end: str) -> None:
    text = f"model: m\nlearning_rate: 1e-4\nend_of_text: {end}\nkl_weight: 2\nepochs: null\n"
    found = given(text=text)
    assert found == {"model": "m", "learning_rate": 1e-4, "end_of_text": end, "kl_weight": 2, "epochs": None}
    config = UnlearnConfig(**found, forget="f", retain="r", output="o")
    config.validate()
    with pytest.raises(ConfigError, match="--learning-rate half: must be a number"):
        given(text="model: m\nlearning_rate: half\n")


def test_parameters_of_a_loss_may_be_a_mapping_in_a_file(here: Path) -> None:
    found = given(text="model: m\nloss: {loss: npo, loss_args: {beta: 0.1}}\n")
    assert UnlearnConfig(**found).loss_args == "beta=0.1"


def test_hyphens_in_a_file_are_underscores_and_a_mistaken_key_is_shown_as_it_was_written(here: Path) -> None:
    text = "model: m\nmax-steps: 3\noptimisation: {learning-rate: 1e-4}\n"
    assert given(text=text) == {"model": "m", "max_steps": 3, "learning_rate": 1e-4}
    for text, message in (
        ("max-stepz: 3", "c.yaml: unknown setting max-stepz: did you mean max_steps?"),
        ("optimization: {epochs: 3}", "unknown setting optimization: did you mean optimisation?"),
        ("max-steps: 3\nmax_steps: 3", "c.yaml: the setting max_steps stands twice"),
        ("1: {2: 3}\nrun: {2: 3}", "c.yaml: holds no settings"),
        ("run: {2: 3}", "c.yaml: unknown setting 2"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            given(text=f"model: m\n{text}\n")


@pytest.mark.parametrize("key", ["config", "trust_remote_code", "trust-remote-code"])
def test_what_is_said_on_the_command_line_alone(here: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"--config c.yaml: {key} is said on the command line alone"):
        given(text=f"model: m\n{key}: true\n")


def test_every_command_reads_a_file(here: Path) -> None:
    Path("c.yaml").write_text("predictions: p\noutput: o\nmmlu: '0.5'\n")
    found = parse(COMMANDS["score"].schema, ("--config", "c.yaml"), "score")
    assert found == {"predictions": "p", "output": "o", "mmlu": "0.5"}
    Path("c.yaml").write_text("predictons: p\n")
    with pytest.raises(ConfigError, match=r"unknown setting predictons: did you mean predictions.; see `expunge score"):
        parse(COMMANDS["score"].schema, ("--config", "c.yaml"), "score")


def test_values_of_another_type_in_a_file(here: Path, expunge: Run) -> None:
    for text, message in (
        ("names: [a, b]\nresults: [a.json, b.json]", "--names ['a', 'b']: must be text"),
        ("results: [[a]]", "--results [['a']]: must be"),
        ("results: a.json\npool: 2", "--pool 2: must be true or false"),
        ("results: a.json\nnames: 1.10", "--names 1.1: must be text: put it in quotes"),
    ):
        Path("c.yaml").write_text(text)
        told = expunge("compare", "--config", "c.yaml")
        assert (told.code, message in told.err) == (2, True), told.err
    Path("c.yaml").write_text("model: m\nforget: f\noutput: 2024-05-01\noverwrite: true\n")
    told = expunge("unlearn", "--config", "c.yaml")
    assert (told.code, "--output" in told.err) == (2, True), told.err


# --- words ---------------------------------------------------------------------------------------


def test_dashes_underscores_and_equals_signs_are_the_same() -> None:
    ways = (("--retain-weight", "0.5"), ("--retain_weight", "0.5"), ("--retain_weight=0.5",), ("--retain-weight=.5",))
    assert all(given("--model", "m", *way) == {"model": "m", "retain_weight": 0.5} for way in ways)
    for way, value in ((("--overwrite",), True), (("--overwrite", "false"), False), (("--overwrite=true",), True)):
        assert given(*way, "--model", "m")["overwrite"] is value


def test_texts_without_flags_stand_before_between_and_after_them() -> None:
    schema = COMMANDS["compare"].schema
    for words in (("a", "b", "--pool"), ("--pool", "a", "b"), ("a", "--pool", "b")):
        assert parse(schema, words, "compare") == {"results": ["a", "b"], "pool": True}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unlern",), "unknown command unlern: did you mean unlearn?; known are demo, elicit, unlearn, "),
        (("xyz",), "unknown command xyz; known are"),
        (("unlearn", "--epoch", "3"), "unknown flag --epoch: did you mean --epochs?; see `expunge unlearn --help-all`"),
        (("merge", "--rum", "r"), "unknown flag --rum: did you mean --run?"),
        (("unlearn", "--xyzzy"), "unknown flag --xyzzy; see"),
        (
            ("unlearn", "--dtype", "bfloat"),
            "--dtype bfloat: must be one of auto, float32, bfloat16 (did you mean bfloat16?)",
        ),
        (("unlearn", "--model", "m", "more.jsonl"), "'more.jsonl': is no flag"),
        (("unlearn", "--epochs"), "--epochs: expected one argument"),
        (("unlearn", "--epochs", "1.5"), "--epochs 1.5: must be a whole number"),
        (("unlearn", "--overwrite=perhaps", "--model", "m"), "--overwrite perhaps: must be true or false"),
        (("unlearn", "--bogus"), "unknown flag --bogus; see"),  # the dashes make nothing alike
        (("unlearn",), "--model is missing: give a folder or a Hub name; see `expunge unlearn --help`"),
        (("elicit", "--model", "m"), "--about is missing: give the name that is to be forgotten; see `expunge elicit"),
        (("merge", "--run", "r"), "--output is missing: give the file or folder to write; see `expunge merge --help`"),
        (("merge", "--output", "r"), "--run is missing: give a run directory; see `expunge merge --help`"),
        (("report",), "runs are missing"),
        (("verdict",), "runs are missing: give run directories; see `expunge verdict --help`"),
        (("unlearn", "--from-manifest"), "--from-manifest"),
    ],
)
def test_a_word_that_is_not_understood_is_one_line(
    here: Path, expunge: Run, words: tuple[str, ...], message: str
) -> None:
    refused(expunge(*words), message)
    assert snapshot(here) == {}


@pytest.mark.parametrize("name", FIRST_EDITION)
def test_a_flag_of_the_first_edition_works_or_names_its_successor(name: str) -> None:
    known = {setting.flag for setting in settings_of(COMMANDS[name].schema).values()} | {"--config"}
    gone = {f"--{flag}" for flag in FIRST_EDITION[name].split()} - known
    assert gone <= {f"--{old.replace('_', '-')}" for old in RENAMED}


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_flag_is_refused_with_the_new_one(here: Path, expunge: Run, name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    refused(expunge("unlearn", "--model", "m", flag, "1"), f"{flag} is no flag of this version: write {RENAMED[name]}")
    Path("c.yaml").write_text(f"{name}: 1\n")
    asked = expunge("unlearn", "--model", "m", "--config", "c.yaml")
    refused(asked, f"{name} is no setting of this version: write {RENAMED[name]}")
    known = {setting.flag for setting in settings_of(UnlearnConfig).values()}
    assert flag not in known
    assert set(re.findall(r"--[a-z-]+", RENAMED[name])) <= known


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_is_explained(name: str) -> None:
    for setting in settings_of(COMMANDS[name].schema).values():
        assert len(setting.help) > 8, setting.name
    text = describe(COMMANDS[name].schema)
    assert max(map(len, text.splitlines())) < 100
    assert all(field.positional or f"  {field.flag}" in text for field in settings_of(COMMANDS[name].schema).values())


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_short_help(expunge: Run, word: str) -> None:
    whole = expunge(word)
    assert (whole.code, whole.err) == (0, "")
    assert all(f"  expunge {name}" in whole.out for name in COMMANDS)
    assert expunge() == Result(2, whole.out, "")
    for name, command in COMMANDS.items():
        told = expunge(name, "--model", word)
        assert (told.code, told.err) == (0, "")
        assert command.example in told.out
        assert len(told.out.splitlines()) < 40
        assert all(f"--{shown.replace('_', '-')}" in told.out for shown in command.shown)


def test_whole_help_holds_every_flag_and_loss(expunge: Run) -> None:
    told = expunge("unlearn", "--help-all")
    assert (told.code, told.err) == (0, "")
    assert all(f"\n{name}:\n" in told.out for name in GROUPS)
    assert all(setting.flag in told.out for setting in settings_of(UnlearnConfig).values())
    for name, method in FORGET_LOSSES.items():
        assert f"  {name:<18}{method.formula}" in told.out
        assert all(f"{field.name}={field.default}" in told.out for field in dataclasses.fields(method))


def test_version(expunge: Run) -> None:
    told = expunge("--version")
    assert (told.code, told.err) == (0, "")
    assert [line.split()[0] for line in told.out.splitlines()] == ["expunge", "torch", "transformers", "peft"]


def test_help_and_a_mistaken_flag_answer_without_torch() -> None:
    check = (
        "import sys; from expunge.cli.main import main; codes = [main(words.split()) for words in sys.argv[1:]];"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'pandas'} & set(sys.modules);"
        "sys.exit(f'{codes} {heavy}' if codes != [0, 0, 2, 2] or heavy else 0)"
    )
    words = ("--help", "unlearn --help", "unlearn --epoch 3", "unlearn --model m --target auc=0.5")
    done = subprocess.run(
        [sys.executable, "-c", check, *words], env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- output --------------------------------------------------------------------------------------


def test_json_is_one_object_for_every_command(work: Path, expunge: Run) -> None:
    """On standard output there is nothing else; what a person reads in its place is not lost."""
    (work / "data").mkdir()
    for name in ("forget", "retain"):
        rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        kinds = ("sc1", "qa0", "sc1", "qa0")
        rows = [{**row, "id": row["id"] + kind, "task": "Task1"} for row, kind in zip(rows, kinds, strict=False)]
        Path(f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = {
        "unlearn": ((*UNLEARN, *QUICK, "--max-steps", "1"), {"output", "losses", "steps", "verdict"}),
        "dry run": ((*UNLEARN, *QUICK, "--output", "dry", "--dry-run"), {"steps", "total_seconds", "rows"}),
        "evaluate": (
            ("evaluate", "--model", "model", "--benchmark", "semeval", "--data", "data", "--max-new-tokens", "2",
             "--keep-predictions", "p", "--output", "r.json"),
            {"metrics", "task_aggregate", "terms"},
        ),
        "score": (("score", "--predictions", "p", "--output", "s.json"), {"metrics", "task_aggregate"}),
        "compare": (("compare", "r.json", "s.json"), {"columns", "rows", "notes"}),
        "elicit": (
            ("elicit", "--model", "model", "--about", "A B", "--output", "e.jsonl", "--dry-run", "--samples", "2",
             "--max-new-tokens", "2"),
            {"prompts", "names", "seconds"},
        ),
        "report": (("report", "run", "--overwrite"), {"report", "figures", "cards"}),
        "verdict": (("verdict", "run"), {"run"}),
        "merge": (("merge", "--run", "run", "--output", "merged"), {"output", "survives", "losses"}),
    }  # fmt: skip
    for name, (words, keys) in shown.items():
        told = expunge(*words, "--json", "--quiet")
        assert told.code == 0, told.err
        assert told.err == "" or "warning" in told.err, name
        assert keys <= json.loads(told.out, parse_constant=pytest.fail).keys(), name  # NaN is no JSON
        assert told.out.count("\n") == 1
    assert json.loads(Path("s.json").read_text())["task_aggregate"] is not None
    assert {command.split()[0] for command in shown} | {"demo", "calibrate", "push"} == {*COMMANDS, "dry"}
    refused(expunge("compare", "--json"), "results are missing")


def test_quiet_leaves_progress_out_and_not_the_results(work: Path, expunge: Run) -> None:
    told = expunge(*UNLEARN, *QUICK, "--max-steps", "1", "--quiet")
    assert told.code == 0
    assert all(line.startswith("warning: ") for line in told.err.splitlines())
    assert "adapter   run/adapter" in told.out


@pytest.mark.parametrize("words", [("unlearn", "--help"), ("compare", "r.json")])
def test_a_reader_that_has_read_enough_is_no_error(here: Path, words: tuple[str, ...]) -> None:
    """As under `| head -1`: the pipe is closed before anything is written to it."""
    metrics = {"forget/nll": {"value": 1.0, "low": None, "high": None, "n": 1, "direction": "higher"}}
    Path("r.json").write_text(json.dumps({"schema": 1, "benchmark": "custom", "settings": {}, "metrics": metrics}))
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "expunge", *words]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": SOURCE}, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_arrows_loses_no_run(work: Path, expunge: Run) -> None:
    scored = expunge("evaluate", "--run", "done", "--max-new-tokens", "2", "--device", "cpu")
    assert scored.code == 0, scored.err
    shown = subprocess.run(
        [sys.executable, "-m", "expunge", "compare", "done"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": SOURCE}, capture_output=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert b"\\u2193" in shown.stdout


def test_one_run_in_a_yaml_file_is_one_run(work: Path, expunge: Run) -> None:
    Path("one.yaml").write_text("runs: done\n")
    told = expunge("verdict", "--config", "one.yaml")
    assert told.code == 0, told.err
