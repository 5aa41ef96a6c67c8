"""The main job through the command line, on tiny models: what a run leaves behind, and that it can be trusted."""

import csv
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM
from workspace import FORGET, MARKER, QUICK, RETAIN, UNLEARN, Result, snapshot, stopped_after, temporary, write_jsonl

from expunge import UnlearnConfig, load_unlearned, unlearn
from expunge.cli.main import main
from expunge.config import RECIPES
from expunge.config.nested import by_group
from expunge.config.unlearn import GROUPS
from expunge.errors import RunError
from expunge.losses.npo import NPO
from expunge.model.load import LoadedModel, load_model
from expunge.runs.settings import recorded, recorded_settings, resumed_settings, run_settings
from expunge.utils import files
from tiny import bring_own_code, save_tiny, tiny_tokenizer, to_fp8

TRAIN = (*UNLEARN, *QUICK)
LONG = (
    *UNLEARN,
    "--recipe",
    "npo",
    "--rows-per-step",
    "4",
    "--epochs",
    "400",
    "--dtype",
    "float32",
    "--lora-rank",
    "2",
)
SETS = ("--model", "model", "--retain", "retain.jsonl", "--output", "run", *QUICK)
IDS = torch.tensor([[5, 17, 42, 3, 88, 101, 7, 9]])
Run = Callable[..., Result]


def adapter_bytes(run: str) -> bytes:
    return Path(run, "adapter/adapter_model.safetensors").read_bytes()


def metrics(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def manifest(run: str) -> dict:
    return json.loads(Path(run, "manifest.json").read_text())


# --- what a run leaves behind --------------------------------------------------------------------


def test_run_directory_holds_what_the_contract_says_and_nothing_else(work: Path, expunge: Run) -> None:
    write_jsonl(work / "unseen.jsonl", [{"text": "Tobias closed the heavy book and slept until noon."}])
    result = expunge(*TRAIN, "--holdout", "unseen.jsonl")

    assert result.code == 0, result.err
    assert set(snapshot(work / "run")) == {
        ".expunge",
        ".expunge/files",
        "adapter",
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
        "verdict.json",
    }
    for path in [work / "run", *(work / "run").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert temporary(work) == []
    assert "run/adapter" in result.out
    assert all(name in result.out for name in ("forget", "retain", "holdout"))


def test_metrics_and_manifest(work: Path, expunge: Run) -> None:
    assert expunge(*TRAIN).code == 0

    lines = metrics("run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        names = ["step", "epoch", "loss", "forget", "retain", "kl", "grad_norm", "learning_rate", "tokens"]
        assert list(line) == names
        assert line["loss"] == pytest.approx(line["forget"] + line["retain"] + RECIPES["npo"]["kl_weight"] * line["kl"])
    assert lines[0]["forget"] == pytest.approx(2 / NPO.beta * math.log(2))  # the policy is the reference
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)

    found = manifest("run")
    assert found["status"] == "done"
    assert found["steps"] == 3
    assert found["rows"] == {"forget": 4, "retain": 6, "test": 0, "holdout": 0, "instead": 0}
    assert found["settings"]["learning_rate"] > 0
    assert found["settings"]["prompt_format"] != "auto"
    assert found["settings"]["recipe"] == "npo"
    assert {"torch", "transformers", "peft", "expunge", "python"} <= found["versions"].keys()
    assert len(found["model_sha256"]) == len(found["adapter_sha256"]) == 64
    assert re.fullmatch(r"[0-9a-f]{8}:[0-9a-f]{64}", found["data"]["forget"])
    assert found["peak_memory_bytes"] > 0
    assert found["training_seconds"] <= found["total_seconds"]
    assert set(found["loss_nats_per_completion_token"]["forget"]) == {"before", "after"}


def test_no_text_of_the_data_is_left_anywhere(work: Path, expunge: Run) -> None:
    result = expunge(*TRAIN, "--save-every", "1")

    assert result.code == 0
    assert MARKER not in result.err + result.out
    for name, content in snapshot(work / "run").items():
        assert MARKER.encode() not in name.encode() + (content or b"")
        assert b"Larch" not in (content or b"")
        assert b"keeper" not in (content or b"")


def test_repeating_a_run_from_its_own_config(work: Path, expunge: Run) -> None:
    assert expunge(*TRAIN, "--seed", "7", "--loss-args", "beta=0.3").code == 0

    again = expunge("unlearn", "--config", "run/config.yaml", "--output", "again")

    assert again.code == 0, again.err
    assert adapter_bytes("again") == adapter_bytes("run")
    settings = {name: yaml.safe_load(Path(name, "config.yaml").read_text()) for name in ("run", "again")}
    assert list(settings["run"]) == list(GROUPS)
    settings["run"]["run"]["output"] = "again"
    assert settings["again"] == settings["run"]


def test_overwrite_replaces_a_run_and_nothing_else_does(work: Path, expunge: Run) -> None:
    files.write_text(work / "done/results.json", "old")  # as a command does

    assert expunge(*TRAIN, "--output", "done", "--seed", "1", "--overwrite").code == 0

    assert not (work / "done/results.json").exists()
    assert manifest("done")["settings"]["seed"] == 1


def test_a_recipe_is_what_it_says_and_flags_win_over_it(work: Path, expunge: Run) -> None:
    base = ("unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--max-steps", "2")
    assert expunge(*base, "--epochs", "3", "--recipe", "paper", "--output", "paper").code == 0
    found = manifest("paper")["settings"]
    wanted = {"recipe": "paper", **RECIPES["paper"], "epochs": 3}
    assert {name: found[name] for name in wanted} == wanted
    assert {term["name"]: term["weight"] for term in manifest("paper")["terms"]} == {
        "forget": 1.0, "retain": 1.0, "kl": 0.5,
    }  # fmt: skip


# --- what it reads -------------------------------------------------------------------------------


def as_csv(path: Path) -> str:
    with open(path / "f.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", "answer"), *((row["input"], row["output"]) for row in FORGET)])
    return "f.csv"


def as_parquet(path: Path) -> str:
    pandas.DataFrame(FORGET).to_parquet(path / "f.parquet")
    return "f.parquet"


def as_json(path: Path) -> str:
    (path / "f.json").write_text(json.dumps([{"prompt": row["input"], "completion": row["output"]} for row in FORGET]))
    return "f.json"


def as_plain_text(path: Path) -> str:
    write_jsonl(path / "f.jsonl", [{"text": f"{row['input']} {row['output']}"} for row in FORGET])
    return "f.jsonl"


@pytest.mark.parametrize("write", [as_csv, as_parquet, as_json, as_plain_text])
def test_every_kind_of_file(write: Callable[[Path], str], work: Path, expunge: Run) -> None:
    result = expunge("unlearn", "--forget", write(work), *SETS, "--end-of-text", "no")

    assert result.code == 0, result.err
    found = manifest("run")
    assert found["rows"]["forget"] == len(FORGET)
    if (
        write is not as_plain_text
        and found["settings"]["prompt_format"] == manifest("done")["settings"]["prompt_format"]
    ):
        assert expunge(*TRAIN, "--output", "same", "--end-of-text", "no").code == 0
        assert adapter_bytes("run") == adapter_bytes("same"), "the file's format makes no difference"


def test_columns_by_flag(work: Path, expunge: Run) -> None:
    for name, rows in (("f.jsonl", FORGET), ("r.jsonl", RETAIN)):
        write_jsonl(work / name, [{"q": row["input"], "reply": row["output"], "key": row["id"]} for row in rows])
    flags = ("--forget", "f.jsonl", "--retain", "r.jsonl", "--columns", "prompt=q,completion=reply,id=key")

    assert expunge(*TRAIN, *flags).code == 0
    assert adapter_bytes("run") == adapter_bytes("done")


def test_chats(work: Path, expunge: Run) -> None:
    save_tiny(work / "chatty", "qwen3", "chat")
    for name, rows in (("f.jsonl", FORGET), ("r.jsonl", RETAIN)):
        turns = [
            [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}] for row in rows
        ]
        write_jsonl(work / name, [{"messages": messages} for messages in turns])

    result = expunge(
        *TRAIN, "--model", "chatty", "--forget", "f.jsonl", "--retain", "r.jsonl", "--prompt-format", "chat"
    )

    assert result.code == 0, result.err
    assert manifest("run")["settings"]["prompt_format"] == "chat"


def test_the_benchmark_folder(work: Path, expunge: Run) -> None:
    (work / "data").mkdir()
    for name in ("forget.jsonl", "retain.jsonl"):
        shutil.copy(name, work / "data" / name)
    arguments = ("unlearn", "--model", "model", "--benchmark", "semeval", "--data", "data", "--output", "run", *QUICK)

    assert expunge(*arguments).code == 0
    assert adapter_bytes("run") == adapter_bytes("done")


def test_warnings_name_ids_and_no_texts(work: Path, expunge: Run) -> None:
    write_jsonl(work / "retain.jsonl", [*RETAIN, FORGET[2], {**RETAIN[0], "output": "Again."}])

    result = expunge(*TRAIN)

    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert any("also in forget" in line and f"1 (rows {len(RETAIN) + 1})" in line for line in warnings)
    assert any(f"earlier row: line {len(RETAIN) + 2}" in line and "jsonl" not in line for line in warnings), warnings
    assert manifest("run")["warnings"]
    (few,) = [line for line in warnings if "answers of the report" in line]
    assert few.startswith(
        f"warning: forget has {len(FORGET)} texts: on fewer than 32, and 32 unseen ones (--holdout), "
    )
    assert MARKER not in result.err


def test_truncate_completions_by_flag(work: Path, expunge: Run) -> None:
    result = expunge(*TRAIN, "--max-length", "12", "--truncate-completions")
    assert result.code == 0, result.err
    assert "were cut" in result.err


@pytest.mark.parametrize(
    ("flags", "bound"),
    [
        (("--max-length", "255"), "--max-length is 255: raise it, give"),
        (("--max-length", "256"), "the model's context is 256: give"),
        ((), "the model's context is 256: give"),
    ],
)
def test_a_completion_that_does_not_fit_says_what_is_in_its_way(
    flags: tuple[str, ...], bound: str, work: Path, expunge: Run
) -> None:
    """No flag gives a model more context, also where it is just what the flag says."""
    write_jsonl(work / "forget.jsonl", [{**FORGET[0], "output": "the old mill by the river " * 40}, *FORGET[1:]])
    told = expunge(*TRAIN, *flags)
    assert told.code == 2
    assert f"tokens and {bound} the text in pieces" in told.err


def test_a_completion_that_is_much_too_long_is_refused_before_weights_load(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loads(*given: object, **named: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("expunge.train.setup.load_model", loads)
    write_jsonl(work / "retain.jsonl", [*RETAIN, {**RETAIN[0], "output": "the old mill by the river " * 40}])
    told = expunge(*TRAIN, "--max-length", "128")
    assert told.code == 2, told.err
    assert f"retain.jsonl:{len(RETAIN) + 1}: the completion alone has " in told.err
    assert "tokens and --max-length is 128: raise it, give the text in pieces" in told.err


def test_texts_to_forget_that_are_cut_are_a_warning(work: Path, expunge: Run) -> None:
    """The secret may stand in what is cut off, and is then as well known as before."""
    write_jsonl(work / "forget.jsonl", [{**FORGET[0], "input": "by the river the old mill " * 40}, *FORGET[1:]])
    told = expunge(*TRAIN, "--quiet")
    assert told.code == 0, told.err
    warning = "forget: 1 text longer than the model's context of 256 tokens: what was cut off"
    assert f"warning: {warning}" in told.err
    assert any(line.startswith(warning) for line in manifest("run")["warnings"])


@pytest.mark.parametrize("model", ["gemma3", "adapter"])
def test_a_tokenizer_may_know_more_tokens_than_the_model(model: str, work: Path, expunge: Run) -> None:
    """huggingface/transformers#37011: Gemma 3's does by itself, that of an adapter where tokens were added to it."""
    tokenizer = tiny_tokenizer("bytelevel")
    if model == "gemma3":
        save_tiny(work / model, "gemma3", vocab_size=len(tokenizer))
        tokenizer.add_tokens(["<image_soft_token>"])
    else:
        shutil.copytree("done/adapter", model)
        tokenizer.add_tokens(["[PAD]", "<a>", "<b>", "<c>", "<d>"])
    tokenizer.save_pretrained(model)
    made = expunge(*TRAIN, "--model", model)
    assert made.code == 0, made.err
    loaded = load_model(model, dtype="float32", device="cpu")
    assert len(loaded.tokenizer) > loaded.base.get_input_embeddings().weight.shape[0]


def test_an_fp8_checkpoint_is_unlearned_scored_and_merged(work: Path, expunge: Run) -> None:
    """hiyouga/LlamaFactory#10328: it is widened to bfloat16, also where a command computes in float32."""
    AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16).save_pretrained("model")
    to_fp8(work / "model")
    made = expunge(*TRAIN, "--learning-rate", "0.02")
    assert made.code == 0, made.err
    scored = expunge("evaluate", "--run", "run", "--max-new-tokens", "2", "--device", "cpu")
    assert scored.code == 0, scored.err
    merged = expunge("merge", "--run", "run", "--output", "merged")
    assert merged.code == 0, merged.err
    assert "(bfloat16)" in merged.out
    assert "quantization_config" not in json.loads(Path("merged/config.json").read_text())


def test_a_model_that_is_an_adapter_is_folded_in_first(work: Path, expunge: Run) -> None:
    result = expunge(*TRAIN, "--model", "done/adapter", "--learning-rate", "1e-9", "--max-steps", "1")

    assert result.code == 0, result.err
    assert "folded into its base" in result.err
    folded = manifest("run")["loss_nats_per_completion_token"]["forget"]["before"]
    assert folded == pytest.approx(manifest("done")["loss_nats_per_completion_token"]["forget"]["after"], abs=1e-4)
    assert metrics("run")[0]["kl"] == pytest.approx(0, abs=1e-6)

    model, _ = load_unlearned("run", dtype="float32", device="cpu")
    base = AutoModelForCausalLM.from_pretrained("model")
    first = PeftModel.from_pretrained(base, "done/adapter")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, first(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


# --- the adapter ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt2", "gemma2", "olmo"])
def test_adapter_loads_with_plain_peft_and_is_the_trained_policy(arch: str, work: Path, expunge: Run) -> None:
    save_tiny(work / "other", arch)
    module = import_module("expunge.train.loop")
    trained: list[torch.Tensor] = []
    save_adapter = module.save_adapter

    def record(loaded: LoadedModel, *rest: object, **named: object) -> object:
        with torch.no_grad():
            trained.append(loaded.model(input_ids=IDS).logits)
        return save_adapter(loaded, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_adapter", record)
        assert expunge(*TRAIN, "--model", "other", "--learning-rate", "0.02").code == 0

    attention = "eager" if arch == "gemma2" else None  # sdpa, once the default, knows no softcap
    base = AutoModelForCausalLM.from_pretrained("other", attn_implementation=attention).eval()
    with torch.no_grad():
        untouched = base(input_ids=IDS).logits
        loaded = PeftModel.from_pretrained(base, "run/adapter").eval()(input_ids=IDS).logits
    assert not torch.allclose(loaded, untouched, atol=1e-3)
    torch.testing.assert_close(loaded, trained[0], rtol=1e-5, atol=1e-5)
    config = json.loads(Path("run/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(work / "other")
    assert config["lora_dropout"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_writes_a_plain_model_in_the_dtype_of_the_base(dtype: str, work: Path, expunge: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained("model", dtype=getattr(torch, dtype))
    model.save_pretrained("model")
    assert expunge(*TRAIN, "--learning-rate", "0.02").code == 0

    result = expunge("merge", "--run", "run", "--output", "merged")

    assert result.code == 0, result.err
    assert f"({dtype})" in result.out
    assert "survives the rounding" in result.out
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert {str(parameter.dtype) for parameter in merged.parameters()} == {f"torch.{dtype}"}
    assert not any("lora" in name for name, _ in merged.named_parameters())
    unlearned, tokenizer = load_unlearned("run", dtype="float32", device="cpu")
    assert len(tokenizer) <= merged.config.vocab_size
    with torch.no_grad():
        difference = (merged.float()(input_ids=IDS).logits - unlearned(input_ids=IDS).logits).abs().max().item()
    assert difference < (1e-4 if dtype == "float32" else 0.5)
    assert (work / "merged").stat().st_mode & 0o777 == 0o700
    assert temporary(work) == []


def test_a_base_stored_in_bfloat16_gives_a_float32_adapter(work: Path, expunge: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
    model.save_pretrained("model")

    assert expunge(*TRAIN, "--dtype", "bfloat16").code == 0

    from safetensors.torch import load_file

    tensors = load_file("run/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert metrics("run")[0]["kl"] == pytest.approx(0, abs=1e-3)


# --- stopping and going on -----------------------------------------------------------------------


def test_resumed_equals_uninterrupted_bit_for_bit(work: Path, expunge: Run) -> None:
    arguments = (*TRAIN, "--max-steps", "7", "--epochs", "9")
    assert expunge(*arguments, "--output", "whole").code == 0

    for _ in range(2):  # interrupted twice
        with stopped_after(3):
            stopped = expunge(*arguments, *(["--resume"] if Path("run").exists() else []))
        assert stopped.code == 130, stopped.err
        assert "--resume" in stopped.err
        assert "Traceback" not in stopped.err
        assert manifest("run")["status"] == "running"
        assert not Path("run/adapter").exists()
    for name, content in snapshot(work / "run").items():
        assert MARKER.encode() not in (content or b""), name
    steps = len(metrics("run"))
    assert 0 < steps < 7

    other = expunge("unlearn", "--resume", "--output", "run", "--lora-rank", "3")
    assert other.code == 2
    assert "was started with other lora_rank (2 then, 3 now): leave --lora-rank out to go on with it" in other.err
    assert "prompt format" not in other.err  # nothing was loaded yet
    resumed = expunge("unlearn", "--resume", "--output", "run")
    assert resumed.code == 0
    assert "resume: replay texts and reference are made again" in resumed.err

    assert adapter_bytes("run") == adapter_bytes("whole")
    assert Path("run/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()
    assert not Path("run/checkpoints").exists()
    assert manifest("run")["steps"] == manifest("whole")["steps"] == 7


def test_commands_go_on_from_the_manifest_and_config_yaml_is_for_people(work: Path) -> None:
    config = run_settings("done")
    assert (config.output, config.device, config.max_steps) == ("done", "cpu", 3)
    assert yaml.safe_load(Path("done/config.yaml").read_text()) == by_group(recorded(config))
    Path("done/config.yaml").write_text("model: [")
    assert run_settings("done") == config
    assert resumed_settings("done")["output"] == "done"
    assert "output" not in recorded_settings("done/manifest.json"), "a run is repeated elsewhere"


def test_resume_of_a_folder_without_a_run_says_so(work: Path, expunge: Run) -> None:
    told = expunge("unlearn", "--resume", "--output", "none")
    assert (told.code, told.err) == (
        2,
        "expunge: error: --resume: none holds no run that was begun: look at --output\n",
    )


@pytest.mark.parametrize("output", ["run", "runs/one"])
def test_resume_from_another_folder_says_where_the_run_was_started(work: Path, expunge: Run, output: str) -> None:
    shutil.rmtree("done")
    with stopped_after(1):
        assert expunge(*UNLEARN, *QUICK, "--output", output).code == 130
    (work / "elsewhere").mkdir()
    again = ("unlearn", "--resume", "--output", str(work / output))
    with chdir("elsewhere"):
        told = expunge(*again)
        assert told.code == 2
        start = f"no such file here: the run was started in {work}, go on with it from there"
        assert told.err.splitlines()[-1] == f"expunge: error: --resume: --model model: {start}"
        shutil.copytree(work / "model", "model")
        assert f"--resume: --forget forget.jsonl: {start}" in expunge(*again).err
    assert expunge(*again).code == 0


def test_resume_goes_back_to_the_last_whole_checkpoint(work: Path, expunge: Run) -> None:
    """A run that was killed between two checkpoints repeats the steps after the last one."""
    arguments = (*TRAIN, "--max-steps", "6", "--epochs", "9", "--save-every", "2")
    assert expunge(*arguments, "--output", "whole").code == 0
    module = import_module("expunge.train.loop")

    def killed(self: object, line: dict) -> dict:
        if line["step"] == 6:
            raise KeyboardInterrupt
        return log(self, line)

    log = module.Run.log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Run, "log", killed)
        assert expunge(*arguments).code == 130
    assert len(metrics("run")) == 5
    kept = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000004"]
    damaged = Path("run/checkpoints/step-00000004/state.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

    resumed = expunge(*arguments, "--resume")

    assert resumed.code == 0, resumed.err
    assert adapter_bytes("run") == adapter_bytes("whole")
    assert Path("run/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()


def test_a_loss_that_is_not_finite_stops_the_run(work: Path, expunge: Run) -> None:
    """The message names step, terms and rows; what was saved before is good and the run goes on from it."""
    arguments = (*TRAIN, "--save-every", "1")
    module = import_module("expunge.train.trainer")
    loss_terms, calls = module.loss_terms, []

    def poisoned(*given: object) -> dict[str, torch.Tensor]:
        calls.append(given)
        return {name: term * (float("nan") if len(calls) == 3 else 1) for name, term in loss_terms(*given).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "loss_terms", poisoned)
        result = expunge(*arguments)

    assert result.code == 2
    message = result.err.splitlines()[-1]
    stopped = re.match(r"expunge: error: step (\d+) is not finite \(forget nan", message)
    assert stopped
    assert any(row["id"] in message for row in FORGET)
    assert MARKER not in result.err
    assert not Path("run/adapter").exists()
    assert max(path.name for path in Path("run/checkpoints").iterdir()) == f"step-{int(stopped[1]) - 1:08d}"
    assert expunge(*arguments, "--resume").code == 0
    assert adapter_bytes("run") == adapter_bytes("done")


def test_a_signal_ends_the_process_after_a_checkpoint(work: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open("said", "w") as said, redirect_stdout(said), redirect_stderr(said):
                code = main(LONG)
        finally:
            os._exit(code)
    deadline = time.monotonic() + 120
    while not Path("run/metrics.jsonl").exists() and time.monotonic() < deadline:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), Path("said").read_text()
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM if Path("run/metrics.jsonl").exists() else signal.SIGKILL)
    code, errors = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Path("said").read_text()
    assert code == 130, errors
    assert "interrupted: step" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert MARKER not in errors
    done = len(metrics("run"))
    assert list(Path("run/checkpoints").iterdir()) == [Path(f"run/checkpoints/step-{done:08d}")]
    for path in Path("run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


# --- the rest ------------------------------------------------------------------------------------


def test_python_api_is_silent_also_after_the_submodule_is_imported(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import_module("expunge.train.loop")
    config = UnlearnConfig(
        recipe="paper",
        model="model",
        forget="forget.jsonl",
        retain="retain.jsonl",
        output="run",
        max_steps=2,
        device="cpu",
    )

    outcome = unlearn(config)

    assert capfd.readouterr() == ("", "")
    assert outcome.steps == 2
    assert set(outcome.losses) == {"forget", "retain"}
    model, tokenizer = load_unlearned(str(outcome.output), device="cpu")
    assert isinstance(model, PeftModel)
    assert tokenizer("Who?")["input_ids"]


def test_a_run_is_loaded_on_its_own_base_from_every_folder_and_on_no_other(work: Path, expunge: Run) -> None:
    """A relative path is another folder elsewhere, or a name on the Hub."""
    right, _ = load_unlearned("done", device="cpu")
    shutil.copytree("model", "elsewhere/copy")
    save_tiny(work / "elsewhere/model", "llama", seed=1)
    with chdir("elsewhere"):
        for options in ({}, {"model": "copy"}):
            found, _ = load_unlearned("../done", device="cpu", **options)
            with torch.no_grad():
                assert torch.equal(found(input_ids=IDS).logits, right(input_ids=IDS).logits)
        with pytest.raises(RunError, match=r"--run ../done: model is another model than the one that the run was made"):
            load_unlearned("../done", device="cpu", model="model")
    assert expunge(*TRAIN, "--model", "done", "--output", "second").code == 0
    settings = [json.loads(file.read_text()) for file in sorted(Path("second/adapter").rglob("adapter_config.json"))]
    assert [saved["base_model_name_or_path"] for saved in settings] == [str(work / "model"), str(work / "done/adapter")]
    save_tiny(work / "model", "llama", seed=1)
    with pytest.raises(RunError, match="is another model than the one that the run was made on: put that one back"):
        load_unlearned("done", device="cpu")


def test_merge_of_a_run_on_an_adapter_holds_both_adapters(work: Path, expunge: Run) -> None:
    assert expunge(*TRAIN, "--model", "done/adapter", "--learning-rate", "0.02").code == 0

    result = expunge("merge", "--run", "run", "--output", "merged")

    assert result.code == 0, result.err
    unlearned, _ = load_unlearned("run", dtype="float32", device="cpu")
    merged = AutoModelForCausalLM.from_pretrained("merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, unlearned(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_merge_replaces_an_earlier_merge_only_with_overwrite(work: Path, expunge: Run) -> None:
    merge = ("merge", "--run", "done", "--output", "merged")
    assert expunge(*merge).code == 0
    before = snapshot(work / "merged")
    assert expunge(*merge).code == 2
    assert snapshot(work / "merged") == before
    assert expunge(*merge, "--overwrite").code == 0
    assert snapshot(work / "merged") == before


@pytest.mark.parametrize("strange", ["chapters/thesis.tex", "notes.md"])
def test_merge_replaces_nothing_but_a_model(strange: str, work: Path, expunge: Run) -> None:
    """A model that somebody else has put there is none that may go, nor is what lies beside a merged one."""
    shutil.copytree("model", "project")
    file = work / "project" / strange
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    merge = ("merge", "--run", "done", "--output", "project", "--overwrite")
    told = expunge(*merge)
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "replaces only a model that `expunge merge` wrote, and this has no expunge_merge.json" in told.err
    (work / "project" / "expunge_merge.json").write_text(
        json.dumps({"files": [*os.listdir("model"), "expunge_merge.json"]})
    )
    told = expunge(*merge)
    assert told.code == 2
    assert f"this holds {strange.split('/')[0]}" in told.err
    assert file.read_text() == "mine"


def test_code_of_a_model_runs_where_this_command_line_trusts_it_and_not_because_a_run_did(
    work: Path, expunge: Run
) -> None:
    bring_own_code(Path("model"))
    made = expunge(*TRAIN, "--trust-remote-code", "--target-modules", "q_proj,v_proj")
    assert made.code == 0, made.err
    for said in (Path("run/config.yaml"), Path("run/manifest.json")):
        assert "trust_remote_code" not in said.read_text()
    record = manifest("run")
    record["settings"]["trust_remote_code"] = record["start"]["trust_remote_code"] = True
    Path("run/manifest.json").write_text(json.dumps(record))
    refused = expunge("merge", "--run", "run", "--output", "merged")
    assert (refused.code, Path("merged").exists()) == (2, False)
    assert "not run unless you trust its author and give --trust-remote-code" in refused.err
    merged = expunge("merge", "--run", "run", "--output", "merged", "--trust-remote-code")
    assert merged.code == 0, merged.err
    assert Path("merged/own.py").exists()


def test_merge_does_not_replace_a_model_folder_that_holds_a_text_of_the_run(work: Path, expunge: Run) -> None:
    """Whichever set it is of: the file would go with the folder."""
    assert expunge("merge", "--run", "done", "--output", "merged").code == 0
    write_jsonl(work / "merged/unseen.jsonl", [{"text": "Tobias closed the heavy book and slept until noon."}])
    assert expunge(*TRAIN, "--holdout", "merged/unseen.jsonl").code == 0
    told = expunge("merge", "--run", "run", "--output", "merged", "--overwrite")
    assert told.code == 2
    assert "--output merged holds what --holdout merged/unseen.jsonl reads" in told.err
    assert Path("merged/unseen.jsonl").exists()
