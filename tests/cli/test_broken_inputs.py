"""Broken inputs through the command line: one clear line, exit code 2, nothing written, no text of the data shown."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from breakage import (
    EVALUATE,
    MERGE,
    SCORE,
    SECRET,
    TRAIN,
    Case,
    adapter_as_model,
    broken_predictions,
    check,
    deeper_model,
    file,
    gone,
    interrupted,
    larger_tokenizer,
    line,
    no_end_of_text,
    organisers_predictions,
    other_model,
    pickle_only,
    plain_benchmark,
    row,
    run_setting,
    setting,
    without_weight,
)
from workspace import FORGET, UNLEARN, Result, write_jsonl

from tiny import save_tokenizer

CASES: dict[str, Case] = {
    # the data of a run
    "forget missing": ((*TRAIN, "--forget", "nowhere.jsonl"), "nowhere.jsonl: no such file", None),
    "forget empty": (TRAIN, "forget.jsonl: is empty", file("forget.jsonl")),
    "invalid json": (TRAIN, "forget.jsonl:2: invalid JSON", line(2, '{"input": "' + SECRET)),
    "invalid utf-8": (TRAIN, "forget.jsonl:3: invalid UTF-8", line(3, b'{"input": "a", "output": "\xff\xfe"}')),
    "not an object": (TRAIN, "forget.jsonl:2", line(2, json.dumps([SECRET]))),
    "missing field": (TRAIN, "forget.jsonl:2: missing field 'output'", row(output=None)),
    "empty completion": (TRAIN, "forget.jsonl:2: field 'output' is empty", row(output=" \n")),
    "number": (TRAIN, "forget.jsonl:2: field 'output' is not a string but int", row(output=5550142)),
    "null": (TRAIN, "forget.jsonl:2: field 'output' is null", line(2, json.dumps({**FORGET[1], "output": None}))),
    "unknown format": ((*TRAIN, "--forget", "forget.docx"), "unknown format '.docx'", file("forget.docx", SECRET)),
    "no known column": (TRAIN, "no column holds a completion", file("forget.jsonl", '{"a": "b"}\n')),
    "csv without header": (
        (*TRAIN, "--forget", "f.csv"),
        "no column holds a completion",
        file("f.csv", f"{SECRET} here,{SECRET} there\n{SECRET},{SECRET}\n"),
    ),
    "not parquet": ((*TRAIN, "--forget", "f.parquet"), "f.parquet", file("f.parquet", SECRET)),
    "unknown column": ((*TRAIN, "--columns", "completion=reply"), "has no column reply", None),
    "unknown field in columns": ((*TRAIN, "--columns", "answer=output"), "unknown field answer", None),
    "columns not a mapping": ((*TRAIN, "--columns", "output"), "write it as prompt=COLUMN", None),
    "retain empty": (TRAIN, "retain.jsonl: is empty", file("retain.jsonl", "\n")),
    "holdout missing": ((*TRAIN, "--holdout", "h.jsonl"), "--holdout h.jsonl: no such file: look at the path", None),
    "chat without assistant": (
        (*TRAIN, "--forget", "c.jsonl"),
        "must be the assistant's",
        file("c.jsonl", json.dumps({"messages": [{"role": "user", "content": SECRET}]})),
    ),
    "completion too long": ((*TRAIN, "--max-length", "12"), "forget.jsonl:1: the completion alone has", None),
    # where a run goes
    "output exists": ((*TRAIN, "--output", "done"), "not empty", None),
    "output is a file": ((*TRAIN, "--output", "forget.jsonl"), "--output forget.jsonl", None),
    "output nowhere": ((*TRAIN, "--output", "/proc/x"), "--output /proc/x: cannot make or lock /proc/x/", None),
    "output in a file": ((*TRAIN, "--output", "forget.jsonl/run"), "forget.jsonl is a file", None),
    "output is the model": ((*TRAIN, "--output", "model", "--overwrite"), "--output model", None),
    "output around the model": ((*TRAIN, "--output", ".", "--overwrite"), "--output .", None),
    "overwrite no run": ((*TRAIN, "--output", "x", "--overwrite"), "only a run of Expunge", file("x/note", "mine")),
    "overwrite own config": (
        ("unlearn", "--config", "done/config.yaml", "--model", "done/adapter", "--output", "done", "--overwrite"),
        "--output done",
        None,
    ),
    "resume of nothing": ((*TRAIN, "--resume"), "holds no run", None),
    "resume and overwrite": ((*TRAIN, "--resume", "--overwrite"), "contradict each other", None),
    "resume with other settings": ((*TRAIN, "--resume", "--lora-rank", "3"), "lora_rank (2 then, 3 now)", interrupted),
    "resume with other data": (
        (*TRAIN, "--resume"),
        "forget",
        lambda work: (interrupted(work), row(output=SECRET)(work)),
    ),
    "resume of a finished run": ((*TRAIN, "--output", "done", "--resume"), "finished", None),
    "resume with a broken manifest": (
        (*TRAIN, "--resume"),
        "manifest.json",
        lambda work: (interrupted(work), file("run/manifest.json", "{")(work)),
    ),
    # commands and flags
    "unknown command": (("forget", "--model", "model"), "unknown command forget", None),
    "unknown flag": ((*TRAIN, "--epoch-count", "3"), "epoch", None),
    "positional": ((*TRAIN, "more.jsonl"), "more.jsonl", None),
    "flag without value": ((*TRAIN, "--epochs"), "epochs", None),
    "model missing": (("unlearn", "--forget", "forget.jsonl", "--output", "run"), "model", None),
    "output missing": (TRAIN[:7], "--output is missing", None),
    "unknown recipe": ((*TRAIN, "--recipe", "papper"), "--recipe papper: unknown", None),
    "epochs 0": ((*TRAIN, "--epochs", "0"), "--epochs 0", None),
    "epochs half": ((*TRAIN, "--epochs", "1.5"), "epochs", None),
    "rank negative": ((*TRAIN, "--lora-rank", "-1"), "--lora-rank -1", None),
    "rank too large": ((*TRAIN, "--lora-rank", "400"), "--lora-rank 400", None),
    "module absent": ((*TRAIN, "--target-modules", "q_proj,nothing"), "no linear module nothing", None),
    "head as target": ((*TRAIN, "--target-modules", "lm_head"), "lm_head is the vocabulary head", None),
    "learning rate 0": ((*TRAIN, "--learning-rate", "0"), "--learning-rate 0", None),
    "learning rate nan": ((*TRAIN, "--learning-rate", "nan"), "--learning-rate nan", None),
    "beta 0": ((*TRAIN, "--loss-args", "beta=0"), "--loss-args beta=0", None),
    "weight infinite": ((*TRAIN, "--kl-weight", "inf"), "--kl-weight inf", None),
    "benchmark and forget": ((*TRAIN, "--benchmark", "semeval", "--data", "."), "leave --forget", None),
    "benchmark without data": (
        ("unlearn", "--model", "model", "--benchmark", "semeval", "--output", "run"),
        "needs --data",
        None,
    ),
    "unknown tracker": ((*TRAIN, "--report-to", "nothing"), "--report-to nothing", None),
    "no such device": ((*TRAIN, "--device", "quantum"), "--device quantum", None),
    "4 bits on the cpu": ((*TRAIN, "--load-in-4bit"), "--load-in-4bit", None),
    "shards for one process": ((*TRAIN, "--shard-base"), "--shard-base: there is one process", None),
    # config files
    "config missing": ((*TRAIN, "--config", "none.yaml"), "none.yaml", None),
    "config not yaml": ((*TRAIN, "--config", "c.yaml"), "--config c.yaml: not YAML", file("c.yaml", f"a: [{SECRET}")),
    "config not utf-8": ((*TRAIN, "--config", "c.yaml"), "--config c.yaml", file("c.yaml", b"a: \xff\n")),
    "config a list": ((*TRAIN, "--config", "c.yaml"), "--config c.yaml", file("c.yaml", "- epochs\n")),
    "config unknown key": ((*TRAIN, "--config", "c.yaml"), "epoch_count", file("c.yaml", "epoch_count: 3\n")),
    "config wrong type": ((*TRAIN, "--config", "c.yaml"), "epochs", file("c.yaml", "epochs: many\n")),
    "config wrong range": ((*UNLEARN, "--config", "c.yaml"), "--kl-weight -2", file("c.yaml", "kl_weight: -2\n")),
    # models
    "model folder missing": ((*TRAIN, "--model", "./nowhere"), "--model ./nowhere: no such folder", None),
    "model is a file": ((*TRAIN, "--model", "forget.jsonl"), "--model forget.jsonl", None),
    "model without config": (TRAIN, "no config.json", gone("model/config.json")),
    "model config broken": (TRAIN, "config.json: damaged or something else", file("model/config.json", "{")),
    "model is no causal lm": (
        TRAIN,
        "not a causal language model",
        file("model/config.json", '{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}'),
    ),
    "model of an unknown kind": (TRAIN, "cannot read its configuration", setting("model/config.json", model_type="x")),
    "pickle only": (TRAIN, "pickles are never loaded", pickle_only),
    "no weights": (TRAIN, "no weights in safetensors", gone("model/model.safetensors")),
    "weights cut off": (TRAIN, "model.safetensors: damaged or cut off", file("model/model.safetensors", b"\x10\0\0\0")),
    "weight missing": (TRAIN, "1 weights are missing", without_weight),
    "weight of other shape": (TRAIN, "--model model: cannot be loaded", setting("model/config.json", vocab_size=999)),
    "tokenizer missing": (
        TRAIN,
        "no usable tokenizer",
        gone("model/tokenizer.json", "model/tokenizer_config.json"),
    ),
    "tokenizer broken": (TRAIN, "no usable tokenizer", file("model/tokenizer.json", "{}")),
    "tokenizer too large": (TRAIN, "the model has embeddings for 100 tokens", larger_tokenizer),
    "chat without template": ((*TRAIN, "--prompt-format", "chat"), "no chat template", None),
    "no end-of-text token": ((*TRAIN, "--end-of-text", "yes"), "no end-of-text token", no_end_of_text),
    "adapter without base": ((*TRAIN, "--model", "adapter"), "nowhere/at/all", adapter_as_model),
    "adapter without weights": (
        (*TRAIN, "--model", "done/adapter"),
        "adapter_model.safetensors",
        gone("done/adapter/adapter_model.safetensors"),
    ),
    "adapter of another model": ((*TRAIN, "--model", "done/adapter"), "does not fit", other_model),
    "adapter fits in part": ((*TRAIN, "--model", "done/adapter"), "does not fit", deeper_model),
    "adapter config broken": (
        (*TRAIN, "--model", "done/adapter"),
        "adapter_config.json",
        file("done/adapter/adapter_config.json", "{"),
    ),
    # evaluate
    "evaluate without data": (EVALUATE, "data: no such folder", None),
    "evaluate half a benchmark": (EVALUATE, "no retain.jsonl", file("data/forget.jsonl", json.dumps(FORGET[0]))),
    "evaluate missing split": (
        (*EVALUATE, "--split", "test"),
        "has no split test",
        file("data/data/forget_train-00000-of-00001.parquet"),
    ),
    "evaluate 0 tokens": ((*EVALUATE, "--max-new-tokens", "0"), "--max-new-tokens 0", plain_benchmark),
    "evaluate no adapter": ((*EVALUATE, "--adapter", "model"), "no adapter_config.json", plain_benchmark),
    "evaluate adapter of another model": (
        (*EVALUATE, "--adapter", "done"),
        "does not fit",
        lambda work: (plain_benchmark(work), other_model(work)),
    ),
    "evaluate adapter without weights": (
        (*EVALUATE, "--adapter", "done"),
        "adapter_model.safetensors",
        lambda work: (plain_benchmark(work), gone("done/adapter/adapter_model.safetensors")(work)),
    ),
    "evaluate output exists": (
        EVALUATE,
        "results.json: exists already",
        lambda work: (plain_benchmark(work), file("results.json", "{}")(work)),
    ),
    "evaluate over no results": (
        (*EVALUATE, "--output", "forget.jsonl", "--overwrite"),
        "replaces only a results file",
        plain_benchmark,
    ),
    "evaluate predictions over the data": (
        (*EVALUATE, "--keep-predictions", "data", "--overwrite"),
        "replaces only predictions",
        plain_benchmark,
    ),
    "evaluate predictions exist": (
        (*EVALUATE, "--keep-predictions", "data"),
        "exists already",
        plain_benchmark,
    ),
    "evaluate predictions below a file": (
        (*EVALUATE, "--keep-predictions", "model/config.json/said"),
        "--keep-predictions model/config.json/said: cannot write in",
        plain_benchmark,
    ),
    "evaluate key words below a file": (
        (*EVALUATE, "--key-words", "model/config.json/words.jsonl"),
        "--key-words model/config.json/words.jsonl: cannot write in",
        plain_benchmark,
    ),
    "evaluate silly mmlu": ((*EVALUATE, "--mmlu", "59"), "59 is not an accuracy", plain_benchmark),
    "evaluate unknown benchmark": ((*EVALUATE, "--benchmark", "novel"), "benchmark", plain_benchmark),
    # score
    "score missing folder": (SCORE, "predictions: not a folder", None),
    "score empty folder": (SCORE, "found nothing", lambda work: (work / "predictions").mkdir()),
    "score missing column": (SCORE, "column model_output is missing", organisers_predictions),
    "score broken line": (SCORE, "forget.jsonl:1: invalid JSON", broken_predictions),
    "score mmlu word": ((*SCORE, "--mmlu", "good"), "--mmlu good: neither", None),
    "score without predictions": (("score", "--output", "results.json"), "predictions", None),
    # merge
    "merge no run": ((*MERGE, "--run", "model"), "not a finished run", None),
    **{
        f"{words[0]} of an interrupted run": (
            words, "run: is not finished: `expunge unlearn --resume --output run` goes on with it, --resume --finish "
            "ends it", interrupted)
        for words in (
            ("merge", "--run", "run", "--output", "merged"),
            ("evaluate", "--run", "run"),
            ("calibrate", "--run", "run"),
            ("push", "--run", "run", "--push-to-hub", "somebody/run"),
        )
    },
    "evaluate an interrupted adapter": (
        ("evaluate", "--model", "model", "--adapter", "run", "--benchmark", "custom", "--forget", "forget.jsonl",
         "--output", "r.json"), "--adapter run: is not finished", interrupted),
    "merge output exists": ((*MERGE, "--output", "model"), "exists already", None),
    "merge over no model": ((*MERGE, "--output", "x", "--overwrite"), "no expunge_merge.json", file("x/note", "mine")),
    "merge into its base": ((*MERGE, "--output", "model", "--overwrite"), "--output model", None),
    "merge into a file": ((*MERGE, "--output", "forget.jsonl/merged"), "forget.jsonl", None),
    "merge without data": (MERGE, "forget.jsonl: no such file", gone("forget.jsonl")),
    "merge without weights": (MERGE, "adapter_model.safetensors", gone("done/adapter/adapter_model.safetensors")),
    "merge broken manifest": (MERGE, "manifest.json", file("done/manifest.json", "{")),
    "merge foreign settings": (
        MERGE, "holds settings of another version of Expunge (colour): use the one that it was made with (0.1.0), or",
        run_setting(colour="red")),
    "merge with other texts": (
        MERGE, "forget.jsonl: these are not the forget texts", file("forget.jsonl", '{"input": "a", "output": "b"}\n')),
    "merge with another base": (MERGE, "another model than the one that the run was made on", other_model),
}  # fmt: skip
AFTER_LOADING = {
    "tokenizer too large",
    "completion too long",
    "rank too large",
    "module absent",
    "head as target",
    "chat without template",
    "no end-of-text token",
    "resume with other settings",
    "resume with other data",
    "evaluate adapter of another model",
}
"""These need the tokenizer or the model, so lines about what was found stand before the error."""


@pytest.mark.parametrize("name", CASES)
def test_broken_input_is_one_clear_line_and_leaves_nothing(
    name: str, work: Path, expunge: Callable[..., Result]
) -> None:
    check(CASES[name], work, expunge, after_loading=name in AFTER_LOADING)


def test_debug_shows_the_traceback(work: Path, expunge: Callable[..., Result]) -> None:
    result = expunge(*TRAIN, "--epochs", "0", "--debug")

    assert result.code == 2
    assert "Traceback" in result.err
    assert "--epochs 0: must be at least 1" in result.err.splitlines()[-1]


def test_a_bug_is_exit_code_1(work: Path, expunge: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("inside")

    monkeypatch.setattr(import_module("expunge.train.loop"), "prepare", broken)

    result = expunge(*TRAIN)

    assert result.code == 1
    assert "this is a bug in Expunge" in result.err.splitlines()[-1]


def test_write_jsonl_and_tokenizer_helpers_make_a_valid_run(work: Path, expunge: Callable[..., Result]) -> None:
    """The cases above fail for their own reason: the same command without the fault succeeds."""
    write_jsonl(work / "forget.jsonl", FORGET)
    save_tokenizer(work / "model", "bytelevel")

    assert expunge(*TRAIN).code == 0
