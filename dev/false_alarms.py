"""How often the bound on membership AUCs is met by a model that never saw the texts, and by one that still knows them.

    python -m dev.false_alarms RUN/results_retrained.parquet ...

A retrained model has seen neither side, so a split of its documents is one that nothing but chance tells apart. Each
line is of such splits after every attack's scores of one side were raised by a constant, as much as an AUC of .5 (not
at all), .6 and so on needs on average. The columns are the shares of the splits in which all AUCs lie within the
standard deviation of one attack by chance, and within the bound of the verdict, which counts the attacks.
"""

import argparse
from pathlib import Path

import numpy as np

from expunge.config.criteria import Criteria
from expunge.evaluation.passes import SIDES
from expunge.evaluation.values_file import read_values_file
from expunge.utils.roc import Floats, auc, chance_sd

SPLITS = 1_000
AUCS = (0.5, 0.6, 0.7, 0.8, 0.9)


def scores_of(path: Path) -> tuple[Floats, int]:
    """Scores of the documents by each attack (attacks x documents), and how many of them are members."""
    values = read_values_file(path)
    attacks = sorted({metric for side, metric in values if side in SIDES and metric.startswith("membership/")})
    sides = [np.stack([values[side, attack].values for attack in attacks]) for side in SIDES]
    return np.concatenate(sides, axis=1), sides[0].shape[1]


def raised(scores: Floats, wanted: float) -> float:
    """What scores must be raised by to have an AUC against themselves."""
    differences = (scores[:, None] - scores[None, :])[~np.eye(len(scores), dtype=bool)]
    return -float(np.quantile(differences, 1 - wanted))


def shares(scores: Floats, members: int, wanted: float, rng: np.random.Generator) -> tuple[float, float]:
    """Shares of the splits that are within one standard deviation, and within the verdict's bound."""
    by = [raised(row, wanted) if wanted > 0.5 else 0.0 for row in scores]
    sd, met = chance_sd(members, scores.shape[1] - members), []
    bounds = [Criteria().auc(sd, attacks=attacks) for attacks in (1, len(scores))]
    for _ in range(SPLITS):
        order = rng.permutation(scores.shape[1])
        inside, outside = order[:members], order[members:]
        found = [auc(row[inside] + more, row[outside]) for row, more in zip(scores, by, strict=True)]
        met.append([all(bound.violation(value) == 0 for value in found) for bound in bounds])
    one, all_of_them = np.mean(met, axis=0)
    return float(one), float(all_of_them)


def main() -> None:
    """A table for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", type=Path, nargs="+", help="values of a retrained model's documents (Parquet)")
    for path in parser.parse_args().values:
        scores, members = scores_of(path)
        print(f"{path}: {members} + {scores.shape[1] - members} documents, {len(scores)} attacks")
        for wanted in AUCS:
            one, several = shares(scores, members, wanted, np.random.default_rng(0))
            print(f"  AUC {wanted:.1f}   one standard deviation {one:5.1%}   the verdict's bound {several:5.1%}")


if __name__ == "__main__":
    main()
