"""The dial: the search over scales."""

import pytest

from expunge.config.criteria import Goal
from expunge.train.scale import choose, misfit_at, number_of_looks
from expunge.train.validation import REACHED, Signals, shortfall


class Curve:
    """A meter whose signals are a function of the scale."""

    def __init__(self, signals):
        self.signals, self.untouched, self.looked = signals, signals(0.0), []

    def at(self, scale):
        self.looked.append(scale)
        return self.signals(scale)


def search(signals, target=Goal(), known=(), weighed=False):  # noqa: B008
    curve = Curve(signals)
    found = choose(curve, target, known=known, weighed=weighed)
    assert not {0.0, *(own.scale for own in known)} & set(curve.looked)
    assert len(curve.looked) == len(set(curve.looked)) <= number_of_looks()
    return found


def test_the_search_finds_the_target_between_the_first_scales():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 0.9))
    assert found.reached
    assert found.scale == pytest.approx(1.1, abs=0.04)
    assert found.curve == sorted(found.curve, key=lambda own: own.scale)
    assert found.at(found.scale).auc == pytest.approx(0.5, abs=0.02)


def test_what_was_measured_already_is_not_measured_again():
    def curve(scale):
        return Signals(scale, 1 - scale / 2.2, 1 + scale, 5.0, 0.9)

    assert search(curve, known=[curve(1.0)]) == search(curve)


def test_a_bound_stops_it_and_the_verdict_names_the_bound():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0 * (1 + 0.099 * s), 0.9))
    assert not found.reached
    assert found.scale == pytest.approx(0.505, abs=0.004)  # a drift of 5 %
    assert "unseen selection texts by" in found.verdict
    assert "ceiling 5.0%" in found.verdict

    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 0.9, said=0.9 - 0.7 * s))
    assert abs(found.at(found.scale).auc - 0.5) < 0.02  # the documents are there, and answers are still said
    assert not found.reached
    assert "still says 1" in found.verdict

    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 1 - 0.04 * s))
    assert found.scale == 0.75
    assert "floor 97.0%" in found.verdict

    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0, 0.9 + 0.04 * s, lost=0.04 * s))
    assert found.scale == 0.75  # more likely than before, and not all of it is said any more
    assert "keeps 96.9% of the retain set (floor 97.0%)" in found.verdict


def test_where_no_scale_gets_away_from_1_the_strongest_within_the_bounds_wins():
    found = search(lambda s: Signals(s, 1.0, 1 + s, 5.0 * (1 + 0.0399 * s), 0.9))
    assert (found.reached, found.scale) == (False, 1.25)
    assert "no scale up to 2 comes closer" in found.verdict
    found = search(lambda s: Signals(s, 1.0, 1 + s, 5.0, 0.9, said=1 - 0.1 * s))
    assert "no scale up to 2 comes closer to 0.50; the chosen one still says 80% of the completions" in found.verdict


def test_weighed_the_verdict_names_the_bounds_that_are_passed_where_the_target_is_missed():
    found = search(lambda s: Signals(s, 1 - 0.2 * s, 1 + 2 * s, 5.0 * (1 + 0.045 * s), 0.9, 0.5), weighed=True)
    assert not found.reached
    drift = found.at(found.scale).holdout_nll / 5 - 1
    assert drift > 0.05
    assert f"; the chosen one moves the loss of the unseen selection texts by {drift:.1%}" in found.verdict


def test_weighed_it_takes_the_middle_of_the_tolerance_and_gives_nothing_for_it():
    def steep(scale, drift=0.0, lost=0.0):  # near 1 the AUCs fall by a tolerance in a hundredth of the strength
        fall = min(0.5, max(-0.5, 5 * (scale - 1)))
        drift, lost = (max(0.0, at + 2 * (scale - 1)) for at in (drift, lost))
        return Signals(scale, 0.53 - fall, 5 + scale, 5.0 * (1 + drift), 0.9, 0.51 - fall, lost=lost)

    assert search(steep, weighed=True).scale == pytest.approx(1.004, abs=0.002)  # .51 and .49
    untouched, goal = steep(0.0), Goal(0.5, 0.98, 0.05)
    for at in ({"drift": 0.045}, {"lost": 0.02}):  # as much as is aimed at, and more with more strength
        assert shortfall(steep(1.0, **at), untouched, goal) == 0
        found = search(lambda scale, at=at: steep(scale, **at), goal, weighed=True)
        assert shortfall(found.at(found.scale), untouched, goal) <= misfit_at(found, goal) <= REACHED

    def harmful(scale):  # the AUC would be right at twice the strength, at a drift of 100 %
        return Signals(scale, 1.0 - 0.25 * scale, 1.0 + 2 * scale, 5.0 * (1 + 0.5 * scale), 0.9, 0.5)

    assert search(harmful, weighed=True).scale < 0.3


def test_an_adapter_that_harms_at_any_strength_is_switched_off():
    found = search(lambda s: Signals(s, 1 - s / 2.2, 1 + s, 5.0 * (1 + 20 * s), 0.9))
    assert found.scale == 0.0
