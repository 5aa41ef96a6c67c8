"""What saves a person from looking things up: completion, a run where a model is meant, what a merge ends with."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from workspace import QUICK, UNLEARN, Result

from expunge.cli.commands import COMMANDS
from expunge.cli.completion import completion
from expunge.cli.main import main
from expunge.cli.settings import parse, settings_of
from expunge.losses import FORGET_LOSSES
from expunge.utils.progress import Reporter

Run = Callable[..., Result]
ASK = 'source {script}; COMP_WORDS=({words}); COMP_CWORD={place}; _shtab_expunge; printf "%s\\n" "${{COMPREPLY[@]}}"'


# --- completion ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "expunge.bash"
    path.write_text(completion("bash"))
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("expunge", "unl"), {"unlearn"}),
        (("expunge", "unlearn", "--forget"), {"--forget", "--forget-weight", "--forget-span"}),
        (("expunge", "unlearn", "--loss", ""), set(FORGET_LOSSES)),
        (("expunge", "merge", "--dtype", "f"), {"float32", "float16"}),
    ],
)
def test_bash_completes(script: Path, words: tuple[str, ...], offered: set[str]) -> None:
    quoted = " ".join(f"'{word}'" for word in words)
    command = ASK.format(script=script, words=quoted, place=len(words) - 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_zsh_has_every_flag_of_every_command() -> None:
    text = completion("zsh")
    for name, command in COMMANDS.items():
        assert f"{name}:'" in text
        assert all(option.positional or f'"{option.flag}[' in text for option in settings_of(command.schema).values())


def test_another_shell_is_refused(expunge: Run) -> None:
    told = expunge("--print-completion", "cmd.exe")
    assert (told.code, told.err) == (2, f"expunge: error: {told.err.removeprefix('expunge: error: ')}")
    assert "--print-completion cmd.exe: must be one of bash, zsh" in told.err
    assert expunge("--print-completion=bash").out.startswith("# AUTOMATICALLY GENERATED")


# --- a run where a model is meant ----------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--run", "--model"])
def test_a_run_has_two_flags_and_none(flag: str) -> None:
    assert parse(COMMANDS["merge"].schema, (flag, "r", "--output", "o"), "merge")["run"] == "r"
    assert parse(COMMANDS["calibrate"].schema, (f"{flag}=r",), "calibrate")["run"] == "r"
    for command in ("report", "verdict"):
        schema = COMMANDS[command].schema
        assert parse(schema, (flag, "r"), command)["runs"] == parse(schema, (f"{flag}=r",), command)["runs"] == ["r"]


def test_a_second_request_on_a_run_is_one_on_its_adapter(work: Path, expunge: Run) -> None:
    assert expunge(*UNLEARN, *QUICK, "--model", "done", "--output", "by-run").code == 0
    assert expunge(*UNLEARN, *QUICK, "--model", "done/adapter", "--output", "by-adapter").code == 0
    one, other = (Path(name, "adapter", "adapter_model.safetensors") for name in ("by-run", "by-adapter"))
    assert one.read_bytes() == other.read_bytes()
    assert Path("by-run/adapter/adapter_config.json").read_text() == (
        Path("by-adapter/adapter/adapter_config.json").read_text()
    )


def test_a_run_as_the_model_of_an_evaluation_is_that_run(work: Path, expunge: Run) -> None:
    assert expunge("evaluate", "--run", "done", "--output", "a.json", "--max-new-tokens", "2").code == 0
    assert expunge("evaluate", "--model", "done", "--output", "b.json", "--max-new-tokens", "2").code == 0
    one, other = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert one == other
    assert one["adapter"] == "done"


# --- merge and adapter ---------------------------------------------------------------------------


def test_forgetting_that_does_not_survive_is_said_and_ends_with_3(work: Path, expunge: Run) -> None:
    assert expunge(*UNLEARN, *QUICK, "--learning-rate", "1e-9").code == 0  # an adapter that does nothing
    told = expunge("merge", "--run", "run", "--output", "merged")
    assert told.code == 3, told.err
    assert "DOES NOT SURVIVE: the adapter raises the loss" in told.out
    assert Path("merged/config.json").is_file()


def test_the_bound_of_a_merge_is_said(work: Path, expunge: Run) -> None:
    assert expunge(*UNLEARN, *QUICK, "--learning-rate", "0.02").code == 0
    told = expunge("merge", "--run", "run", "--output", "merged", "--json")
    found = json.loads(told.out)
    losses = found["losses"]
    assert told.code == 0, told.err
    assert found["bound"] == pytest.approx((losses["adapter"] - losses["untouched"]) / 10)
    assert abs(losses["merged"] - losses["adapter"]) <= found["bound"]
    strict = expunge("merge", "--run", "run", "--output", "again", "--strict")
    assert strict.code == 3, "nobody has measured that it is a success"
    assert "survives" in strict.out
    assert "verdict                  Not" in strict.out


def test_tokenizer_and_chat_template_are_beside_the_adapter_and_in_the_merged_model(work: Path, expunge: Run) -> None:
    template = "{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}"
    Path("model/chat_template.jinja").write_text(template)
    shutil.rmtree("done")
    assert expunge(*UNLEARN, *QUICK, "--learning-rate", "0.02").code == 0
    assert expunge("merge", "--run", "run", "--output", "merged").code == 0
    for folder in ("run/adapter", "merged"):
        assert Path(folder, "chat_template.jinja").read_text() == template
        assert Path(folder, "tokenizer.json").is_file()


# --- output that nobody reads --------------------------------------------------------------------


def test_a_run_whose_output_nobody_reads_is_finished(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`expunge unlearn ... 2>&1 | head -1`: the pipe breaks while the run goes on."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, os.fdopen(writer, "w", buffering=1))
    assert main([*UNLEARN, *QUICK]) == 0
    assert json.loads(Path("run/manifest.json").read_text())["status"] == "done"
    assert Path("run/report.html").exists()
    assert main(["merge", "--run", "nowhere", "--output", "m"]) == 2


def test_one_thing_moves_at_a_time(work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has one line that moves: rich before 14.1 refuses a second one, later ones draw both."""
    moving: list[str] = []

    def alone(method: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def shown(reporter: Reporter, title: str, *given: Any, **named: Any) -> Iterator[Any]:
            assert not moving, f"{title} while {moving[-1]}"
            moving.append(title)
            with method(reporter, title, *given, **named) as found:
                yield found
            moving.pop()

        return shown

    for name in ("working", "track"):
        monkeypatch.setattr(Reporter, name, alone(getattr(Reporter, name)))
    made = expunge(*UNLEARN, *QUICK, "--output", "run")
    assert made.code == 0, made.err
    told = expunge("evaluate", "--run", "run", "--samples", "2", "--max-new-tokens", "2", "--attacks", "gradient_norm")
    assert told.code == 0, told.err
