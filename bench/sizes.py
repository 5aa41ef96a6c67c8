"""`python -m bench.sizes`: sizes of captured passes for rows of the official lengths, counted on the CPU in seconds.

For each split and recipe: the sizes, the steps, and which share of what their passes compute is real. The model does
not matter; replay texts are as long as a model may write them. `default` is counted without and with other texts before
its forget texts.
"""

from itertools import islice

from bench.measure import prepared_for
from bench.workload import random_model, random_rows
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.model.load import load_model
from expunge.model.replay import NEW_TOKENS
from expunge.train.contexts import TOKENS
from expunge.train.speed import sizes_for
from expunge.train.step_rows import MICRO_BATCH_TOKENS, StepRows

SPLITS = ("validation", "train")
CASES = (("paper", 0), ("default", 0), ("default", TOKENS), ("npo", 0))
"""Recipe, and tokens of other texts before a forget text."""


def main() -> None:
    """Print a table."""
    print("| split | recipe | sizes | steps | real |\n|---|---|---|---:|---:|")
    with random_model("olmo-tiny") as model:
        for split in SPLITS:
            for recipe, context in CASES:
                steps = batches_of(model, split, recipe, context)
                tokens = [sum(lengths) for batches in steps for lengths in batches]
                sizes = sizes_for(tokens)
                area = sum(min(size for size in sizes if size >= count) for count in tokens)
                name = f"{recipe}, {context} tokens before" if context else recipe
                shown = ", ".join(f"{size:,}" for size in sizes)
                print(f"| {split} | {name} | {shown} | {len(steps):,} | {sum(tokens) / area:.0%} |", flush=True)


def batches_of(model: str, split: str, recipe: str, context: int) -> list[list[list[int]]]:
    """Lengths of the rows of each micro-batch of each step, as a GPU would take them."""
    sides = random_rows(split, 512)
    config = UnlearnConfig(model=model, recipe=recipe, context_tokens=context, device="cpu", dtype="float32")
    unseen = sides["forget"][:1] if recipe == "default" else []
    loaded = load_model(model, dtype="float32", device="cpu")
    rows = StepRows(prepared_for(config, loaded, sides, unseen=unseen))
    count = rows.replay_wanted // NEW_TOKENS
    rows.set_replay([TokenizedExample(f"replay-{n}", [5] * (NEW_TOKENS + 1), 1) for n in range(count)])
    rows.packed, rows.most_tokens = True, MICRO_BATCH_TOKENS["cuda"]
    return [rows.batch_lengths(step) for step in islice(rows.plan.steps(), rows.num_steps)]


if __name__ == "__main__":
    main()
