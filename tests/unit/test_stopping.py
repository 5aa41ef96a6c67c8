"""What a run that follows unseen texts pushes, looks at and keeps."""

import pytest
import torch

from expunge.config import UnlearnConfig
from expunge.config.criteria import Goal
from expunge.data.tokenize import TokenizedExample
from expunge.errors import RunError
from expunge.kernels import Head, token_logps, token_logps_and_kl
from expunge.losses import insistence, npo_token, push, push_odds, pushed, rest_kl, spread
from expunge.losses.depth import CLEAREST, LEAST_WEIGHT, RAMP
from expunge.model.adapter import add_adapter, trainable
from expunge.model.load import load_model
from expunge.model.logps import final_states, lay_out, sequence_logps
from expunge.train.early_stopping import AVERAGING, Selector
from expunge.train.schedule import learning_rate
from expunge.train.steering import Look
from expunge.train.terms import SHALLOWEST, Aim, Row, count, loss_terms, weighted_sum
from expunge.train.validation import SAFE, SAID, Meter, Selection, Signals, depth, evenly, relative_losses, shortfall
from tiny import save_tiny

UNTOUCHED = Signals(0.0, 1.0, 0.1, 2.0, 0.8)


def rows(name, count, start):
    return [
        TokenizedExample(f"{name}{i}", [(start + 5 * i + 3 * j) % 90 + 3 for j in range(9)], 4) for i in range(count)
    ]


SELECTION = Selection(rows("m", 4, 0), rows("n", 4, 31), rows("r", 3, 17), rows("f", 2, 5))


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8), 0.0),
        (Signals(1.0, 0.55, 1.9, 2.08, 0.8 * 0.98), pytest.approx((1 - 1.9 / 2.08 - 0.05) / 0.05)),
        (Signals(1.0, 0.7, 2.0, 2.0, 0.8), pytest.approx(3)),  # (.2 - .05) / .05
        (Signals(1.0, 0.3, 2.0, 2.0, 0.8), pytest.approx(3)),  # too deep counts the same
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8, 0.8), pytest.approx(5)),  # its least likely tokens are too likely
        (Signals(1.0, 0.5, 2.4, 2.4, 0.8), pytest.approx((0.2 - SAFE * 0.05) / 0.05)),  # a drift of 20 %
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8 * 0.96), pytest.approx(2)),  # two points below the floor
        (Signals(1.0, 0.5, 2.0, 2.0, 0.9, lost=0.05), pytest.approx(3)),  # more likely, and yet not all of it is said
        (
            Signals(1.0, 0.5, 2.0, 2.0, 0.8, said=SAID + 0.06),
            pytest.approx(3),
        ),  # short answers that documents do not show
        (Signals(1.0, 0.5, 2.0, 2.0, 0.8, said=SAID), 0.0),
        (Signals(1.0, 0.3, 2.0, 2.0, 0.8, auc_sd=0.1), pytest.approx(1.5)),  # on few texts
        (Signals(1.0, 0.3, 2.0, 2.0, 0.8, auc_sd=0.01), pytest.approx(3)),
    ],
)
def test_shortfall_is_what_is_missing_in_tolerances(signals, expected):
    assert shortfall(signals, UNTOUCHED, Goal(0.5, 0.98, 0.05)) == expected


@pytest.mark.parametrize("target", [0.3, 0.5, 0.8])
def test_the_depth_for_a_target_is_where_texts_spread_like_unseen_ones_have_that_auc(target):
    generator = torch.Generator().manual_seed(0)
    unseen, other = (5 + torch.randn(20_000, generator=generator) for _ in range(2))
    own = Signals(0.0, 1.0, 0.1, unseen.mean().item(), 0.8, holdout_sd=unseen.std().item())
    wanted = depth(own, Goal(target, 1, 0))
    forgotten = wanted + other - other.mean()
    assert (forgotten[:, None] < unseen[None, :2000]).float().mean().item() == pytest.approx(target, abs=0.01)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 150, 191])
def test_rows_that_are_looked_at_come_evenly_from_all(count):
    rows = [int(row.id) for row in evenly([TokenizedExample(str(at), [1, 2], 1) for at in range(count)], 64)]
    assert len(rows) == len(set(rows)) == min(count, 64)
    assert max(b - a for a, b in zip(rows, [*rows[1:], count], strict=True)) <= -(-count // 64)


def test_rows_that_are_looked_at_come_from_all_groups():
    alternating = [TokenizedExample(str(at), [1, 2], 1, group=("sc", "qa")[at % 2]) for at in range(256)]
    groups = [row.group for row in evenly(alternating, 128)]
    assert groups.count("sc") == groups.count("qa") == 64


def test_the_weights_that_follow_the_looks_are_in_the_sum_and_not_in_the_terms():
    config = UnlearnConfig("m", forget_weight=2.0, retain_weight=1.0, kl_weight=3.0, anchor_weight=5.0)
    terms = {"npo": 1.0, "retain_nll": 10.0, "retain_kl": 100.0, "anchor_kl": 1000.0}
    assert weighted_sum(terms, config) == 2 + 10 + 300 + 5000
    aim = Aim(1.0, torch.ones(1), 0.5, pressure=1.5, keep=2.0, hold=0.5)
    assert weighted_sum(terms, config, aim) == 3 + 20 + 600 + 2500


@pytest.mark.parametrize(
    ("beta", "factor", "pull"), [(1.0, 1, 0.0), (0.0, 1, 0.0), (-0.5, 1, 0.5), (1.0, 1.2, 0.0), (0.5, 1.2, 0.5)]
)
def test_a_question_that_is_past_the_depth_does_not_keep_its_answer(tmp_path, beta, factor, pull):
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
    most = 5.0
    least = own.clamp(min=SHALLOWEST)
    parts = (slice(0, start), slice(start, None))
    own_depths = [-logps[part].sum().item() / least[part].sum().item() for part in parts]
    depth = factor * (max(own_depths) if factor > 1 else sum(own_depths) / 2)  # both below, or one above
    terms = loss_terms(loaded, [row], count([row], config), config, Aim(depth, relative, beta, pull, insistence=most))
    each = torch.zeros_like(logps)
    for part in parts:
        share = ((1 + logps[part].mean() / (depth * least[part]).mean()) / RAMP).clamp(-pull, 1)
        weights = 2 * torch.sigmoid(-beta * ratios[part])
        odds = share / (1 - logps[part].exp()).clamp(min=CLEAREST) ** share
        each[part] = odds * own[part] * weights / weights.mean()
        if part == parts[1] and share > 0:  # an answer; what is pulled back is not pulled harder
            each[part] *= 1 + (most - 1) * min(1.0, 2 * logps[part].min().exp().item())
    assert each.min() < each.max()
    assert (each.min() > 0) == (factor > 1)
    assert own.min() < SHALLOWEST
    expected = (each * logps).mean()
    assert terms["npo"].item() == pytest.approx(expected.item(), rel=1e-4)  # sequence_logps are fp32


def test_what_a_forgotten_token_leaves_goes_to_the_others_as_before(tmp_path):
    """The divergence of all others, by the formula written out; the token's own probability is left free."""
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float64", device="cpu")
    ref_logits, change = torch.randn(2, 7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(7)
    logits = (ref_logits + change).requires_grad_()
    p, q = logits.softmax(-1), ref_logits.softmax(-1)
    others = torch.ones(7, 30, dtype=torch.bool).scatter(1, ids[:, None], False)
    rest, ref_rest = (own[others].view(7, 29) for own in (p, q))
    shares, ref_shares = rest / rest.sum(-1, keepdim=True), ref_rest / ref_rest.sum(-1, keepdim=True)
    expected = (rest.sum(-1) * (shares * (shares / ref_shares).log()).sum(-1)).mean()
    (slope,) = torch.autograd.grad(expected, logits)

    logps, kl = token_logps_and_kl(logits, ref_logits, Head(None), ids, "reverse")
    found = rest_kl(kl, logps, token_logps(ref_logits, Head(None), ids))
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], slope, rtol=1e-6, atol=1e-9)

    alone = ref_logits.clone()
    alone[range(7), ids] -= 3.0  # pushed, and nothing else
    logps, kl = token_logps_and_kl(alone, ref_logits, Head(None), ids, "reverse")
    assert rest_kl(kl, logps, token_logps(ref_logits, Head(None), ids)).item() == pytest.approx(0, abs=1e-9)

    [text] = rows("q", 1, 3)
    states = final_states(loaded, lay_out(loaded, [text.input_ids]))[:-1]
    ref_logps = sequence_logps(loaded, [text.input_ids])[0].double()
    config = UnlearnConfig("m", rest_weight=2.0, forget_span="all")
    row = Row(text, "forget", ref_logps, states)
    untouched = loss_terms(loaded, [row], count([row], config), config)
    assert untouched["rest_kl"].item() == pytest.approx(0, abs=1e-6)
    row = Row(text, "forget", ref_logps, 1.5 * states)
    moved = loss_terms(loaded, [row], count([row], config), config)
    assert moved["rest_kl"].item() > 1e-4
    assert moved["npo"].item() == pytest.approx(untouched["npo"].item())


def test_tokens_are_pushed_by_what_their_group_lacks():
    logps = torch.tensor([-0.2, -0.2, -2.0, -2.0, -2.0, -3.0], requires_grad=True)
    shares = push(logps, torch.full((6,), 2.0), torch.tensor([0, 0, 1, 1, 1, 2]))
    assert not shares.requires_grad
    assert shares.tolist() == pytest.approx([1.0, 0.0, 0.0])
    shares = push(torch.tensor([-1.75]), torch.tensor([2.0]), torch.tensor([2]))
    assert shares.tolist() == pytest.approx([1.0, 1.0, 0.125 / RAMP])
    shares = push(torch.tensor([-1.5, -1.5]), torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))  # 2 on average
    assert shares.tolist() == pytest.approx([0.25 / RAMP])
    beyond = push(torch.tensor([-2.1, -9.0]), torch.full((2,), 2.0), torch.tensor([0, 1]), 0.4)
    assert beyond.tolist() == pytest.approx([-0.05 / RAMP, -0.4])


@pytest.mark.parametrize("beta", [0.03, 0.5, 2.0, 0.0, -0.5])
def test_beta_says_how_a_push_is_spread_and_not_how_hard_it_is(beta):
    logps = torch.tensor([-1.0, -4.0, -9.0, -2.0], dtype=torch.float64, requires_grad=True)
    ref_logps, groups = torch.tensor([-0.5, -0.1, -0.2, -2.0]), torch.tensor([0, 0, 0, 1])
    weights = spread(logps, ref_logps, groups, beta=beta)
    assert not weights.requires_grad
    (own,) = torch.autograd.grad(pushed(logps, weights, num_tokens=1), logps)
    assert own[:3].mean().item() == pytest.approx(1.0)
    assert own[3].item() == pytest.approx(1.0)
    order = [own[0], own[1], own[2]]
    assert order == sorted(order, reverse=beta > 0)
    assert min(order) > 0
    if beta > 0:  # the gradient of NPO, times one factor for the group
        (npo,) = torch.autograd.grad(npo_token(logps, ref_logps, beta=beta, num_tokens=1), logps)
        torch.testing.assert_close(own[:3] / own[0], npo[:3] / npo[0])


def test_what_is_said_for_certain_is_pushed_harder():
    logps = torch.tensor([0.9, 0.6, 0.9, 0.1, 0.01], dtype=torch.float64).log().requires_grad_()
    factors = insistence(logps, torch.tensor([0, 0, 1, 1, 3]), most=5.0)
    assert factors.tolist() == pytest.approx([5.0, 1.8, 5.0, 1.08])  # no token has the third
    assert not factors.requires_grad
    assert insistence(logps, torch.tensor([0, 0, 1, 1, 3]), most=1.0).tolist() == [1.0] * 4


def test_what_a_chat_template_has_behind_the_end_does_not_say_whether_a_completion_is_said(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    end = loaded.tokenizer.eos_token_id
    config = UnlearnConfig("m", forget_span="all")
    texts = [TokenizedExample("c", [5, 6, 7, 8, end, behind], 2) for behind in range(3, 90)]
    text, logps = min(
        ((text, sequence_logps(loaded, [text.input_ids])[0]) for text in texts), key=lambda own: own[1][-1].item()
    )
    assert logps[4] < logps[1:4].min()
    row = Row(text, "forget", logps)
    aim = [Aim(100.0, torch.ones(loaded.base.config.vocab_size), 0.0, insistence=most) for most in (1.0, 301.0)]
    first, then = (loss_terms(loaded, [row], count([row], config), config, own)["npo"].item() for own in aim)
    odds = logps / (1 - logps.exp()).clamp(min=CLEAREST)
    harder = 300 * min(1.0, 2 * logps[1:4].min().exp().item())
    assert then - first == pytest.approx(harder * odds[1:].sum().item() / len(logps), rel=1e-4)


def test_a_group_that_npo_has_left_alone_is_not_raised_without_end():
    far = spread(torch.tensor([-99.0]), torch.tensor([0.0]), torch.tensor([0]), beta=2.0)
    assert 0 <= far.item() < 1e-80 / LEAST_WEIGHT


def test_tokens_are_as_unlikely_as_in_unseen_texts(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    texts = rows("u", 2, 4)
    logps = sequence_logps(loaded, [own.input_ids for own in texts])
    found = relative_losses(texts, logps, loaded.base.config.vocab_size)
    losses = -torch.cat(logps)
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
    back = push_odds(sure, torch.tensor([-0.4, 0.0, -0.1]))  # no harder than without odds
    assert back.tolist() == pytest.approx([-0.4 * CLEAREST**0.4, 0.0, -0.1 * CLEAREST**0.1])
    near = push_odds(sure, torch.tensor([0.0, 0.5, 0.1]))  # the less it lacks, the more it is as without odds
    assert near.tolist() == pytest.approx([0.0, 0.5 / CLEAREST**0.5, 0.1 / CLEAREST**0.1])
    assert not push_odds(logps, torch.ones(2)).requires_grad


def test_the_learning_rate_of_a_run_that_follows_unseen_texts_falls_by_what_it_sees_alone():
    config = UnlearnConfig.from_recipe("steered", model="m", learning_rate=1e-3, warmup=0.1)
    rates = [learning_rate(config, index, 300) for index in range(300)]
    assert rates[:30] == pytest.approx([1e-3 * (at + 1) / 30 for at in range(30)])
    assert rates[30:] == [1e-3] * 270


@pytest.fixture
def adapted(tmp_path):
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cpu")
    return loaded, trainable(add_adapter(loaded, rank=2, alpha=None, modules="all-linear", seed=0))


def made(adapted, epoch=1):
    loaded, parameters = adapted
    return Selector(Meter(loaded, SELECTION), Goal(), beta=0.5, parameters=parameters, epoch=epoch)


def moved(parameters, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.2)
    return [parameter.clone() for parameter in parameters]


def test_looks_keep_the_best_state_and_a_checkpoint_brings_it_back(adapted):
    parameters = adapted[1]
    selector, seen = made(adapted), []
    for step in (1, 2, 3):
        state = moved(parameters, step)
        selector.follow(step)  # an epoch of one step: the mean is the state
        seen.append((state, selector.look(step)))
    best = min(range(3), key=lambda at: seen[at][1]["shortfall"])
    assert selector.course.best.step == best + 1

    other = made(adapted)
    lines = [{"step": at + 1, "selection": own} for at, (_, own) in enumerate(seen)]
    other.restore([{"step": 1}, *lines], selector.state())
    assert other.course.looks == selector.course.looks
    assert other.course.reason == selector.course.reason
    for value, kept in zip(other.best, seen[best][0], strict=True):
        assert torch.equal(value, kept)
    for value, last in zip(other.mean, seen[-1][0], strict=True):
        assert torch.equal(value, last)


def test_looks_of_another_version_are_refused(adapted):
    selector = made(adapted)
    look = {"step": 1, "selection": {"scale": 1.0, "auc": 0.5, "forget_nll": 2.0, "shortfall": 0.0}}
    with pytest.raises(RunError, match="another version"):
        selector.restore([look], {})


def test_what_is_looked_at_is_the_mean_of_the_last_states(adapted):
    loaded, parameters = adapted
    epoch = 12
    selector = made(adapted, epoch=epoch)
    expected = [parameter.clone() for parameter in parameters]
    for step in range(1, 41):
        states = moved(parameters, step)
        selector.follow(step)
        share = 1 / max(1, min(AVERAGING * epoch, step / 4))  # of no more than a quarter of the steps so far
        expected = [mean + share * (state - mean) for mean, state in zip(expected, states, strict=True)]
    found = selector.look(40)
    for parameter, state in zip(parameters, states, strict=True):
        assert torch.equal(parameter, state)  # training goes on from where it was
    with torch.no_grad():
        for parameter, mean in zip(parameters, expected, strict=True):
            parameter.copy_(mean)
    alone = Meter(loaded, SELECTION).at(1.0)
    assert found["forget_nll"] == pytest.approx(alone.forget_nll, rel=1e-5)
    assert found["retain"] == pytest.approx(alone.retain, rel=1e-5)


def test_the_next_step_is_aimed_by_what_follows_from_the_looks(adapted):
    selector = made(adapted)
    own = selector.course
    seen = Signals(1.0, 0.3, own.untouched.holdout_nll, 1.2 * own.untouched.holdout_nll, 0.9, said=0.9, lost=0.1)
    own.looks = [Look(10 * (at + 1), 1.0, seen) for at in range(3)]
    aim = selector.aim
    found = (aim.depth, aim.beta, aim.pull, aim.insistence, aim.pressure, aim.keep, aim.hold)
    assert found == (own.depth, own.beta(0.5), own.pull, own.insistence, own.pressure, own.keep, own.hold)
    assert len(set(found)) == 7
