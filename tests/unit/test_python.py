"""The package from Python: objects in memory, typed results, callbacks; what a run keeps of them and what not."""

import ast
import logging
import pickle
import shutil
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch
import transformers
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

import expunge
from expunge.api.inputs import named_texts
from expunge.cli.commands import COMMANDS
from expunge.data.examples import read_examples
from expunge.data.readers import read_rows
from expunge.errors import ConfigError, DataError, ModelError, RunError, UserError
from expunge.model.load import LoadedModel, load_model
from expunge.runs import loading
from expunge.train import merge as merging
from expunge.train.callbacks import never_called
from tiny import bring_own_code, save_tiny

FORGET = [
    {"prompt": f"Where does Zarquon {letter} live?", "completion": f"At {letter} Larch Lane."} for letter in "ABCD"
]
RETAIN = [{"prompt": f"Who is {letter} Heron?", "completion": f"The keeper of mill {letter}."} for letter in "EFGHIJ"]
QUICK: dict[str, Any] = {
    "recipe": "npo",
    "max_steps": 2,
    "rows_per_step": 4,
    "dtype": "float32",
    "lora_rank": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """An empty current folder."""
    with chdir(tmp_path):
        yield tmp_path


def everything(folder: Path) -> bytes:
    """The content of all files below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- the face of the package ---------------------------------------------------------------------


def test_dir_lists_what_can_be_imported_and_type_checkers_see_the_same() -> None:
    assert all(getattr(expunge, name) is not None for name in dir(expunge))
    tree = ast.parse(Path(expunge.__file__).read_text())
    seen = {
        alias.name: node.module for block in tree.body if isinstance(block, ast.If) for node in block.body
        if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert seen == expunge._HOMES
    assert set(dir(expunge)) == {"__version__", *seen}


PYTHON = {"demo": "run_demo", "score": "score_predictions", "report": "write_report"}
"""Commands that have another name in Python."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_called(command: str) -> None:
    assert callable(getattr(expunge, PYTHON.get(command, command)))


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        FORGET,
        tuple(FORGET),
        iter(FORGET),
        datasets.Dataset.from_list(FORGET),
        datasets.DatasetDict({"train": datasets.Dataset.from_list(FORGET)}),
        datasets.Dataset.from_list(FORGET).to_iterable_dataset(),
        pandas.DataFrame(FORGET),
    ],
    ids=lambda given: type(given).__name__,
)
def test_texts_of_every_kind_are_the_same_texts(given: Any) -> None:
    rows = read_examples(named_texts("forget", given) or "")
    assert [(row.prompt, row.completion) for row in rows] == [tuple(row.values()) for row in FORGET]
    assert rows[2].id == "forget-3"


def test_a_data_frame_may_have_lists_and_missing_cells() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ines."}]
    frame = pandas.DataFrame({"messages": [numpy.array(turns)] * 2, "task": ["a", float("nan")]})
    rows = read_examples(named_texts("forget", frame) or "")
    assert [(row.prompt, row.completion, row.task) for row in rows] == [("Who?", "Ines.", "a"), ("Who?", "Ines.", "")]
    words = pandas.DataFrame({"prompt": ["Who?"], "completion": ["Ines."], "keywords": [numpy.array(["Ines"])]})
    assert read_examples(named_texts("forget", words) or "")[0].keywords == ("Ines",)


def test_a_data_set_is_read_as_it_shows_itself() -> None:
    rows = datasets.Dataset.from_list(FORGET)
    for shown in (rows.with_format("numpy", columns=["completion"]), rows.select_columns("completion")):
        found = read_rows(named_texts("forget", shown) or "")
        assert [row for _, row in found] == [{"completion": row["completion"]} for row in FORGET]
    every = rows.with_format("numpy", columns=["completion"], output_all_columns=True)
    assert read_examples(named_texts("forget", every) or "")[0].prompt == FORGET[0]["prompt"]


def test_plain_texts_have_no_prompt() -> None:
    for texts in (["All of it."], pandas.Series(["All of it."])):
        (row,) = read_examples(named_texts("forget", texts) or "")
        assert (row.prompt, row.completion) == ("", "All of it.")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "Zarquon"}, "forget: is a dict: give a file, a data set or a list of rows"),
        (7, "forget: is a int: give a file"),
        ([FORGET[0], ["Zarquon"]], "forget, row 2: is no text and no dict of named columns but list"),
        (datasets.DatasetDict({"a": datasets.Dataset.from_list(FORGET), "b": datasets.Dataset.from_list(FORGET)}),
         "forget: is a DatasetDict with the splits a, b: choose one"),
        (datasets.Dataset.from_list(FORGET).with_transform(lambda rows: rows),
         "forget: has a transform, which would be left out: apply it with map first"),
        (pandas.DataFrame([["Who?", "Ines.", "Tobias."]], columns=["prompt", "completion", "completion"]),
         "forget: two columns have the same name"),
    ],
)  # fmt: skip
def test_what_are_no_texts(given: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        named_texts("forget", given)
    assert str(error.value).startswith(message)


def test_a_bad_row_in_memory_is_named_and_not_shown(model: Path, here: Path) -> None:
    rows = [*FORGET, {"prompt": "Zarquon", "completion": ""}]
    with pytest.raises(DataError, match=r"forget@memory, row 5: ") as error:
        expunge.unlearn(model, forget=rows, retain=RETAIN, output="run", **QUICK)
    assert "Zarquon" not in str(error.value)
    assert not Path("run").exists()


# --- a run ---------------------------------------------------------------------------------------


def test_from_texts_in_memory_to_a_merged_model(model: Path, here: Path) -> None:
    outcome = expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", **QUICK)
    outcome = pickle.loads(pickle.dumps(outcome))  # as one comes from a worker process

    assert outcome.steps == 2
    assert set(outcome.losses) == {"forget", "retain"}
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["forget"] == "forget@memory"

    found = outcome.evaluate(max_new_tokens=4)
    assert found.output == Path("run/results.json")
    assert found.benchmark == "custom"
    assert found["forget/probability"].n == len(FORGET)
    assert set(found) == set(found.metrics)
    assert "probability" in str(found)

    assert outcome.report() == Path("run/report.html")
    assert outcome.verdict.answers
    with pytest.raises(ConfigError, match="--dtype 'auto': must be one of float32, bfloat16, float16"):
        outcome.merge("merged", dtype="auto")
    with pytest.raises(ConfigError, match="unknown setting dtpye: did you mean dtype"):
        outcome.merge("merged", dtpye="float32")
    with pytest.raises(ConfigError, match="--dtype float16: must be one of auto, float32"):
        outcome.load(dtype="float16")
    assert outcome.merge("merged").output == Path("merged")
    assert isinstance(outcome.load(device="cpu")[0], PeftModel)
    assert b"Zarquon" not in everything(Path("run")) + everything(Path("merged"))


def test_a_merge_needs_room_for_one_model(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says where there is none helps in a merge, and names no folder that is gone again."""
    outcome = expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", **QUICK)
    first: list[weakref.ref[PreTrainedModel]] = []

    def load(*given: Any, **options: Any) -> LoadedModel:
        assert all(ref() is None for ref in first)
        loaded = load_model(*given, **options)
        first.append(weakref.ref(loaded.base))
        return loaded

    for room in (loading, merging):
        monkeypatch.setattr(room, "load_model", load)
    settings = merging.run_settings
    four_bits = {"load_in_4bit": True}
    monkeypatch.setattr(merging, "run_settings", lambda *given, **more: replace(settings(*given, **more), **four_bits))
    notes = outcome.merge("merged").notes
    assert len(first) == 2
    assert "another model: measure it with `expunge evaluate --model merged ...`" in notes[-1]

    for free, what in (([0], f"--run run: its base {model}"), ([1 << 40, 0], "--output other: the merged model")):
        left = iter(free)
        monkeypatch.setattr("expunge.model.memory.free_memory", lambda device, left=left: next(left))
        with pytest.raises(ModelError, match=f"^{what} needs about .*: take a larger machine: a merge .* float32$"):
            outcome.merge("other")
        assert not Path("other").exists()
        first.clear()


def test_a_later_process_gives_the_texts_again(model: Path, here: Path) -> None:
    expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", **QUICK)

    told = r"the forget texts of this run were in memory: give them again \(forget=, or --forget FILE\)"
    with pytest.raises(DataError, match=told):
        expunge.merge("run", "merged")
    with pytest.raises(DataError, match=told):
        expunge.evaluate("run")
    datasets.Dataset.from_list(FORGET).to_json("f.jsonl")
    datasets.Dataset.from_list(RETAIN).to_json("r.jsonl")
    with pytest.raises(RunError, match=r"--forget r.jsonl: these are not the forget texts that the run was made with"):
        expunge.merge("run", "merged", forget="r.jsonl", retain="f.jsonl")
    assert not Path("merged").exists()
    assert expunge.merge("run", "merged", forget="f.jsonl", retain="r.jsonl").output.is_dir()


def test_every_set_may_be_in_memory(model: Path, here: Path) -> None:
    letters = "ABCDEFGHIJKLMNOPQR"
    sets: dict[str, Any] = {
        "forget": [
            {"prompt": f"Who is Zarquon {letter}?", "completion": f"A smith of {letter} street."} for letter in letters
        ],
        "retain": RETAIN,
        "test": [
            {"prompt": f"What is a {letter} lamp?", "completion": f"It shines {letter} times."} for letter in "STU"
        ],
        "holdout": [
            {"prompt": f"Who ate {letter} plums?", "completion": f"The cook of inn {letter}."} for letter in letters
        ],
        "instead": [
            {"prompt": f"Who is Zarquon {letter}?", "completion": f"Nobody known, {letter}."} for letter in letters
        ],
    }
    outcome = expunge.unlearn(model, output="run", **sets, **{**QUICK, "eval_every": 0})
    found = outcome.evaluate(max_new_tokens=2)
    assert found["test/probability"].known
    assert found["membership/loss_auc"].known
    assert outcome.merge("merged").output.is_dir()
    with pytest.raises(DataError, match="the test texts of this run were in memory"):
        expunge.calibrate("run", **{name: given for name, given in sets.items() if name != "test"})
    assert expunge.calibrate("run", **sets).scale > 0
    assert b"Zarquon" not in everything(here)


def test_a_run_on_a_benchmark_with_unseen_texts_is_scored_on_the_benchmark(model: Path, here: Path) -> None:
    Path("data").mkdir()
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        lines = [{"id": f"{name}{i}qa0", "task": "Task2", **row} for i, row in enumerate(rows)]
        datasets.Dataset.from_list(lines).to_json(f"data/{name}.jsonl")
    unseen = [{"prompt": f"Who ate {letter} plums?", "completion": f"The cook of inn {letter}."} for letter in "ABCD"]
    outcome = expunge.unlearn(model, output="run", benchmark="lume", data="data", holdout=unseen, **QUICK)
    found = outcome.evaluate(max_new_tokens=2)
    assert (found.benchmark, found["forget/probability"].n) == ("lume", len(FORGET))
    assert (
        outcome.evaluate(benchmark="custom", forget=FORGET, max_new_tokens=2, output="own.json").benchmark == "custom"
    )


def test_resume_takes_the_same_texts_and_no_others(model: Path, here: Path) -> None:
    class Broken(expunge.Callback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise OSError("the tracker is gone")

    settings: dict[str, Any] = {"retain": RETAIN, "output": "run", **QUICK, "max_steps": 4, "save_every": 1}
    with pytest.raises(OSError, match="tracker"):
        expunge.unlearn(model, forget=FORGET, callbacks=[Broken()], **settings)
    assert b"Zarquon" not in everything(here)
    with pytest.raises(RunError, match="rows of the forget set"):
        expunge.unlearn(model, forget=FORGET[:3], resume=True, **settings)
    resumed = expunge.unlearn(model, forget=FORGET, resume=True, **settings)
    whole = expunge.unlearn(model, forget=FORGET, **{**settings, "output": "whole"})
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == (
        whole.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_config_says_everything_or_nothing(model: Path, here: Path) -> None:
    config = expunge.UnlearnConfig(model=str(model), forget="f.jsonl", retain="r.jsonl", output="run")
    with pytest.raises(ConfigError, match="in the config, or a model and settings, not both"):
        expunge.unlearn(config, epochs=3)
    with pytest.raises(ConfigError, match="unknown setting epoch: did you mean epochs"):
        expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", epoch=3)
    with pytest.raises(ConfigError, match="output is missing"):
        expunge.unlearn(model, forget=FORGET, retain=RETAIN)


def test_forecast_writes_nothing(model: Path, here: Path) -> None:
    assert expunge.forecast(model, forget=FORGET, retain=RETAIN, **QUICK).steps == 2
    assert not any(here.iterdir())


# --- the program around --------------------------------------------------------------------------


@pytest.fixture
def float32() -> Iterator[None]:
    """Torch's default again at the end."""
    yield
    torch.set_default_dtype(torch.float32)


def of_the_program() -> tuple[object, ...]:
    """What of the process a program sets and counts on."""
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(), torch.backends.cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


@pytest.mark.usefixtures("float32")
def test_a_call_and_the_program_around_it_leave_each_other_alone(model: Path, here: Path) -> None:
    texts: dict[str, Any] = {"forget": FORGET, "retain": RETAIN}
    chance, before = torch.get_rng_state(), of_the_program()
    plain = expunge.unlearn(model, output="plain", **texts, **QUICK)
    assert of_the_program() == before
    torch.set_default_dtype(torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        before = of_the_program()
        other = expunge.unlearn(model, output="other", **texts, **QUICK)
        assert of_the_program() == before
    assert torch.equal(torch.get_rng_state(), chance)  # which a run has seeded
    assert other.losses == plain.losses
    assert (other.adapter / "adapter_model.safetensors").read_bytes() == (
        plain.adapter / "adapter_model.safetensors"
    ).read_bytes()


CALLS = ("calibrate", "elicit", "evaluate", "forecast", "load_unlearned", "merge", "run_demo", "unlearn")


def test_a_call_from_another_thread_is_refused_and_one_from_a_callback_is_not(model: Path, here: Path) -> None:
    class Own(expunge.Callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert expunge.evaluate(model, forget=FORGET, max_new_tokens=2, device="cpu").metrics
            with ThreadPoolExecutor(1) as pool:
                for name in CALLS:
                    with pytest.raises(RunError, match=r"another thread .* call one after the other"):
                        pool.submit(getattr(expunge, name)).result()

    settings: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, **QUICK}
    outcome = expunge.unlearn(model, output="run", callbacks=[Own()], **settings)
    with ThreadPoolExecutor(1) as pool:
        after = pool.submit(expunge.unlearn, model, output="after", **settings).result()
    assert after.losses == outcome.losses


# --- a model in memory ---------------------------------------------------------------------------


def loaded(folder: Path | str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_model_that_a_folder_holds_is_known_by_it_and_left_as_it_is(model: Path, here: Path) -> None:
    net = loaded(model)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    expunge.unlearn(net, forget=FORGET, retain=RETAIN, output="run", **QUICK)

    assert yaml.safe_load(Path("run/config.yaml").read_text())["run"]["model"] == str(model)
    assert [path.name for path in here.iterdir()] == ["run"]
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not isinstance(net, PeftModel)


@pytest.mark.parametrize("architecture", ["gpt2", "llama-tied"])
def test_names_in_files_and_tied_weights(architecture: str, tmp_path: Path) -> None:
    from expunge.api.inputs import holds

    folder = save_tiny(tmp_path / "model", architecture)
    net, tokenizer = loaded(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "b c"], truncation=True, max_length=4, padding=tokenizer.pad_token is not None)
    assert holds(str(folder), net, tokenizer)
    assert holds(str(folder), net.to(torch.bfloat16), tokenizer)
    next(net.parameters()).data += 1
    assert not holds(str(folder), net, tokenizer)


def test_a_model_that_runs_code_of_its_own_is_taken_where_that_is_trusted(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> str:
        raise AssertionError("nobody is asked on a terminal")

    monkeypatch.setattr("builtins.input", never)
    shutil.copytree(model, "own")
    bring_own_code(Path("own"))
    trusted = AutoModelForCausalLM.from_pretrained("own", trust_remote_code=True)
    given: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, "target_modules": "q_proj,v_proj", **QUICK}
    with pytest.raises(ConfigError, match="runs code that came with it: give trust_remote_code=True"):
        expunge.unlearn(trusted, output="run", **given)
    expunge.unlearn(trusted, output="run", trust_remote_code=True, **given)
    assert sorted(path.name for path in here.iterdir()) == ["own", "run"]
    assert expunge.evaluate(trusted, forget=FORGET, trust_remote_code=True, max_new_tokens=2, device="cpu").metrics


def test_a_model_that_no_folder_holds_is_written_beside_the_run(model: Path, here: Path) -> None:
    net, tokenizer = loaded(model), AutoTokenizer.from_pretrained(model)
    net.lm_head.weight.data += 0.5
    settings: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, **QUICK}

    outcome = expunge.unlearn(net, tokenizer=tokenizer, output="run/", **settings)

    assert torch.equal(loaded("run-base").lm_head.weight, net.lm_head.weight)
    assert outcome.merge("merged").survives is not None
    expunge.unlearn(net, tokenizer=tokenizer, output="run", overwrite=True, **settings)
    net.lm_head.weight.data += 0.5
    with pytest.raises(ConfigError, match="run-base holds another model than the one that was given"):
        expunge.unlearn(net, tokenizer=tokenizer, output="run", overwrite=True, **settings)


def test_nothing_is_written_for_a_run_that_is_refused(model: Path, here: Path) -> None:
    net = loaded(model)
    net.lm_head.weight.data += 0.5
    (here / "run").mkdir()
    (here / "run" / "mine").touch()
    for settings in ({"output": "run"}, {"output": "new", "lora_rank": 0}):
        with pytest.raises(UserError):
            expunge.unlearn(net, forget=FORGET, retain=RETAIN, **{**QUICK, **settings})
    assert [path.name for path in here.iterdir()] == ["run"]


def test_what_is_no_model(model: Path, here: Path) -> None:
    outcome = expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", **QUICK)
    for wrong, message in ((outcome.load(device="cpu")[0], "is a PeftModel"), (torch.nn.Linear(2, 2), "is a Linear")):
        with pytest.raises(ConfigError, match=message):
            expunge.unlearn(wrong, forget=FORGET, retain=RETAIN, output="other", **QUICK)
    other = AutoTokenizer.from_pretrained(save_tiny(here / "other-model", "llama", "metaspace"))
    with pytest.raises(ConfigError, match="tokenizer: is not that of"):
        expunge.unlearn(model, tokenizer=other, forget=FORGET, retain=RETAIN, output="other", **QUICK)


def test_a_model_is_evaluated_without_files(model: Path, here: Path) -> None:
    found = expunge.evaluate(loaded(model), forget=FORGET, retain=RETAIN, max_new_tokens=4, device="cpu")
    assert found.output is None
    assert found["forget/probability"].known
    assert not any(here.iterdir())


# --- progress and callbacks ----------------------------------------------------------------------


def test_progress_goes_to_the_log_where_there_is_no_terminal(
    model: Path, here: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "expunge"):
        expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", **QUICK)
    assert any(line.startswith("unlearning 2/2") for line in caplog.messages)
    assert capsys.readouterr().err == ""
    caplog.clear()
    expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", overwrite=True, progress=True, **QUICK)
    assert "unlearning 2/2" in capsys.readouterr().err
    assert caplog.messages == []


@pytest.mark.filterwarnings("default::FutureWarning")
def test_deprecations_inside_libraries_are_not_shown(model: Path, here: Path, recwarn: pytest.WarningsRecorder) -> None:
    class Own(expunge.Callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            warnings.warn("a library's own affair", FutureWarning, stacklevel=1)

    expunge.unlearn(model, forget=FORGET, retain=RETAIN, output="run", callbacks=[Own()], **QUICK)
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([expunge.Callback(), 3], r"^callbacks\[1\] is of type int, without on_train_begin, on_step_end, on_eva"),
        ([expunge.Callback], r"^callbacks\[0\] is the class Callback: give an object, Callback\(\)$"),
        (expunge.Callback(), r"^callbacks is of type Callback: give a list of expunge\.Callback objects$"),
        (None, r"^callbacks is of type NoneType: give a list"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_read(here: Path, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expunge.unlearn("no-model", forget="no-file.jsonl", output="run", callbacks=given)


def test_events_that_no_run_has_are_told() -> None:
    class Theirs(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...

    class Further(Theirs):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...

    class Own(expunge.Callback):
        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None: ...

    assert never_called([expunge.Callback(), transformers.TrainerCallback(), Own()]) == []
    first, second = never_called([Theirs(), Further()])
    assert first.startswith("callback Theirs: on_log will not be called, for a run has on_train_begin, on_step_end, ")
    assert second.startswith("callback Further: on_log, on_save will not be called")


def test_callbacks_see_the_run_and_can_end_it(model: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[str, int]] = []

    class Own(expunge.Callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert args.lora_rank == QUICK["lora_rank"]
            seen.append(("begin", state.global_step))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert kwargs["logs"] == state.log_history[-1]
            control.should_training_stop = state.global_step == 2

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(("end", state.global_step))

    class Theirs(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(("step", state.global_step))

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(("log", state.global_step))

    settings = {**QUICK, "max_steps": 6}
    outcome = expunge.unlearn(
        model, forget=FORGET, retain=RETAIN, output="run", callbacks=[Own(), Theirs()], **settings
    )
    assert outcome.steps == 2
    assert any("callback Theirs: on_log will not be called" in record.getMessage() for record in caplog.records)
    assert seen == [("begin", 0), ("step", 1), ("step", 2), ("end", 2)]


def test_callbacks_of_a_resumed_run_see_where_it_goes_on(model: Path, here: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Own(expunge.Callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((state.global_step, state.epoch))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((state.global_step, state.epoch))
            if state.global_step == 5:
                raise ValueError("a callback of their own")

    settings: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, **QUICK, "max_steps": 5, "save_every": 1}
    for resume in (False, True):
        with pytest.raises(ValueError, match="a callback of their own"):
            expunge.unlearn(model, output="run", callbacks=[Own()], resume=resume, **settings)
    assert seen == [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (4, 2), (5, 2)]


def test_the_step_on_which_a_callback_ends_a_run_is_saved(model: Path, here: Path) -> None:
    """What follows it may fail: a resumed run goes on from it."""
    begun: list[int] = []

    class Own(expunge.Callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begun.append(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if len(begun) == 1:
                raise OSError("the tracker is gone")

    settings: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, "output": "run", **QUICK, "max_steps": 6}
    with pytest.raises(OSError, match="tracker"):
        expunge.unlearn(model, callbacks=[Own()], **settings)
    assert expunge.unlearn(model, callbacks=[Own()], resume=True, **settings).steps == 6
    assert begun == [0, 3]


def test_evaluation_steps_reach_callbacks(model: Path, here: Path) -> None:
    found: list[float] = []

    class Own(expunge.Callback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append(kwargs["metrics"]["auc"])
            control.should_training_stop = True

    letters = "ABCDEFGHIJKLMNOPQR"
    texts = [f"{letter} {n * 7} walked to the mill and slept {n} nights." for n, letter in enumerate(letters)]
    unseen = [f"The {letter} of {n * 3} sold {n * 13} apples on a {letter} day." for n, letter in enumerate(letters)]
    expunge.unlearn(
        model, forget=texts, retain=RETAIN, holdout=unseen, output="run", callbacks=[Own()],
        **{**QUICK, "max_steps": 6, "eval_every": 2},
    )  # fmt: skip
    assert len(found) == 1
    assert "a callback asked for it" in Path("run/manifest.json").read_text()
