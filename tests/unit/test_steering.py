"""What follows from the looks of a run: depth, beta, the weights, the learning rate, and when it ends."""

import math
from dataclasses import replace

import pytest

from expunge.config.criteria import Goal
from expunge.train.steering import (
    DEEPER,
    DEEPER_NOW,
    DRIFT,
    EVENER,
    EVENER_NOW,
    HOLDING,
    INSISTING,
    KEEPING,
    LEAST_BETA,
    LEAST_DEPTH,
    LEAST_KEPT,
    LOOSEST,
    LOSS,
    MOST_BETA,
    MOST_DEPTH,
    MOST_INSISTENCE,
    MOST_KEPT,
    MOST_KEPT_EARLY,
    MOST_PRESSURE,
    OFTEN,
    PATIENCE,
    PATIENT_STEPS,
    PRESSING,
    PULLING,
    RANKED,
    SLOWEST,
    SLOWING,
    TIGHTEST,
    Course,
    Look,
)
from expunge.train.validation import SAID, Signals, shortfall

UNTOUCHED = Signals(0.0, 1.0, 0.1, 2.0, 0.8)
GOAL = Goal(0.5, 0.98, 0.05)


def course(*signals):
    """A look every ten steps."""
    looks = [Look(10 * (at + 1), shortfall(own, UNTOUCHED, GOAL), own) for at, own in enumerate(signals)]
    return Course(UNTOUCHED, GOAL, looks)


def signals(auc=0.5, nll=2.0, unseen=2.0, retain=0.8, tail=0.5):
    return Signals(1.0, auc, nll, unseen, retain, tail)


def after(*looks):
    """A run that has seen these (AUC, loss of forgotten texts), unseen ones at 2 nats."""
    return course(*(signals(auc, nll) for auc, nll in looks))


def test_it_has_arrived_at_the_first_look_at_the_depth():
    assert after((1.0, 0.2), (0.9, 1.5)).arrived is None
    assert after((1.0, 0.2), (0.9, 1.5)).reason.startswith("all steps are done")
    assert after((1.0, 0.2), (0.53, 1.5), (0.9, 1.4)).arrived == 20  # by the membership AUC
    assert after((1.0, 0.2), (0.9, 1.5), (0.8, 1.91)).arrived == 30  # by the loss
    assert "step 30" in after((1.0, 0.2), (0.9, 1.5), (0.8, 1.91)).reason


def test_the_best_state_is_the_last_of_those_that_lack_the_least():
    assert after().best is None
    assert after((1.0, 0.2), (0.6, 2.0), (0.3, 2.0)).best.step == 20
    assert after((1.0, 0.2), (0.5, 2.0), (0.52, 2.0), (0.3, 2.0)).best.step == 30


def test_the_depth_is_that_of_unseen_texts_corrected_by_what_the_auc_lacks():
    assert after().depth == UNTOUCHED.holdout_nll
    assert after((1.0, 0.2), (1.0, 1.6)).depth == 2.0  # too far off to say anything
    assert after((1.0, 0.2), (0.9, 1.8)).depth == pytest.approx(2.0 * (1 + 0.4 * (DEEPER + DEEPER_NOW)))
    for_good = DEEPER * (0.4 - 0.3)
    assert after((0.9, 1.8), (0.2, 2.2)).depth == pytest.approx(2.0 * (1 + for_good - 0.3 * DEEPER_NOW))
    assert after((0.9, 1.8), (0.5, 2.0)).depth == pytest.approx(2.0 * (1 + 0.4 * DEEPER))
    stuck = course(signals(1.0, nll=2.05, unseen=2.6))  # at the depth, and unseen texts far beyond it
    assert stuck.arrived == 10
    assert stuck.depth > 2.0 * (1 + DRIFT * GOAL.drift)  # told apart: it goes deeper
    drifting = [course(signals(nll=1.0, unseen=own)).depth for own in (1.8, 2.05, 2.2, 4.0)]
    assert drifting == pytest.approx([1.8, 2.05, *[2.0 * (1 + DRIFT * GOAL.drift)] * 2])  # no further than may be
    assert after(*[(1.0, 1.9)] * 50, (0.5, 2.0)).depth == 2.0 * MOST_DEPTH
    assert after(*[(0.0, 2.5)] * 50, (0.5, 2.0)).depth == 2.0 * LEAST_DEPTH


def test_beta_follows_how_evenly_the_loss_is_spread():
    def beta(*tails, nll=1.9):
        looks = (Signals(1.0, 0.5, nll, 2.0, 0.8, 0.5, tail * nll, 4.0) for tail in tails)  # 2 in unseen texts
        return course(*looks).beta(0.5)

    assert beta() == 0.5
    assert beta(1.0, nll=1.0) == 0.5  # too far off to say anything
    assert beta(2.0) == pytest.approx(0.5)
    assert beta(1.8) == pytest.approx(0.5 - 0.1 * (EVENER + EVENER_NOW))  # the tail is too likely: let it go on
    assert beta(2.4, 2.2) == pytest.approx(0.5 + 0.3 * EVENER + 0.1 * EVENER_NOW)
    ranked = Signals(1.0, 0.5, 2.0, 2.0, 0.8, 0.3, 4.0, 4.0)  # the mean is right, and single texts are told apart
    assert course(ranked).beta(0.5) == pytest.approx(0.5 + 0.2 * RANKED * (EVENER + EVENER_NOW))
    assert beta(*[1.0] * 50, 2.0) == pytest.approx(LEAST_BETA)
    assert beta(*[3.0] * 50, 2.0) == pytest.approx(MOST_BETA)


def test_looks_that_are_more_frequent_count_less_each():
    """Three looks in the time of one, with the same signals, make of the run what one does."""
    seen = [(1.0, 0.2), (0.9, 1.9), (0.4, 2.0), (0.3, 1.9)]

    def controls(looks, pace):
        seen = (replace(signals(auc, nll, unseen=2.2, retain=0.7), said=0.04) for auc, nll in looks)
        own = course(*seen)
        own.pace = pace
        return own.depth, own.beta(0.5), own.insistence, own.pressure, own.keep, own.hold

    thrice = [seen[0], *(look for look in seen[1:] for _ in range(3))]
    assert controls(thrice, 1 / 3)[0] == pytest.approx(controls(seen[1:], 1.0)[0])
    assert controls(thrice[1:], 1 / 3) == pytest.approx(controls(seen[1:], 1.0))
    waiting = course(signals(0.5, 2.0, 2.2), *[signals(0.9, 2.0, 2.2)] * PATIENCE)
    assert waiting.rate == SLOWING
    waiting.pace = 1 / 3
    assert waiting.rate == 1.0


def test_frequent_looks_wait_for_a_whole_swing_of_the_auc():
    def rate(count):
        looks = [Look(3 * (at + 1), 0.0 if at == 0 else 1.0, signals()) for at in range(count)]
        return Course(UNTOUCHED, GOAL, looks).rate

    falls = 1 + PATIENT_STEPS // 3
    assert rate(falls - 1) == 1.0
    assert rate(falls) == SLOWING


def test_the_weight_of_npo_follows_the_membership_auc():
    def pressure(*aucs):
        return course(*(signals(own, 1.0) for own in aucs)).pressure

    assert pressure() == 1.0
    assert pressure(1.0, 0.9) == pytest.approx(math.exp(0.9 * PRESSING))
    assert pressure(1.0, 0.5, 0.5) == pytest.approx(math.exp(0.5 * PRESSING))  # there, and it stays
    assert pressure(1.0, 0.2) == pytest.approx(math.exp(0.2 * PRESSING))
    assert pressure(*[1.0] * 500) == pytest.approx(MOST_PRESSURE)
    assert pressure(*[1.0] * 500, 0.0) == pytest.approx(MOST_PRESSURE * math.exp(-0.5 * PRESSING))


def test_texts_beyond_the_depth_are_pulled_back_while_they_are_less_likely_than_unseen_ones():
    assert after().pull == after((1.0, 0.2)).pull == after((0.4, 2.0), (0.5, 2.0)).pull == 0.0
    assert after((1.0, 0.2), (0.3, 2.2)).pull == pytest.approx(0.2 * PULLING)


def test_the_weight_of_the_retain_terms_follows_what_is_kept():
    def keep(*shares, auc=0.5):
        return course(*(signals(auc, 1.0, retain=0.8 * own) for own in shares)).keep

    allowed = LOSS * 0.02
    assert keep() == 1.0
    assert keep(1 - allowed) == pytest.approx(1.0)
    assert keep(1 - 1.5 * allowed) == pytest.approx(math.exp(0.5 * KEEPING))
    assert keep(0.9, 0.5) == pytest.approx(math.exp(2 * KEEPING))  # no faster, however much is lost
    own = course(signals(nll=1.0, retain=0.8 * (1 - 1 / 20)))
    own.rows = 20
    assert own.keep == pytest.approx(1.0)  # one row of twenty
    assert keep(0.9, 0.9, 1.0, 1.1) == pytest.approx(1.0)  # nothing is lost: let go as fast
    assert keep(*[0.5] * 50) == pytest.approx(MOST_KEPT)
    assert keep(*[1.5] * 50) == pytest.approx(LEAST_KEPT)
    assert keep(*[0.9] * 50, auc=1.0) == pytest.approx(MOST_KEPT_EARLY)  # not at the depth yet


def test_completions_that_are_still_said_are_pushed_harder():
    def insistence(*shares, auc=0.5, guessed=0.0):
        own = course(*(Signals(1.0, auc, 1.0, 2.0, 0.8, said=share) for share in shares))
        own.untouched = replace(UNTOUCHED, guessed=guessed)
        return own.insistence

    assert insistence() == insistence(0.0) == insistence(SAID) == 1.0
    assert insistence(SAID + 0.4 * OFTEN) == pytest.approx(math.exp(0.4 * INSISTING))
    assert insistence(0.9, 0.9) == pytest.approx(math.exp(2 * INSISTING))
    assert insistence(0.9, SAID - 0.3 * OFTEN) == pytest.approx(math.exp(0.7 * INSISTING))
    assert insistence(0.9, 0.9, auc=1.0) == 1.0  # not at the depth yet, where all of them are pushed
    assert insistence(0.5, guessed=0.5) == 1.0  # no more than can be guessed of unseen texts
    assert insistence(*[0.5] * 50) == pytest.approx(MOST_INSISTENCE)


def test_the_weight_of_the_anchors_follows_the_drift():
    def hold(*losses, auc=0.5):
        return course(*(signals(auc, 1.0, nll) for nll in losses)).hold

    wanted = DRIFT * GOAL.drift
    assert hold() == 1.0
    assert hold(2.0) == pytest.approx(math.exp(-HOLDING * wanted))  # nothing drifts: let go
    assert hold(1.0) == hold(2.0)  # more likely than before is no drift
    assert hold(2.0 * (1 + wanted)) == pytest.approx(1.0)
    assert hold(2.1, 2.1) == pytest.approx(math.exp(2 * HOLDING * (0.05 - wanted)))
    assert hold(2.2, 2.2, auc=1.0) == 1.0  # not at the depth yet: forgetting goes first
    assert hold(*[3.0] * 50) == pytest.approx(TIGHTEST)
    assert hold(*[2.0] * 100) == pytest.approx(LOOSEST)


def falling(*missing):
    """A run at the depth from step 20 on, with these shortfalls from there."""
    far, near = signals(1.0, 0.2), signals(0.5, 2.0)
    looks = [Look(10, 30.0, far), *(Look(20 + 10 * at, own, near) for at, own in enumerate(missing))]
    return Course(UNTOUCHED, GOAL, looks)


def test_the_learning_rate_falls_where_looks_do_not_get_better():
    assert after().rate == after(*[(1.0, 0.2)] * 50).rate == 1.0  # on the way nothing is lost yet
    assert falling(*range(50, 1, -1)).rate == 1.0
    assert falling(5.0, *[6.0] * (PATIENCE - 1)).rate == 1.0
    assert falling(5.0, *[5.0] * PATIENCE).rate == SLOWING
    assert falling(5.0, *[6.0] * PATIENCE, 4.0, *[6.0] * (PATIENCE - 1)).rate == SLOWING
    assert falling(5.0, *[6.0] * 2 * PATIENCE).rate == SLOWING**2


def test_it_ends_at_the_goal():
    assert after((1.0, 0.2), (0.6, 1.8)).over is None
    assert after((1.0, 0.2), (0.6, 1.8), (0.52, 2.0)).over == "the goal is reached at step 30"
    assert course(signals(), signals(retain=0.8 * 0.9795)).over.endswith("step 20")  # a twentieth of a tolerance
    assert course(signals(retain=0.8 * 0.97)).over is None
    assert course(signals(unseen=2.3, nll=2.3)).over is None
    assert course(signals(tail=0.7)).over is None


def test_it_ends_where_nothing_gets_better():
    ended = next(count for count in range(1, 200) if falling(5.0, *[6.0] * count).over)
    assert SLOWING ** (ended / PATIENCE) < SLOWEST <= SLOWING ** (ended / PATIENCE - 1)
    assert falling(5.0, *[6.0] * ended).over == "nothing has become better since step 20"
