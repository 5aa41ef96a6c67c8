"""What happens before the first step, in this order: the memory is looked at, then the untouched model.

`check_memory` chooses micro-batches that fit; `ask_untouched` lets the model write the replay texts, and then looks at
all rows with the adapter off. The order matters: a reference covers the rows that are there, and `speed_up`, which
comes last, captures the steps as these have left them.
"""

import math
from collections.abc import Iterable
from itertools import islice

from expunge.data.sampler import Step
from expunge.data.tokenize import TokenizedExample
from expunge.model import memory
from expunge.model.logps import final_states, lay_out
from expunge.model.memory import check_fits, saved_bytes
from expunge.model.reference import Asked, check_room, compute_reference, reference_layout
from expunge.model.replay import write_texts
from expunge.train.contexts import settled
from expunge.train.targets import target_values
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter

FREE_SHARE = 0.7
"""Of the free memory, what activations may take: the rest is for logits, gradients of activations and fragments."""
FEW_WRITTEN = 0.5
"""Share of the wanted replay texts below which there is a warning."""


def check_memory(trainer: Trainer) -> None:
    """Choose micro-batches that fit into the free memory, and look whether they do on the CPU.

    What a micro-batch keeps for its backward pass is measured on the longest row and on half of it: most grows with
    the tokens, and what experts keep does not. On a GPU a step that does not fit all the same is repeated in
    smaller parts; on the CPU the system kills who takes more.

    Raises:
        ModelError: Not even the longest row fits.
    """
    rows, device = trainer.rows, trainer.loaded.device
    longest = max((row for side in rows.sides.values() for row in side.rows), key=len)
    kept, tokens = _kept_bytes(trainer, longest.input_ids)
    part, fewer = _kept_bytes(trainer, longest.input_ids[: -(-len(longest) // 2)])
    more = (kept - part) / (tokens - fewer) if tokens > fewer and kept > part else math.inf
    per_token = min(kept / tokens, more)
    fixed = int(kept - per_token * tokens)
    to_write = Asked({0: TokenizedExample("replay", [0] * rows.replay_wanted, 0)}, "all", ["ref_states"])
    sides = {"replay": to_write} | reference_sides(trainer)
    held = check_room(reference_layout(trainer.loaded, sides), trainer.processes)
    free = memory.free_memory(device)
    if free is not None:
        room = FREE_SHARE * (free - held * (device.type == "cpu")) - fixed
        while rows.most_tokens > max(len(longest), room / per_token):
            rows.most_tokens //= 2  # and no finer: with nearly as much memory a run takes the same steps
        rows.most_tokens = max(len(longest), rows.most_tokens)
    rows.most_tokens = min(trainer.processes.gather(rows.most_tokens))  # all lay a step out, and take their parts
    if device.type == "cpu":
        epoch = islice(rows.plan.steps(), rows.plan.steps_per_epoch)
        most = max(rows.size(step).largest for step in epoch)
        check_fits(
            int(per_token * most) + fixed + held,
            device,
            f"training with {most:,} tokens at once",
            "give --gradient-checkpointing, lower --max-length, or take a larger machine",
        )


def _kept_bytes(trainer: Trainer, ids: list[int]) -> tuple[int, int]:
    """Bytes that a pass over one row keeps, and the tokens of it."""
    batch = lay_out(trainer.loaded, [ids])
    return saved_bytes(trainer.model, lambda: final_states(trainer.loaded, batch)), batch.input_ids.numel()


def ask_untouched(trainer: Trainer, reporter: Reporter) -> None:
    """Have the untouched model give all that the steps need of it: the replay texts, then the reference."""
    write_replay(trainer, reporter)
    find_reference(trainer, reporter)


def write_replay(trainer: Trainer, reporter: Reporter) -> None:
    """Let the untouched model write the replay texts, and plan the steps with them."""
    prepared, wanted = trainer.prepared, trainer.rows.replay_wanted
    if not wanted:
        return
    with reporter.track("replay texts (tokens)", wanted) as advance:
        written = write_texts(
            trainer.loaded,
            prepared.forget,
            prepared.retain,
            tokens=wanted,
            seed=trainer.config.seed,
            processes=trainer.processes,
            progress=advance,
        )
    total = sum(map(len, written))
    if total < FEW_WRITTEN * wanted:
        reporter.warn(
            f"the model has written {total:,} tokens of replay texts where {wanted:,} were wanted: the rest "
            "repeats itself or what it should forget"
        )
    trainer.rows.set_replay(written)


def reference_sides(trainer: Trainer, steps: Iterable[Step] | None = None) -> dict[str, Asked]:
    """What the terms need of the untouched model, of the rows that some steps hold, all steps of the run when None:
    nothing that no term asks for.
    """
    rows, terms, needs = trainer.rows, {term.name for term in trainer.terms}, trainer.loss.needs
    asked: dict[str, list[str]] = {
        "forget": [what for what in ("ref_logps", "ref_states") if what in needs],
        "pairs": ["ref_logps"] if "ref_logps" in needs else [],
        "retain": ["ref_states"] if "kl" in terms else [],
        "replay": ["ref_states"] if "replay" in terms else [],
    }
    return {
        name: Asked({row: rows.sides[name].rows[row] for row in indices}, rows.sides[name].span, asked[name])
        for name, indices in rows.visited(steps).items()
        if asked.get(name)
    }


def find_reference(trainer: Trainer, reporter: Reporter, steps: Iterable[Step] | None = None) -> None:
    """Look with the adapter off at the rows of some steps (when None of all, on `--resume` too: other passes round
    differently), and find the target NLLs.
    """
    loaded, processes, rows = trainer.loaded, trainer.processes, trainer.rows
    sides = reference_sides(trainer, steps)
    with reporter.track("reference", sum(len(side.rows) for side in sides.values())) as advance:
        found = compute_reference(loaded, sides, processes=processes, progress=advance)
    for name, values in found.items():
        rows.sides[name].values |= values
    if "target_nll" in trainer.loss.needs:
        with trainer.model.disable_adapter():
            forget = rows.sides["forget"]
            written = rows.sides["replay"].rows if "replay" in rows.sides else []
            targets = target_values(trainer.prepared, written, processes, reporter)
            forget.values["target_nll"] = dict(enumerate(targets))
            forget.guessed = trainer.config.origin is None
            contexts, forget.ratio = settled(rows.contexts, trainer.prepared, processes, reporter)
        rows.set_contexts(contexts)
