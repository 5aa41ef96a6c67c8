"""When a run stops: the shortfall, the looks, the depth, and which state is kept."""

import math
from dataclasses import asdict

import pytest
import torch

from expunge.config import UnlearnConfig
from expunge.config.goal import Goal
from expunge.data.tokenize import TokenizedExample
from expunge.model.adapter import add_adapter, trainable
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.objectives import level, npo_token, push, push_odds
from expunge.objectives.depth import CLEAREST, LEAST_WEIGHT, RAMP
from expunge.schedule import Decay, decay, learning_rate
from expunge.stopping import (
    CORRECTION,
    FLATTEST,
    HELD,
    HOLDING,
    LEAST,
    LOOSEST,
    MOST,
    MOST_PRESSURE,
    PRESSING,
    SHARPENING,
    SHARPEST,
    TIGHTEST,
    Selector,
)  # fmt: skip
from expunge.strength import Selection, Signals, relative_losses, shortfall
from expunge.terms import SHALLOWEST, Aim, Row, count, loss_terms, weighted_sum
from tiny import save_tiny

UNTOUCHED = Signals(0.0, 1.0, 0.1, 2.0, 0.8)


def rows(name, count, start):
    return [
        TokenizedExample(f"{name}{i}", [(start + 5 * i + 3 * j) % 90 + 3 for j in range(9)], 4) for i in range(count)
    ]


SELECTION = Selection(rows("m", 4, 0), rows("n", 4, 31), rows("r", 3, 17))


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8), 0.0),
        (Signals(1.0, 0.55, 1.9, 2.1, 0.8 * 0.98), pytest.approx((1 - 1.9 / 2.1 - 0.05) / 0.05)),
        (Signals(1.0, 0.7, 2.0, 2.0, 0.8), pytest.approx(3)),  # (.2 - .05) / .05
        (Signals(1.0, 0.3, 2.0, 2.0, 0.8), pytest.approx(3)),  # too deep counts the same
        (Signals(1.0, 0.5, 2.4, 2.4, 0.8), pytest.approx(3)),  # a drift of 20 %
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8 * 0.96), pytest.approx(2)),  # two points below the floor
    ],
)
def test_shortfall_is_what_is_missing_in_tolerances(signals, expected):
    assert shortfall(signals, UNTOUCHED, Goal(0.5, 0.98, 0.05)) == expected


def after(*looks):
    """A selector that has seen these (AUC, loss of forgotten texts), unseen ones at 2 nats, every 10 steps."""
    selector = Selector(SELECTION, Goal())
    selector._untouched = UNTOUCHED
    signals = [Signals(1.0, auc, nll, 2.0, 0.8) for auc, nll in looks]
    lines = [
        {"step": 10 * (at + 1), "selection": {**asdict(own), "shortfall": shortfall(own, UNTOUCHED, Goal())}}
        for at, own in enumerate(signals)
    ]
    selector.restore([{"step": 1}, *lines], {})
    return selector


def test_it_has_arrived_at_the_first_look_at_the_depth():
    assert after((1.0, 0.2), (0.9, 1.5)).arrived is None
    assert after((1.0, 0.2), (0.9, 1.5)).reason.startswith("all steps are done")
    assert after((1.0, 0.2), (0.53, 1.5), (0.9, 1.4)).arrived == 20  # by the membership AUC
    assert after((1.0, 0.2), (0.9, 1.5), (0.8, 1.91)).arrived == 30  # by the loss
    assert "step 30" in after((1.0, 0.2), (0.9, 1.5), (0.8, 1.91)).reason


def test_the_best_state_is_the_last_of_those_that_lack_the_least():
    assert after((1.0, 0.2), (0.6, 2.0), (0.3, 2.0)).best_step == 20
    assert after((1.0, 0.2), (0.5, 2.0), (0.52, 2.0), (0.3, 2.0)).best_step == 30


def test_the_depth_is_that_of_unseen_texts_corrected_by_what_the_auc_lacks():
    assert Selector(SELECTION, Goal()).depth is None
    assert after().depth == UNTOUCHED.holdout_nll
    assert after((1.0, 0.2), (1.0, 1.6)).depth == 2.0  # too far off to say anything
    assert after((1.0, 0.2), (0.9, 1.8)).depth == pytest.approx(2.0 * (1 + CORRECTION * 0.4))
    assert after((0.9, 1.8), (0.2, 2.2)).depth == pytest.approx(2.0 * (1 + CORRECTION * (0.4 - 0.3)))
    assert after(*[(1.0, 1.9)] * 50).depth == 2.0 * MOST
    assert after(*[(0.0, 2.5)] * 50).depth == 2.0 * LEAST


def looked(*signals):
    """A selector that has looked at the untouched model and has seen `signals`."""
    made = Selector(SELECTION, Goal())
    made._untouched = UNTOUCHED
    lines = [asdict(own) | {"shortfall": 1.0} for own in signals]
    made.restore([{"step": 5 * (at + 1), "selection": own} for at, own in enumerate(lines)], {})
    return made


def test_beta_follows_how_evenly_the_loss_is_spread():
    def selector(*tails, nll=1.9):
        return looked(*(Signals(1.0, 0.5, nll, 2.0, 0.8, tail) for tail in tails))

    assert selector().sharpness == 1.0
    assert selector(1.0, nll=1.0).sharpness == 1.0  # too far off to say anything
    assert selector(0.9).sharpness == pytest.approx(math.exp(-0.4 * SHARPENING))  # the tail is too likely: let it go on
    assert selector(0.2, 0.4).sharpness == pytest.approx(math.exp(0.4 * SHARPENING))
    assert selector(*[1.0] * 50).sharpness == pytest.approx(FLATTEST)
    assert selector(*[0.0] * 50).sharpness == pytest.approx(SHARPEST)


def test_the_weight_of_npo_follows_the_membership_auc():
    def selector(*aucs):
        return looked(*(Signals(1.0, own, 1.0, 2.0, 0.8) for own in aucs))

    assert selector().pressure == 1.0
    assert selector(1.0, 0.9).pressure == pytest.approx(math.exp(0.9 * PRESSING))
    assert selector(1.0, 0.5, 0.5).pressure == pytest.approx(math.exp(0.5 * PRESSING))  # there, and it stays
    assert selector(1.0, 0.2).pressure == pytest.approx(math.exp(0.2 * PRESSING))
    assert selector(*[1.0] * 500).pressure == pytest.approx(MOST_PRESSURE)
    assert selector(*[1.0] * 500, 0.0).pressure == pytest.approx(MOST_PRESSURE * math.exp(-0.5 * PRESSING))


def test_the_weight_of_the_anchors_follows_the_drift():
    def selector(*losses, auc=0.5):
        return looked(*(Signals(1.0, auc, 1.0, nll, 0.8) for nll in losses))

    ceiling = Goal().drift
    assert selector().hold == 1.0
    assert selector(2.0).hold == pytest.approx(math.exp(-HOLDING * HELD * ceiling))  # nothing drifts: let go
    assert selector(1.0).hold == selector(2.0).hold  # more likely than before is no drift
    assert selector(2.0 * (1 + HELD * ceiling)).hold == pytest.approx(1.0)
    assert selector(2.2, 2.2).hold == pytest.approx(math.exp(2 * HOLDING * (0.1 - HELD * ceiling)))
    assert selector(2.2, 2.2, auc=1.0).hold == 1.0  # not at the depth yet: forgetting goes first
    assert selector(*[3.0] * 50).hold == pytest.approx(TIGHTEST)
    assert selector(*[2.0] * 100).hold == pytest.approx(LOOSEST)


def test_the_weights_that_follow_the_looks_are_in_the_sum_and_not_in_the_terms():
    config = UnlearnConfig("m", forget_weight=2.0, retain_weight=1.0, kl_weight=3.0, anchor_weight=5.0)
    terms = {"npo": 1.0, "retain_nll": 10.0, "retain_kl": 100.0, "anchor_kl": 1000.0}
    assert weighted_sum(terms, config) == 2 + 10 + 300 + 5000
    assert weighted_sum(terms, config, Aim(1.0, torch.ones(1), pressure=1.5, hold=0.5)) == 3 + 10 + 300 + 2500


def test_a_question_that_is_past_the_depth_does_not_keep_its_answer(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float64", device="cpu")
    parameters = trainable(add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0))
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.05)
    [text] = rows("q", 1, 3)
    logps = sequence_logps(loaded, [text.input_ids])[0].double()
    start = text.completion_start - 1
    config = UnlearnConfig("m", forget_span="all")
    ratios = torch.linspace(0.5, 2.0, len(logps), dtype=torch.float64)  # ref_logp - logp
    row = Row(text, "forget", logps + ratios)
    relative = torch.linspace(0.2, 1.5, loaded.base.config.vocab_size, dtype=torch.float64)
    own = relative[torch.tensor(text.input_ids[1:])]
    least = own.clamp(min=SHALLOWEST)
    parts = (slice(0, start), slice(start, None))
    depth = sum(-logps[part].sum().item() / least[part].sum().item() for part in parts) / 2  # one lies above, one below
    terms = loss_terms(loaded, [row], count([row], config), config, Aim(depth, relative, 2.0))
    beta, each = 2 * config.beta, torch.zeros_like(logps)
    for part in parts:
        share = ((1 + logps[part].mean() / (depth * least[part]).mean()) / RAMP).clamp(0, 1)
        weights = 2 * torch.sigmoid(-beta * ratios[part])
        odds = share / (1 - logps[part].exp()).clamp(min=CLEAREST) ** share
        each[part] = odds * own[part] / weights.mean()
    assert each.min() == 0 < each.max()
    assert own.min() < SHALLOWEST
    expected = (each * 2 / beta * torch.nn.functional.softplus(-beta * ratios)).mean()
    assert terms["npo"].item() == pytest.approx(expected.item(), rel=1e-4)  # sequence_logps are fp32


def test_tokens_are_pushed_by_what_their_group_lacks():
    logps = torch.tensor([-0.2, -0.2, -2.0, -2.0, -2.0, -3.0], requires_grad=True)
    shares = push(logps, torch.full((6,), 2.0), torch.tensor([0, 0, 1, 1, 1, 2]))
    assert not shares.requires_grad
    assert shares.tolist() == pytest.approx([1.0, 0.0, 0.0])
    shares = push(torch.tensor([-1.75]), torch.tensor([2.0]), torch.tensor([2]))
    assert shares.tolist() == pytest.approx([1.0, 1.0, 0.125 / RAMP])
    shares = push(torch.tensor([-1.5, -1.5]), torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))  # 2 on average
    assert shares.tolist() == pytest.approx([0.25 / RAMP])


def test_beta_says_how_a_push_is_spread_and_not_how_hard_it_is():
    logps = torch.tensor([-1.0, -4.0, -9.0, -2.0], requires_grad=True)
    ref_logps, groups = torch.tensor([-0.5, -0.1, -0.2, -2.0]), torch.tensor([0, 0, 0, 1])
    for beta in (0.03, 0.5, 2.0):
        push = level(logps, ref_logps, groups, beta=beta)
        assert not push.requires_grad
        (pushed,) = torch.autograd.grad(npo_token(logps, ref_logps, beta=beta, num_tokens=1, push=push), logps)
        assert pushed[:3].mean().item() == pytest.approx(1.0, rel=1e-5)
        assert pushed[3].item() == pytest.approx(1.0)
        assert pushed[0] > pushed[1] > pushed[2] > 0
    far = level(torch.tensor([-99.0]), torch.tensor([0.0]), torch.tensor([0]), beta=2.0)
    assert far.tolist() == pytest.approx([1 / LEAST_WEIGHT])


def test_tokens_are_as_unlikely_as_in_unseen_texts(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0)
    texts = rows("u", 2, 4)
    found = relative_losses(loaded, texts)
    losses = -torch.cat(sequence_logps(loaded, [own.input_ids for own in texts]))
    ids = [token for own in texts for token in own.input_ids[1:]]
    places = {token: [at for at, own in enumerate(ids) if own == token] for token in ids}
    once = [losses[at[0]].item() for at in places.values() if len(at) == 1]
    rare = sum(once) / len(once) if once else losses.mean().item()
    means = {token: (losses[at].sum().item() + rare) / (len(at) + 1) for token, at in places.items()}
    mean = sum(means[token] for token in ids) / len(ids)
    assert len(found) == loaded.base.config.vocab_size
    for token, own in means.items():
        assert found[token].item() == pytest.approx(own / mean, rel=1e-5)
    unseen = next(token for token in range(len(found)) if token not in means)
    assert found[unseen].item() == pytest.approx(rare / mean, rel=1e-5)


def test_a_token_that_the_model_is_sure_of_is_pushed_by_its_odds():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(1)[:, 0]
    log_odds = logps - (-logps.expm1()).log()
    (pushed,) = torch.autograd.grad((push_odds(logps, torch.ones(2)) * logps).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(log_odds.sum(), logits)
    torch.testing.assert_close(pushed, expected)
    assert pushed[:, 0].tolist() == pytest.approx([1.0, 1.0])
    sure = torch.tensor([0.0, -1e-9, -0.01])
    assert push_odds(sure, torch.ones(3)).tolist() == pytest.approx([1 / CLEAREST] * 3)
    near = push_odds(sure, torch.tensor([0.0, 0.5, 0.1]))  # the less it lacks, the more it is as without odds
    assert near.tolist() == pytest.approx([0.0, 0.5 / CLEAREST**0.5, 0.1 / CLEAREST**0.1])
    assert not push_odds(logps, torch.ones(2)).requires_grad


def test_the_learning_rate_stays_at_its_peak_until_the_depth_and_then_falls():
    config = UnlearnConfig("m", warmup=0.1, learning_rate=1e-3)
    on_the_way = decay(config, 300, steps_per_epoch=10)
    assert (on_the_way.start, on_the_way.end) == (172, 300)
    there = decay(config, 300, arrived=80, steps_per_epoch=10)
    assert (there.start, there.end) == (80, 140)
    assert decay(config, 300, arrived=10, steps_per_epoch=10) == Decay(10, 20)  # two epochs at least
    rates = [learning_rate(config, index, 300, there) for index in range(there.end + 1)]
    assert rates[29:81] == [1e-3] * 52
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert rates[110] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert decay(config, 300) == Decay(30, 270)  # who follows nothing falls from the warm-up on


def test_looks_keep_the_best_state_and_a_checkpoint_brings_it_back(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    parameters = trainable(add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0))
    selector = Selector(SELECTION, Goal())
    selector.begin(loaded)
    seen = []
    for step in (1, 2, 3):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(std=0.2)
        seen.append(([parameter.clone() for parameter in parameters], selector.look(loaded, parameters, step)))
    best = min(range(3), key=lambda at: seen[at][1]["shortfall"])
    assert selector.best_step == best + 1

    other = Selector(SELECTION, Goal())
    lines = [{"step": at + 1, "selection": own} for at, (_, own) in enumerate(seen)]
    other.restore(lines, selector.state())
    other.begin(loaded)
    assert (other.best_step, other.reason, other.depth) == (selector.best_step, selector.reason, selector.depth)
    for value, kept in zip(other.best, seen[best][0], strict=True):
        assert torch.equal(value, kept)
