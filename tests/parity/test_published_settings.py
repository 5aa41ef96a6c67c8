"""The settings that docs/papers.md gives as published objectives are settings, and give the published numbers."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from expunge.cli.settings import parse
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.losses import FORGET_LOSSES, make_forget_loss
from tiny import save_tiny
from training import prepared, ready

SECTION = (Path(__file__).resolve().parents[2] / "docs/papers.md").read_text().split("### As published")[1]
SETTINGS = re.findall(r"^\|[^|]+\| `(--loss [^`]+)` \|", SECTION.split("\n## ")[0], re.M)
TEXTS = ["--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "run"]


def given(command: str) -> dict:
    return parse(UnlearnConfig, [*TEXTS, *shlex.split(command)], "unlearn")


def test_every_loss_of_a_paper_has_its_published_settings():
    found = [UnlearnConfig(**given(command)) for command in SETTINGS]
    published = {name for name, method in FORGET_LOSSES.items() if "this project" not in method.source}
    missing = {config.loss for config in found} ^ published
    assert not missing, "docs/papers.md, As published: a row for each, or `this project` in the source of the loss"
    for config in found:
        config.validate()
        needs = make_forget_loss(config.loss, config.loss_args).needs
        assert config.forget_span == "completion" or "pairs" in needs, "these act on completions alone"
        assert (config.kl_weight, config.replay_weight) == (config.loss == "rmu", 0)


def test_npo_with_a_retain_nll_is_its_equation_on_completions_alone(tmp_path: Path):
    """Zhang et al. 2024, Eq. 3: -(2/beta) mean log sigmoid(-beta log(p(y | x) / p_ref(y | x))), and mean NLL beside."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((14, 9), (11, 4), (8, 6), (13, 5))  # tokens, and those of the prompt
    rows = [
        TokenizedExample(str(at), torch.randint(3, 120, (length,), generator=generator).tolist(), prompt)
        for at, (length, prompt) in enumerate(shapes)
    ]
    settings = given(SETTINGS[0])
    for name in ("model", "forget", "retain", "output"):
        settings.pop(name)
    trainer = ready(
        prepared(
            save_tiny(tmp_path / "model", "llama", "bytelevel"),
            forget=rows[:2],
            retain=rows[2:],
            **{"recipe": "default", "rows_per_step": 4, **settings},
        )
    )

    def logp(row: TokenizedExample) -> torch.Tensor:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        targets = torch.tensor(row.input_ids[row.completion_start :])
        return logits.log_softmax(-1)[row.completion_start - 1 : -1].gather(1, targets[:, None]).sum()

    ours = [logp(row) for row in rows]
    with trainer.model.disable_adapter():
        ref = [logp(row) for row in rows[:2]]
    ratios = torch.stack(ours[:2]) - torch.stack(ref)
    forget = -(2 / 0.1) * logsigmoid(-0.1 * ratios).mean().item()
    retain = -sum(ours[2:]).item() / (2 + 8)
    terms = trainer.gradient(next(trainer.rows.plan.steps()))
    assert [(term.name, term.weight) for term in trainer.terms] == [("forget", 1.0), ("retain", 1.0)]
    assert ratios.abs().min() > 0.1
    assert terms.tolist() == pytest.approx([forget, retain], rel=1e-5)
