# ruff: noqa: E501  (a table)
"""More broken input through the command line: encodings, shapes, ranges, damaged and malicious model folders."""

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from breakage import (
    EVALUATE,
    MERGE,
    SCORE,
    SECRET,
    TRAIN,
    Case,
    broken_predictions,
    check,
    file,
    line,
    plain_benchmark,
    row,
    run_setting,
    setting,
)  # fmt: skip
from safetensors.torch import load_file, save_file
from workspace import FORGET, UNLEARN, Result

from tiny import save_tiny


def flag(name: str, value: str, phrase: str = "") -> Case:
    """A complete command with one flag that is wrong; by default the message names flag and value."""
    return (*UNLEARN, f"--{name}", value), phrase or f"--{name} {value}", None


def chat(*turns: object, **extra: object) -> Callable[[Path], None]:
    return line(2, json.dumps({"messages": list(turns), **extra}))


def chats(*turns: object) -> Case:
    """A forget file with one chat."""
    return (*TRAIN, "--forget", "c.jsonl"), "c.jsonl:1", file("c.jsonl", json.dumps({"messages": list(turns)}))


def parquet(**columns: object) -> Case:
    return (
        (*TRAIN, "--forget", "f.parquet"),
        "f.parquet",
        lambda work: pandas.DataFrame(columns).to_parquet(work / "f.parquet"),
    )


def csv(text: str | bytes, phrase: str) -> Case:
    return (*TRAIN, "--forget", "f.csv"), phrase, file("f.csv", text)


def encoded(name: str) -> Callable[[Path], None]:
    def change(work: Path) -> None:
        text = json.dumps({"input": "Where?", "output": "At Zoë's café."}, ensure_ascii=False)
        (work / "forget.jsonl").write_bytes(text.encode(name))

    return change


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda work: os.symlink(target, work / name)


def config(text: str | bytes, phrase: str) -> Case:
    return (*TRAIN, "--config", "c.yaml"), phrase, file("c.yaml", text)


def sharded(work: Path) -> None:
    """The model in two files with an index."""
    tensors = load_file(work / "model/model.safetensors")
    names = sorted(tensors)
    (work / "model/model.safetensors").unlink()
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for part, keys in parts.items():
        save_file({name: tensors[name] for name in keys}, work / "model" / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: part for part, keys in parts.items() for name in keys}}
    (work / "model/model.safetensors.index.json").write_text(json.dumps(index))


def sharded_then(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda work: (sharded(work), change(work))


def shard(name: str) -> Callable[[Path], None]:
    """Every weight is said to be in a file of this name."""

    def change(work: Path) -> None:
        path = work / "model/model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.write_text(json.dumps({"weight_map": dict.fromkeys(index["weight_map"], name)}))

    return change


def shorten(name: str, count: int = 100) -> Callable[[Path], None]:
    return lambda work: os.truncate(work / name, (work / name).stat().st_size - count)


def header(text: bytes, rest: bytes = b"") -> Callable[[Path], None]:
    return file("model/model.safetensors", struct.pack("<Q", len(text)) + text + rest)


def template(text: str) -> Callable[[Path], None]:
    def change(work: Path) -> None:
        save_tiny(work / "model", "llama", "chat")
        file("model/chat_template.jinja", text)(work)

    return change


ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
USER = {"role": "user", "content": SECRET}

CASES: dict[str, Case] = {
    # bytes and characters
    "utf-16": (TRAIN, "forget.jsonl:1: invalid UTF-8", encoded("utf-16")),
    "utf-16 without mark": (TRAIN, "forget.jsonl:1", encoded("utf-16-le")),
    "utf-32": (TRAIN, "forget.jsonl:1", encoded("utf-32")),
    "latin-1": (TRAIN, "forget.jsonl:1: invalid UTF-8", encoded("latin-1")),
    "random bytes": (TRAIN, "invalid UTF-8", file("forget.jsonl", bytes(range(256)) * 40)),
    "compressed": (TRAIN, "forget.jsonl:1", file("forget.jsonl", gzip.compress(b'{"text": "a"}' * 50))),
    "NUL in a text": (TRAIN, "NUL character", row(output="a\0b")),
    "NUL bytes": (TRAIN, "NUL character", file("forget.jsonl", b'{"text": "a"}\n\0\0\0\0')),
    "half a surrogate pair": (TRAIN, "half a surrogate pair", line(2, '{"input": "a", "output": "b \\ud83d c"}')),
    "nothing to be seen": (TRAIN, "field 'output' is empty", row(output="\u200b\u200d \ufeff\u00ad")),
    "only a byte-order mark": (TRAIN, "is empty", file("forget.jsonl", b"\xef\xbb\xbf")),
    "id with terminal commands": (
        (*TRAIN, "--max-length", "12"), "forget.jsonl:1: the completion alone", row(id="\x1b[2J\x1b]0;title\x07"),
    ),
    "file name with terminal commands": (
        (*TRAIN, "--forget", "a\x1b[31m.jsonl"), "a\\x1b[31m.jsonl", file("a\x1b[31m.jsonl", "{"),
    ),
    "file name that reads backwards": ((*TRAIN, "--forget", "a\u202elnosj.jsonl"), "a\\u202elnosj", None),
    # JSON
    "json deep": (TRAIN, "nested too deeply", line(2, "[" * 100_000)),
    "json long number": (TRAIN, "number too long", line(2, '{"input": "a", "output": ' + "9" * 5000 + "}")),
    "json nan": (TRAIN, "not a string but float", line(2, '{"input": "a", "output": NaN}')),
    "json object twice": (TRAIN, "forget.jsonl:2: invalid JSON", line(2, json.dumps(FORGET[0]) * 2)),
    "json single quotes": (TRAIN, "forget.jsonl:2: invalid JSON", line(2, "{'input': 'a', 'output': 'b'}")),
    "json field twice": (TRAIN, "forget.jsonl:2: two fields", line(2, '{"input": "a", "output": "b", "output": "c"}')),
    "json over several lines": (TRAIN, "forget.jsonl:1: invalid JSON", file("forget.jsonl", json.dumps(FORGET, indent=1))),
    "json texts and rows": ((*TRAIN, "--forget", "f.json"), "f.json, row 1", file("f.json", json.dumps([SECRET, FORGET[0]]))),
    "json empty list": ((*TRAIN, "--forget", "f.json"), "is empty", file("f.json", "[]")),
    "json rows under a name": ((*TRAIN, "--forget", "f.json"), "f.json", file("f.json", json.dumps({"data": FORGET}))),
    "list as completion": (TRAIN, "not a string but list", row(output=[SECRET])),
    "object as prompt": (TRAIN, "not a string but dict", row(input={"text": SECRET})),
    "true as completion": (TRAIN, "not a string but bool", row(output=True)),
    "task a number": (TRAIN, "field 'task'", row(task=1)),
    "kind unknown": (TRAIN, "field 'kind' must be", row(kind=SECRET)),
    "id a list": (TRAIN, "field 'id'", row(id=[1])),
    "id true": (TRAIN, "field 'id'", row(id=True)),
    "id a fraction": (TRAIN, "field 'id'", row(id=1.5)),
    "id empty": (TRAIN, "field 'id' is empty", row(id=" ")),
    "id not to be seen": (TRAIN, "field 'id' is empty", row(id="\u200b")),
    # chats
    "chat a text": ((*TRAIN, "--forget", "c.jsonl"), "not a list but str", file("c.jsonl", json.dumps({"messages": SECRET}))),
    "chat without turns": chats(),
    "chat turn a text": chats(SECRET, USER),
    "chat without role": chats({"content": SECRET}, USER),
    "chat content null": chats(USER, {"role": "assistant", "content": None}),
    "chat content a list": chats(USER, {"role": "assistant", "content": [{"type": "text", "text": SECRET}]}),
    "chat empty answer": chats(USER, {"role": "assistant", "content": " "}),
    "chat answer alone": chats({"role": "assistant", "content": SECRET}),
    # CSV and Parquet
    "csv open quote": csv(f'input,output\na,b\n"{SECRET},b\n', "f.csv:3: invalid CSV"),
    "csv uneven": csv(f"input,output\na,b\na,b,{SECRET}\n", "f.csv:3: 3 cells where the header has 2"),
    "csv same column twice": csv("output,output\na,b\n", "f.csv:1: two columns"),
    "csv header alone": csv("input,output\n", "is empty"),
    "csv semicolons under commas": csv("input,output\na;b\n", "f.csv:2: 1 cells where the header has 2"),
    "csv hidden character in a column": csv("input,out\u200bput\na,b\n", "no column holds a completion"),
    "csv utf-16": csv("input,output\na,b\n".encode("utf-16"), "f.csv:1"),
    "parquet numbers": parquet(input=["a"], output=[1]),
    "parquet empty": parquet(input=[], output=[]),
    "parquet no columns": parquet(),
    "parquet null": parquet(input=["a", "b"], output=["c", None]),
    "parquet lists": parquet(input=["a"], output=[["b"]]),
    "parquet cut off": (
        (*TRAIN, "--forget", "f.parquet"), "f.parquet: invalid Parquet",
        lambda work: (pandas.DataFrame(FORGET).to_parquet(work / "f.parquet"), os.truncate(work / "f.parquet", 300)),
    ),
    # places
    "forget a folder": ((*TRAIN, "--forget", "model"), "model: is a folder", None),
    "forget without a name": ((*TRAIN, "--forget", " "), "empty", None),
    "forget with a long name": ((*TRAIN, "--forget", "a" * 5000 + ".jsonl"), "name too long", None),
    "forget a pipe": ((*TRAIN, "--forget", "p.jsonl"), "p.jsonl: is not a file", lambda work: os.mkfifo(work / "p.jsonl")),
    "forget a device": ((*TRAIN, "--forget", "d.jsonl"), "d.jsonl: is not a file", link("d.jsonl", "/dev/zero")),
    "forget a link to itself": ((*TRAIN, "--forget", "l.jsonl"), "l.jsonl", link("l.jsonl", "l.jsonl")),
    "forget a link to nothing": ((*TRAIN, "--forget", "l.jsonl"), "no such file", link("l.jsonl", "gone")),
    "output with a long name": ((*TRAIN, "--output", "o" * 5000), "name too long", None),
    "output a link to nothing": ((*TRAIN, "--output", "o"), "--output o", link("o", "gone")),
    "output a link to the model": ((*TRAIN, "--output", "o", "--overwrite"), "--output o", link("o", "model")),
    "output a link to a run": ((*TRAIN, "--output", "o", "--overwrite"), "does not remove a link", link("o", "done")),
    "output a link to itself": ((*TRAIN, "--output", "o"), "--output o", link("o", "o")),
    "output a device": ((*TRAIN, "--output", "/dev/null"), "--output /dev/null", None),
    "output in a device": ((*TRAIN, "--output", "/dev/null/run"), "/dev/null is a file", None),
    # columns
    "columns twice": ((*TRAIN, "--columns", "prompt=input,prompt=output"), "named twice", None),
    "columns both the same": ((*TRAIN, "--columns", "prompt=output"), "prompt and completion are both output", None),
    "columns empty": ((*TRAIN, "--columns", "prompt="), "write it as prompt=COLUMN", None),
    "instruction beside input": (TRAIN, "has a column instruction", row(instruction=SECRET)),
    # ranges and choices
    "warmup 1": flag("warmup", "1.0"),
    "warmup negative": flag("warmup", "-0.1"),
    "clip negative": flag("max-grad-norm", "-1.0"),
    "clip nan": flag("max-grad-norm", "nan"),
    "forget weight 0": flag("forget-weight", "0.0"),
    "forget weight nan": flag("forget-weight", "nan"),
    "retain weight negative": flag("retain-weight", "-1.0"),
    "kl weight nan": flag("kl-weight", "nan"),
    "alpha 0": flag("lora-alpha", "0.0"),
    "alpha infinite": flag("lora-alpha", "inf"),
    "tokens 0": flag("tokens-per-step", "0"),
    "rows 0": flag("rows-per-step", "0"),
    "rows 1": flag("rows-per-step", "1"),
    "length 1": flag("max-length", "1"),
    "saving negative": flag("save-every", "-1"),
    "seed negative": flag("seed", "-1"),
    "seed large": flag("seed", "4294967296"),
    "steps 0": flag("max-steps", "0"),
    "rank 0": flag("lora-rank", "0"),
    "rank huge": flag("lora-rank", "99999999999999999999"),
    "weight a word": flag("kl-weight", "half"),
    "rate 1": flag("learning-rate", "1.0"),
    "precision unknown": flag("dtype", "float8", "dtype"),
    "schedule unknown": flag("schedule", "step", "schedule"),
    "prompt format unknown": flag("prompt-format", "tab", "prompt-format"),
    "end of text unknown": flag("end-of-text", "maybe", "end-of-text"),
    "recipe empty": flag("recipe", "", "--recipe"),
    "switch with a word": flag("truncate-completions", "perhaps", "perhaps"),
    "modules of commas": flag("target-modules", ",", "--target-modules is empty"),
    "dry run and resume": ((*TRAIN, "--dry-run", "--resume"), "contradict each other", None),
    "no cuda here": flag("device", "cuda:99", "--device cuda:99"),
    "device without memory": flag("device", "meta", "--device meta"),
    "tracker empty": flag("report-to", ",", "--report-to ,"),
    "flag with a newline": ((*TRAIN, "--prompt-format", "a\nb"), "prompt-format", None),
    "resume and dry run": ((*TRAIN, "--dry-run", "--output", "done"), "not empty", None),
    # settings files
    "config python object": config("epochs: !!python/object/apply:os.system ['touch pwned']\n", "--config c.yaml: a type of its own"),
    "config bomb": config(ALIASES, "c.yaml"),
    "config binary": config(bytes(range(256)), "--config c.yaml"),
    "config empty": config("", "--config c.yaml: holds no settings"),
    "config mapping as number": config("epochs: {a: 1}\n", "epochs"),
    "config list as text": config("columns: [a]\n", "--columns"),
    "config NUL in a name": config('holdout: "a\\0b.jsonl"\n', "a\\x00b.jsonl"),
    "config true as seed": config("seed: true\n", "seed"),
    "config key not a word": config("1: 2\n", "holds no settings"),
    "config a folder": ((*TRAIN, "--config", "model"), "model", None),
    "config within itself": config("config: c.yaml\n", "config is said on the command line alone"),
    # model folders
    "index misses a file": (
        TRAIN, "1 of 2 weight files are missing, first model-00002-of-00002.safetensors",
        sharded_then(lambda work: (work / "model/model-00002-of-00002.safetensors").unlink()),
    ),
    "index leads out": (TRAIN, "is not a safetensors file of the folder", sharded_then(shard("../model/x.safetensors"))),
    "index names an absolute path": (TRAIN, "not a safetensors file", sharded_then(shard("/etc/x.safetensors"))),
    "index names a pickle": (TRAIN, "not a safetensors file", sharded_then(shard("pytorch_model.bin"))),
    "index empty": (TRAIN, "holds no weight_map", sharded_then(file("model/model.safetensors.index.json", "{}"))),
    "index damaged": (TRAIN, "index.json: damaged or something else", sharded_then(file("model/model.safetensors.index.json", "{"))),
    "part cut off": (
        TRAIN, "model-00001-of-00002.safetensors: damaged or cut off",
        sharded_then(shorten("model/model-00001-of-00002.safetensors")),
    ),
    "weights cut off at the end": (TRAIN, "model.safetensors: damaged or cut off", shorten("model/model.safetensors", 1)),
    "weights with a tail": (
        TRAIN, "model.safetensors: damaged or cut off",
        lambda work: (work / "model/model.safetensors").open("ab").write(b"tail"),
    ),
    "weights header of another kind": (TRAIN, "damaged or cut off", header(b'["a"]')),
    "weights header without offsets": (TRAIN, "damaged or cut off", header(b'{"a": {"dtype": "F32"}}')),
    "weights header deep": (TRAIN, "damaged or cut off", header(b"[" * 100_000)),
    "weights header huge": (TRAIN, "damaged or cut off", file("model/model.safetensors", b"\xff" * 64)),
    "weights that overlap": (
        TRAIN, "damaged or cut off",
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
               b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}', bytes(6)),
    ),
    "a pickle with a good name": (TRAIN, "damaged or cut off", file("model/model.safetensors", b"\x80\x04K\x2a." * 20)),
    "configuration a list": (TRAIN, "config.json: damaged or something else (no JSON object)", file("model/config.json", "[]")),
    "configuration not utf-8": (TRAIN, "config.json", file("model/config.json", b"\xff\xfe{}")),
    "configuration of nothing": (TRAIN, "cannot read its configuration", file("model/config.json", "{}")),
    "configuration no heads": (TRAIN, "--model model", setting("model/config.json", num_attention_heads=0)),
    "configuration odd width": (TRAIN, "--model model", setting("model/config.json", hidden_size=33)),
    "configuration words for numbers": (TRAIN, "--model model", setting("model/config.json", num_hidden_layers="two")),
    "configuration no layers": (TRAIN, "no layer to adapt", setting("model/config.json", num_hidden_layers=-1)),
    "configuration unknown precision": (TRAIN, "--model model", setting("model/config.json", dtype="float7")),
    "configuration unknown activation": (TRAIN, "--model model", setting("model/config.json", hidden_act="evil")),
    "code of strangers": (
        TRAIN, "--trust-remote-code",
        lambda work: (
            setting("model/config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})(work),
            file("model/own.py", "open('pwned', 'w')\n")(work),
        ),
    ),
    "an encoder": (TRAIN, "not a causal language model", file("model/config.json", '{"model_type": "vit"}')),
    "generation settings broken": (TRAIN, "generation_config.json", file("model/generation_config.json", "{")),
    "tokenizer a list": (TRAIN, "no usable tokenizer", file("model/tokenizer.json", "[]")),
    "tokenizer settings broken": (TRAIN, "tokenizer_config.json", file("model/tokenizer_config.json", "{")),
    "tokenizer of another file": (
        TRAIN, "names a file outside",
        lambda work: (
            file("secret.json", "{}")(work), setting("model/tokenizer_config.json", tokenizer_file="../secret.json")(work)
        ),
    ),
    "template broken": ((*TRAIN, "--prompt-format", "chat"), "chat template", template("{% for x %}")),
    "template that refuses": ((*TRAIN, "--prompt-format", "chat"), "chat template", template("{{ raise_exception('no') }}")),
    "template that breaks out": (
        (*TRAIN, "--prompt-format", "chat"), "chat template", template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ),
    # adapters
    "adapter of another method": (
        (*TRAIN, "--model", "done/adapter"), "done/adapter", setting("done/adapter/adapter_config.json", peft_type="NOVEL"),
    ),
    "adapter cut off": (
        (*TRAIN, "--model", "done/adapter"), "damaged or cut off", shorten("done/adapter/adapter_model.safetensors"),
    ),
    "adapter on itself": (
        (*TRAIN, "--model", "done/adapter"), "no config.json",
        setting("done/adapter/adapter_config.json", base_model_name_or_path="."),
    ),
    "adapter without a base's name": (
        (*TRAIN, "--model", "done/adapter"), "names no base model",
        setting("done/adapter/adapter_config.json", base_model_name_or_path=None),
    ),
    "adapter with a base of another type": (
        (*TRAIN, "--model", "done/adapter"), "adapter_config.json",
        setting("done/adapter/adapter_config.json", base_model_name_or_path=[1]),
    ),
    # evaluate, score, merge
    "evaluate output a folder": ((*EVALUATE, "--output", "model"), "model", plain_benchmark),
    "evaluate mmlu 2": ((*EVALUATE, "--mmlu", "2"), "2 is not an accuracy", plain_benchmark),
    "evaluate mmlu nan": ((*EVALUATE, "--mmlu", "nan"), "nan is not an accuracy", plain_benchmark),
    "evaluate predictions a file": ((*EVALUATE, "--keep-predictions", "retain.jsonl"), "retain.jsonl", plain_benchmark),
    "evaluate adapter nowhere": ((*EVALUATE, "--adapter", "nowhere"), "nowhere", plain_benchmark),
    "score predictions a file": ((*SCORE, "--predictions", "forget.jsonl"), "forget.jsonl", None),
    "score over the data": (
        (*SCORE, "--output", "forget.jsonl"), "forget.jsonl",
        broken_predictions,
    ),
    "score deep json": (
        (*SCORE, "--mmlu", "deep.json"), "--mmlu deep.json: damaged", file("deep.json", "[" * 100_000),
    ),
    "score deep row": (
        SCORE, "forget.jsonl:1: JSON nested too deeply",
        lambda work: (broken_predictions(work), file("predictions/forget.jsonl", "[" * 100_000)(work)),
    ),
    "compare nowhere": (("compare", "nowhere.json"), "nowhere.json: no such file", None),
    "compare a folder without results": (("compare", "model"), "holds no results", None),
    "compare deep json": (("compare", "deep.json"), "nested too deeply", file("deep.json", "[" * 100_000)),
    "compare a list": (("compare", "list.json"), "no JSON object", file("list.json", "[]")),
    "compare another schema": (
        ("compare", "r.json"), "schema 99", file("r.json", '{"schema": 99, "benchmark": "custom", "metrics": {}}'),
    ),
    "compare a name with terminal commands": (
        ("compare", "r.json"), "r.json", file("r.json", '{"schema": 1, "benchmark": "\\u001b[2J", "metrics": [1]}'),
    ),
    "report nowhere": (("report", "nowhere"), "not a run directory", None),
    "report a model": (("report", "model"), "not a run directory", None),
    "report a broken manifest": (
        ("report", "done", "--overwrite"), "manifest.json: damaged", file("done/manifest.json", "[" * 100_000),
    ),
    "report broken results": (
        ("report", "done", "--overwrite"), "nested too deeply", file("done/results_after.json", "[" * 100_000),
    ),
    "manifest deep": (
        ("unlearn", "--from-manifest", "deep.json", "--output", "x"), "nested too deeply",
        file("deep.json", "[" * 100_000),
    ),
    "merge nowhere": ((*MERGE, "--run", "nowhere"), "not a finished run", None),
    "merge on a device that is not there": ((*MERGE, "--device", "quantum"), "--device quantum", None),
    "merge settings of another type": (MERGE, "manifest.json", run_setting(max_length="x")),
    "merge settings that are none": (MERGE, "manifest.json", setting("done/manifest.json", settings=["a"])),
    "merge a start that is none": (MERGE, "manifest.json", setting("done/manifest.json", start={"output": 1})),
    "merge settings out of range": (MERGE, "use the one that it names under `versions`", run_setting(max_length=0)),
    "merge adapter broken": (MERGE, "adapter", file("done/adapter/adapter_config.json", "{")),
    **{
        f"{command[0]} an adapter of another {name}": (
            command, "its adapter is not the one that the manifest was written for",
            setting("done/adapter/adapter_config.json", **{name: value}),
        )
        for command, name, value in (
            (MERGE, "lora_alpha", 64.0),
            (MERGE, "use_rslora", True),
            (("evaluate", "--run", "done"), "lora_alpha", 0),
            (("report", "done", "--overwrite"), "target_modules", ["q_proj"]),
            (("verdict", "done"), "rank_pattern", {"q_proj": 1}),
        )
    },
}  # fmt: skip
AFTER_LOADING = {
    "configuration no layers",
    "id with terminal commands",
    "template broken",
    "template that refuses",
    "template that breaks out",
}
"""These need the tokenizer or the model, so lines about what was found stand before the error."""


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_is_one_clear_line_and_leaves_nothing(
    name: str, work: Path, expunge: Callable[..., Result]
) -> None:
    check(CASES[name], work, expunge, after_loading=name in AFTER_LOADING)
    assert not (work / "pwned").exists()
