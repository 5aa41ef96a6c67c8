"""How often the bound on membership AUCs is met by a model that never saw the texts, and by one that still knows them.

    python -m dev.false_alarms RUN/results_retrained.parquet ...

A retrained model has seen neither side, so a split of its documents is one that nothing but chance tells apart. Each
line is of such splits after every attack's scores of one side were raised by a constant, as much as an AUC of .5 (not
at all), .6 and so on needs on average. The columns are the shares of the splits in which all AUCs lie within the
standard deviation of one attack by chance, and within the bound of the verdict, which counts the attacks.

Of several models that were retrained on the same texts each is also judged against each other, as a run is against
`--reference`: within the bound about the other's AUC, by what chance gives to one AUC, and by what the interval of
the paired difference gives to two, which the verdict takes.
"""

import argparse
from itertools import permutations
from pathlib import Path

import numpy as np

from expunge.config.criteria import Criteria
from expunge.evaluation.predictions import SIDES
from expunge.evaluation.stats import auc_difference_estimate
from expunge.evaluation.values_file import read_values_file
from expunge.report.questions.told import spread
from expunge.utils.roc import Floats, auc, chance_sd

SPLITS, OF_PAIRS = 1_000, 200
"""Splits of a model's documents, and of those of each pair of models."""
AUCS = (0.5, 0.6, 0.7, 0.8, 0.9)


def scores_of(path: Path) -> tuple[Floats, int]:
    """Scores of the documents by each attack (attacks x documents), and how many of them are members."""
    values = read_values_file(path)
    attacks = sorted({metric for side, metric in values if side in SIDES and metric.startswith("membership/")})
    sides = [np.stack([values[side, attack].values for attack in attacks]) for side in SIDES]
    return np.concatenate(sides, axis=1), sides[0].shape[1]


def raised(scores: Floats, wanted: float) -> Floats:
    """What the scores of each attack must be raised by to have an AUC against themselves, `(attacks, 1)`."""
    if wanted == 0.5:
        return np.zeros((len(scores), 1))
    others = ~np.eye(scores.shape[1], dtype=bool)
    return np.array([[-np.quantile((row[:, None] - row[None, :])[others], 1 - wanted)] for row in scores])


def shares(scores: Floats, members: int, wanted: float, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of the splits that are within one standard deviation, and within the verdict's bound."""
    by = raised(scores, wanted)
    sd, met = chance_sd(members, scores.shape[1] - members), []
    bounds = [Criteria().auc(sd, attacks=attacks) for attacks in (1, len(scores))]
    for _ in range(SPLITS):
        order = rng.permutation(scores.shape[1])
        inside, outside = scores[:, order[:members]] + by, scores[:, order[members:]]
        found = [auc(*sides) for sides in zip(inside, outside, strict=True)]
        met.append([all(bound.violation(value) == 0 for value in found) for bound in bounds])
    one, all_of_them = np.mean(met, axis=0)
    return float(one), float(all_of_them)


def pair_shares(models: list[Floats], texts: int, wanted: float, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of the splits into sides of so many `texts` in which one model is within the bound about another: by what
    chance gives to one AUC, and by the paired difference of the two.
    """
    met, by_chance = [], chance_sd(texts, texts)
    for ours, theirs in permutations(models, 2):
        by = raised(ours, wanted)
        for _ in range(OF_PAIRS):
            order = rng.permutation(ours.shape[1])
            inside, outside = order[:texts], order[texts : 2 * texts]
            sides = zip(theirs[:, inside], theirs[:, outside], ours[:, inside] + by, ours[:, outside], strict=True)
            apart = [auc_difference_estimate((a, b), (c, d)) for a, b, c, d in sides]
            bounds = [[Criteria().auc(sd, 0.0, len(ours)) for sd in (by_chance, spread(found))] for found in apart]
            met.append(
                [
                    all(pair[way].violation(found.value) == 0 for pair, found in zip(bounds, apart, strict=True))
                    for way in (0, 1)
                ]
            )
    one, paired = np.mean(met, axis=0)
    return float(one), float(paired)


def main() -> None:
    """A table for each file, and one for all pairs of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", type=Path, nargs="+", help="values of a retrained model's documents (Parquet)")
    parser.add_argument("--texts", type=int, help="texts of either side of a pair (half of all)")
    args = parser.parse_args()
    models = []
    for path in args.values:
        scores, members = scores_of(path)
        models.append(scores)
        print(f"{path}: {members} + {scores.shape[1] - members} documents, {len(scores)} attacks")
        for wanted in AUCS:
            one, several = shares(scores, members, wanted, np.random.default_rng(0))
            print(f"  AUC {wanted:.1f}   one standard deviation {one:5.1%}   the verdict's bound {several:5.1%}")
    if len(models) > 1:
        texts = args.texts or models[0].shape[1] // 2
        print(f"each of {len(models)} against each other: {texts} + {texts} documents")
        for wanted in AUCS:
            one, paired = pair_shares(models, texts, wanted, np.random.default_rng(0))
            print(f"  AUC {wanted:.1f}   as chance spreads one {one:5.1%}   by the paired difference {paired:5.1%}")


if __name__ == "__main__":
    main()
