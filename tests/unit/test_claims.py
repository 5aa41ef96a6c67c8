"""What is claimed can be false: the merge's sentence, and that docs/reliability.md names tests that are there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.config import UnlearnConfig
from expunge.data.contexts import SHARE_ALONE
from expunge.losses.target_kl import TargetKL
from expunge.model.replay import NEW_TOKENS
from expunge.train.averaging import WARMING
from expunge.train.contexts import MOST_RATIO, MOST_TEXTS, TOKENS
from expunge.train.early_stopping import IN_A_ROW
from expunge.train.merge import _judge
from expunge.train.schedule import FALLING, MOST_EPOCHS, MOST_STEPS, REPLAY_PER_FORGET_SET
from expunge.train.setup import BOUNDED_RATE, REFERENCE_WIDTH
from expunge.train.targets import MOST_UNSEEN
from expunge.train.validation import CERTAIN, FORGET_ROWS

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"the model's own texts"}
"""What stands in the names of work alone, and claims nothing."""


@pytest.mark.parametrize(
    ("adapter", "merged", "survives"),
    [
        (3.0, 3.0, True),
        (3.0, 2.9, True),
        (3.0, 1.2, False),  # rounding gave the texts back
        (3.0, 5.0, False),  # and off the other way, it is another model
        (1.0, 1.0, False),  # the adapter forgot nothing
        (0.5, 0.5, False),
    ],
)
def test_a_merge_says_that_forgetting_survives_only_where_it_does(
    adapter: float, merged: float, survives: bool
) -> None:
    assert (_judge({"untouched": 1.0, "adapter": adapter, "merged": merged}) == "") == survives


def _sentences(path: Path) -> Iterator[str]:
    """The texts of four words and more in a file's code, with `{}` in the place of what is put in."""
    tree = ast.parse(path.read_text())
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)
    }  # no claims
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    skipped |= {id(title) for node in ast.walk(tree) if isinstance(node, ast.Call) for title in _titles(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in skipped:
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def _titles(call: ast.Call) -> list[ast.expr]:
    """The argument of a call that names work while it goes on, and claims nothing."""
    return call.args[:1] if isinstance(call.func, ast.Attribute) and call.func.attr in ("track", "working") else []


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"report/{name}"
            for name in ("judge", "targets", "doubts", "losses", "answers", "answering", "run_data", "details")
        ),
        *(f"report/questions/{name}" for name in ("said", "told", "rest", "speech")),
        *(f"train/{name}" for name in ("doubts", "loop", "scale", "targets", "contexts")),
        "evaluation/advice",
    ],
)
def test_the_table_of_claims_has_every_sentence_of_verdict_page_and_run(name: str) -> None:
    page = " ".join((ROOT / "docs/reliability.md").read_text().replace("`", "").split())
    for sentence in {*_sentences(ROOT / f"src/expunge/{name}.py")} - TITLES:
        pieces = [piece.strip(" ,;.:()").split() for piece in re.split(r"\{[^{}]*\}", sentence.replace("`", ""))]
        words = next((piece for piece in pieces if len(piece) >= 4), [])
        assert " ".join(words[:4]).strip(" ,;.:()") in page, sentence


def test_every_test_that_the_docs_name_is_there() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    for name in set(re.findall(r"`(tests/[a-z_/]+\.py)`", page)):
        assert (ROOT / name).is_file(), name
    for file, test in set(re.findall(r"`(test_\w+)\.(test_\w+)`", page)):
        found = [path for path in (ROOT / "tests").rglob(f"{file}.py") if f"def {test}(" in path.read_text()]
        assert found, f"{file}.{test}"


def test_the_constants_of_the_method_are_those_of_the_code() -> None:
    table = (ROOT / "docs/method.md").read_text().split("## The constants of `default`")[1].split("## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()]
    told = {
        int(number): [float(value) for value in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", what)] for number, what in rows
    }
    config = UnlearnConfig(model="m", forget="f", output="o")
    loss = TargetKL()
    assert told == {
        1: [config.forget_weight, config.retain_weight, config.kl_weight, config.replay_weight],
        2: [loss.nll_weight],
        3: [loss.free_nll],
        4: [config.lora_rank],
        5: [BOUNDED_RATE, REFERENCE_WIDTH, BOUNDED_RATE, REFERENCE_WIDTH],
        6: [config.ema_steps],
        7: [config.patience],
        8: [IN_A_ROW],
        9: [MOST_EPOCHS, MOST_STEPS],
        10: [NEW_TOKENS, REPLAY_PER_FORGET_SET],
        11: [1, 2 * TOKENS - 1],
        12: [MOST_RATIO],
    }
    assert SHARE_ALONE == FALLING == 1 / 2
    beside = (ROOT / "docs/method.md").read_text().split("Not tuned, and")[1].split("\n\n")[0]
    for words in (
        f"one in {WARMING} of the steps", f"{MOST_UNSEEN:,} tokens of unseen", f"{MOST_TEXTS} of them that are read",
        f"{FORGET_ROWS} forget rows", f"a probability of {CERTAIN:g}".replace("0.", "."),
    ):  # fmt: skip
        assert words in " ".join(beside.split())
