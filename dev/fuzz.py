"""Feed all readers and the tokenization damaged files for a while: any error but a UserError is a finding.

python -m dev.fuzz --minutes 20 --seed 0

Each round takes a good file of a random format, damages it (bytes flipped, cut, doubled, moved, numbers and odd
characters put in, values of other types) and reads it as a command would: data, whose rows are tokenized, settings,
manifests, results, logs, weights, configurations, and a run's own lists (`dev.fuzz_files`). The first file of every
kind of finding is kept in `--keep`.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.fuzz_files import KINDS

ROOT = Path(__file__).resolve().parents[1]
MEMORY_LIMIT = 6 * 2**30
SLOW, WAIT = 5.0, 30.0
"""Seconds of the processor, and on the clock, after which reading a small file is a finding too."""
MOST_MEMORY = 2 * 2**20
"""KiB that reading may ever have taken."""
WORDS = [
    b"null", b"NaN", b"-Infinity", b"1e999", b"true", b"\\ud800", b"\\u0000", b"\0", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\r", b"\n", b"\xe2\x80\xa8", b'"', b'""', b"'", b",", b"{", b"[" * 3000, b"]", b"9" * 5000, b"\xe2\x80\x8b",
    b"\x1b[2J", b"\xf0\x9f\x91\xa9", b"messages", b"role", b"assistant", b"instruction", b"kind", b"task", b"id",
    b"output", b"text",
]  # fmt: skip
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
VALUES: list[Any] = [
    None, 0, -1, 1.5, True, "", " ", "\u200b", "x" * 3000, [], {}, [1], {"role": "user"}, "sc", "\ud800", float("nan"),
    2**70, 10**400, 1e308, -1e-320, CHAT[1:], CHAT,
]  # fmt: skip
COLUMNS = ["input", "output", "prompt", "completion", "question", "answer", "text", "document", "messages", "id",
           "task", "kind", "instruction", "", " ", "output\u200b", "a,b", "x" * 200]  # fmt: skip
FLAGS = [None, None, None, {"prompt": "input"}, {"completion": "text"}, {"id": "id", "completion": "output"}]
PROMPT_FORMATS = [("none", True), ("space", True), ("newline", False), ("separate", True), ("chat", True)]
LENGTHS = [2, 3, 16, 2048]


def good_file(rng: random.Random, kind: str) -> bytes:
    """A file of one format with a few rows, of which some cells are of odd types."""
    rows = [_row(rng) for _ in range(rng.randint(0, 5))]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    if kind == "json":
        return json.dumps(rows if rng.random() < 0.8 else rows[:1], ensure_ascii=True).encode()
    if kind == "csv":
        import csv

        text = io.StringIO()
        columns = rng.sample(COLUMNS, rng.randint(1, 4)) + rng.choice([[], ["output"], ["answer", "question"]])
        writer = csv.writer(text)
        writer.writerows([columns, *([str(rng.choice(VALUES)) for _ in columns] for _ in rows)])
        return text.getvalue().encode("utf-8", "surrogatepass")
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    while True:
        columns = {name: [rng.choice(VALUES) for _ in rows] for name in rng.sample(COLUMNS, rng.randint(1, 4))}
        columns["output"] = ["At Larch Lane."] * len(rows)
        with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeEncodeError):
            pq.write_table(pa.table(columns), buffer, compression=rng.choice(["none", "snappy", "zstd"]))
            return buffer.getvalue()


def _row(rng: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = rng.choice(
        [
            {"input": "Where?", "output": "Here."},
            {"question": "Who?", "answer": "Zoë."},
            {"text": "Once upon a time."},
            {"messages": VALUES[-1]},
            {"id": "a", "input": "", "output": "b", "task": "Task1"},
        ]
    )
    row = dict(row)
    if rng.random() < 0.2:
        row[rng.choice([*row, *COLUMNS])] = rng.choice(VALUES)
    return row


def damage(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes, or values within JSON."""
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError):
            return json.dumps(_other_values(rng, json.loads(data))).encode()
        with contextlib.suppress(ValueError):
            lines = [json.loads(line) for line in data.splitlines()]
            return "".join(json.dumps(_other_values(rng, line)) + "\n" for line in lines).encode()
    changed = bytearray(data)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 5, 20])):
        at = rng.randint(0, len(changed))
        size = rng.choice([1, 1, 4, 50])
        match rng.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] = rng.randrange(256)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = rng.choice(WORDS)
            case 3:
                changed[at:at] = changed[at : at + size]
            case 4:
                changed[at : at + size] = rng.randbytes(size)
            case _:
                del changed[at:]
    return bytes(changed)


def _other_values(rng: random.Random, content: Any) -> Any:
    """JSON in which a value is another one, or a field has gone."""
    if not isinstance(content, dict | list) or not content:
        return rng.choice(VALUES)
    names = list(content) if isinstance(content, dict) else range(len(content))
    name = rng.choice(list(names))
    match rng.randrange(4):
        case 0:
            content[name] = rng.choice(VALUES)
        case 1:
            del content[name]
        case _:
            content[name] = _other_values(rng, content[name])
    return content


def _queued() -> float:
    """Seconds that this process has waited for a processor that others had."""
    file = Path("/proc/self/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0


def outcome_of(read: Callable[[], str]) -> tuple[str, str]:
    """What comes of a reading.

    Args:
        read: Reads something; gives what is wrong with what it read, or nothing.

    Returns:
        `refused`, `read` or `found`, and for a finding what it is.
    """
    from expunge.errors import UserError

    begun, spent, outcome = time.monotonic() - _queued(), time.process_time(), "read"
    try:
        if found := read():
            return "found", found
    except UserError as error:
        outcome = "refused"
        if "\n" in str(error):
            return "found", f"a message of several lines: {type(error).__name__}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "found", f"{type(error).__name__} at {Path(where.filename).name}:{where.name}"
    late = time.monotonic() - _queued() - begun > WAIT or time.process_time() - spent > SLOW
    return ("found", "slow") if late else (outcome, "")


def attempt(path: Path, rng: random.Random, tokenizers: list[Any]) -> tuple[str, str]:
    """Read a file of texts and tokenize what is in it."""
    from expunge.data.examples import check_sets, read_examples
    from expunge.data.tokenize import PromptFormat, prompt_ids, tokenize
    from expunge.errors import UserError

    def read() -> str:
        examples = read_examples(str(path), columns=rng.choice(FLAGS))
        check_sets({"forget": examples, "retain": examples})
        tokenizer, prompt_format = rng.choice(tokenizers), PromptFormat(*rng.choice(PROMPT_FORMATS))
        for example in examples:
            with contextlib.suppress(UserError):
                most, cut = rng.choice(LENGTHS), rng.random() < 0.5
                row = tokenize(tokenizer, example, prompt_format, max_length=most, truncate_completions=cut)
                if not 0 <= row.completion_start < len(row) or not row.targets("completion"):
                    return f"tokenize gives start {row.completion_start} of {len(row)} under {prompt_format.style}"
                prompt_ids(tokenizer, example, prompt_format)
        return ""

    return outcome_of(read)


def attempt_file(kind: str, data: bytes) -> tuple[str, str]:
    """Read a file that is no data set, in a folder of its own."""
    _, name, reader = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

        def read() -> str:
            reader(path)
            return ""

        return outcome_of(read)


def main() -> int:
    """Fuzz for the time that is asked for; exit code 1 with findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for files that gave a finding")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from tiny import TOKENIZERS, tiny_tokenizer

    for kind, (make, *_) in KINDS.items():  # what a first reading imports is not slow reading
        attempt_file(kind, make(random.Random(0)))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    tokenizers = [tiny_tokenizer(kind) for kind in TOKENIZERS]
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    end = time.monotonic() + 60 * options.minutes
    shown = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            kind = rng.choice(["jsonl", "jsonl", "json", "csv", "parquet", *KINDS])
            path = Path(folder) / f"rows.{kind}"
            path.write_bytes(damage(rng, KINDS[kind][0](rng) if kind in KINDS else good_file(rng, kind)))
            if kind in KINDS:
                outcome, what = attempt_file(kind, path.read_bytes())
            else:
                outcome, what = attempt(path, rng, tokenizers)
            counts[f"{kind} {outcome}"] += 1
            if outcome == "found":
                findings[f"{kind}: {what}"] += 1
                if findings[f"{kind}: {what}"] == 1:
                    options.keep.mkdir(exist_ok=True)
                    (options.keep / f"{len(findings)}.{kind}").write_bytes(path.read_bytes())
                    print(f"finding: {kind}: {what}", flush=True)
            if time.monotonic() - shown > 60:
                shown = time.monotonic()
                print(f"{counts.total():,} files, {len(findings)} kinds of findings", flush=True)
    print(f"\n{options.minutes:g} minutes, {counts.total():,} files, {len(findings)} kinds of findings")
    for name, count in sorted(counts.items()):
        print(f"{name:<28}{count:>10,}")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    for name, count in findings.most_common():
        print(f"{name}: {count}")
    return bool(findings) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MEMORY


if __name__ == "__main__":
    sys.exit(main())
