"""`python -m bench.gpu`: what one CUDA device makes of Expunge, in six minutes; each line is printed once it is known.

Models have random weights in real shapes, made on the device: no file is written, nothing is fetched. Rows have the
lengths of the official splits. The plain side computes the same terms on the same rows with transformers, PEFT and
fused AdamW: padded, `sdpa`, bfloat16, eight rows of like length a pass, the reference by switching the adapter off.
Behind each figure stands the goal, for one H100. `--parts` chooses; `--tiny` runs all of it with tiny models, on the
CPU too.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from bench.machine import clock, matrix_rate, matrix_sizes
from bench.measure import prepared_for
from bench.plain import Batch, Plain
from bench.workload import olmo_config, one_word, random_rows
from expunge.config import UnlearnConfig
from expunge.data.sampler import Step
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.generate import greedy
from expunge.kernels import Head
from expunge.model.captured import Recorder
from expunge.model.device import settle_cuda
from expunge.model.head import cast_head, find_head
from expunge.model.load import LoadedModel
from expunge.model.packing import attention_way, packable_length
from expunge.model.source import Source
from expunge.train.before import ask_untouched, find_reference, write_replay
from expunge.train.schedule import make_plan
from expunge.train.speed import capture, speed_up
from expunge.train.trainer import STEPS_PER_READ, TakenStep, Trainer
from expunge.train.validation import ValidationRows, Validator
from expunge.utils.progress import Reporter

GOALS = {
    "135m step": ">= 60 k tokens/s, <= 35 ms",
    "135m run": "<= 90 s",
    "135m score": "<= 5 s for 532 rows",
    "1b step": ">= 45 % of the matrix rate",
    "7b step": ">= 50 % of the matrix rate",
    "7b run": "<= 4 min",
    "7b recomputed step": "<= 20 GiB",
    "7b nf4 recomputed step": "<= 9 GiB",
    "times plain": ">= 3",
}
PARTS = ("135m", "run", "score", "1b", "7b", "nf4")
TOKENS = {"135m": 2048, "1b": 8192, "7b": 8192}
"""Tokens of a step."""


def shape(name: str, tiny: bool) -> PretrainedConfig:
    """SmolLM2-135M's shape, or OLMo's of 1B or 7B parameters."""
    if name == "135m":
        sizes: dict[str, Any] = {
            "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
            "num_hidden_layers": 30, "vocab_size": 49152, "max_position_embeddings": 8192,
        }  # fmt: skip
        if tiny:
            sizes |= {"hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 128}
        return LlamaConfig(**sizes, tie_word_embeddings=True)
    return olmo_config("olmo-tiny" if tiny else f"olmo-{name}")


class Bench:
    """The parts, each a method that prints its lines.

    Args:
        tiny: Tiny models.
        seconds: Measured training time of each kind.
    """

    def __init__(self, tiny: bool, seconds: float) -> None:
        self.tiny, self.seconds = tiny, seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            settle_cuda()
        self.begun = time.perf_counter()
        self.speeds: dict[tuple[str, str], float] = {}

    def say(self, name: str, text: str, goal: str = "") -> None:
        """One line, at once."""
        wanted = f"   [goal: {GOALS[goal]}]" if goal else ""
        print(f"{time.perf_counter() - self.begun:5.0f} s  {name:<24} {text}{wanted}", flush=True)

    def run(self, parts: list[str]) -> None:
        """All parts; one that fails says so and costs the others nothing."""
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.say("device", f"{card}; torch {torch.__version__}")
        for part in parts:
            try:
                getattr(self, f"part_{part}")()
            except Exception as error:
                self.say(part, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self._free()

    @contextmanager
    def model(self, name: str, *, nf4: bool = False, plain: bool = False) -> Iterator[LoadedModel]:
        """A random model in bfloat16 on the device, for a while."""
        torch.manual_seed(0)
        with torch.device(self.device):
            base = AutoModelForCausalLM.from_config(
                shape(name, self.tiny), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        base.eval().requires_grad_(False)
        if nf4:
            _to_nf4(base)
        head = Head(None) if plain else cast_head(find_head(base)[0], base, torch.bfloat16)
        longest = 0 if plain else packable_length(base, torch.bfloat16)[0]
        loaded = LoadedModel(base, one_word(), head, torch.bfloat16, Source(name, name), packable_length=longest)
        del base
        try:
            yield loaded
        finally:
            del loaded
            self._free()

    def _free(self) -> None:
        """Give back what is not used any more, and begin to look for the peak anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def config(self, name: str, **settings: Any) -> UnlearnConfig:
        """Settings of a run that stays harmless, since speed does not depend on values."""
        fixed = {"learning_rate": 1e-5, "lora_alpha": 16.0, "dtype": "bfloat16", "device": self.device.type}
        tokens = 200 if self.tiny else TOKENS[name]
        given: dict[str, Any] = {"model": "random", "tokens_per_step": tokens, "recipe": "npo", **fixed, **settings}
        return UnlearnConfig(**given)

    def rows(self, loaded: LoadedModel, split: str) -> dict[str, list[TokenizedExample]]:
        """Random rows of the official lengths."""
        sides = random_rows(split, loaded.base.config.vocab_size)
        return {side: rows[: 12 if self.tiny else None] for side, rows in sides.items()}

    def steps(self, name: str, *, split: str, **settings: object) -> None:
        """Training steps: as the layers are, and captured."""
        nf4 = bool(settings.pop("nf4", False))
        title = f"{name}{' nf4' * nf4}{' recomputed' * bool(settings.get('gradient_checkpointing'))}"
        with self.model(name, nf4=nf4) as loaded:
            linear, head = matrix_sizes(loaded)
            rate = matrix_rate(linear + head, torch.bfloat16, self.device)
            self.say(title, f"matrix products at {rate / 1e12:.1f} TFLOP/s; attention: {attention_way(loaded.base)}")
            config = self.config(name, **settings)
            trainer = Trainer(prepared_for(config, loaded, self.rows(loaded, split)))
            ask_untouched(trainer, Reporter(quiet=True))
            flops = [4 * sum(a * b for a, b in sizes) for sizes in (linear, head)]
            for way in ("as they are", "captured"):
                if way == "captured":
                    self.say(title, capture(trainer, Recorder(self.device)))
                    if loaded.captured is None:
                        continue
                self._free()
                tokens, targets, count, seconds = self._time(_Steps(trainer))
                speed = tokens / seconds
                share = (flops[0] * tokens + flops[1] * targets) / rate / seconds
                self.speeds[name, way] = max(speed, self.speeds.get((name, way), 0))
                peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
                text = f"{way}: {speed:,.0f} tokens/s, {1000 * seconds / count:.0f} ms a step, {share:.1%} of the rate"
                self.say(f"{title} step", f"{text}, peak {peak:.1f} GiB", f"{title} step")

    def plain(self, name: str, *, split: str) -> None:
        """The plain side on the same rows."""
        with self.model(name, plain=True) as loaded:
            config, rows = self.config(name), self.rows(loaded, split)
            plain = Plain(loaded, rows["forget"], rows["retain"], config)
            steps = make_plan(config, rows).steps()
            batches = cycle([_batch(rows, step) for step in islice(steps, 60)])

            def step() -> tuple[int, int]:
                batch = next(batches)
                plain.train_step(batch, rows_per_pass=8)
                return sum(len(row) for row, _ in batch), 0

            tokens, _, count, seconds = self._time(step)
            speed = tokens / seconds
            self.say(f"{name} plain", f"{speed:,.0f} tokens/s, {1000 * seconds / count:.0f} ms a step")
            best = max((value for (model, _), value in self.speeds.items() if model == name), default=0.0)
            if best:
                self.say(f"{name}", f"{best / speed:.1f} times plain", "times plain")

    def _time(self, step: Callable[[], tuple[int, int]]) -> tuple[int, int, int, float]:
        """Tokens, targets, steps and seconds of the steps that fit into the time, after three of them.

        The device is waited for at the end alone, as in a run.
        """
        for _ in range(3):
            step()
        tokens = targets = count = 0
        begun, ends = clock(self.device), time.perf_counter() + self.seconds
        while time.perf_counter() < ends:
            done = step()
            tokens, targets, count = tokens + done[0], targets + done[1], count + 1
        return tokens, targets, count, clock(self.device) - begun

    def part_135m(self) -> None:
        """Steps of 2,048 tokens, and the plain side."""
        self.steps("135m", split="validation")
        self.plain("135m", split="validation")

    def part_1b(self) -> None:
        """Steps of 8,192 tokens, and the plain side."""
        self.steps("1b", split="train")
        self.plain("1b", split="train")

    def part_7b(self) -> None:
        """Steps of 8,192 tokens, ten epochs extrapolated, and what layers that are computed again save in memory."""
        self.steps("7b", split="train")
        self.steps("7b", split="train", gradient_checkpointing=True)
        speed = max((value for (model, _), value in self.speeds.items() if model == "7b"), default=0.0)
        lengths = [len(row) for rows in random_rows("train", 1000).values() for row in rows]
        minutes = 10 * sum(lengths) / speed / 60
        self.say("7b, 10 epochs", f"{minutes:.1f} min of the official training split, extrapolated", "7b run")

    def part_nf4(self) -> None:
        """The same on nf4 weights."""
        self.steps("7b", split="train", nf4=True, gradient_checkpointing=True)

    def part_run(self) -> None:
        """A whole `unlearn` by the default recipe: its parts measured, put together."""
        with self.model("135m") as loaded:
            rows = self.rows(loaded, "validation")
            half = len(rows["retain"]) // 8
            unseen, rows["retain"] = rows["retain"][:half], rows["retain"][half:]
            # As many tokens a step as a user's run takes.
            size: dict[str, Any] = {} if self.tiny else {"tokens_per_step": UnlearnConfig.tokens_per_step}
            config = self.config("135m", recipe="default", **size)
            trainer = Trainer(prepared_for(config, loaded, rows, unseen=unseen))
            quiet, spent = Reporter(quiet=True), {}

            def timed(name: str, work: Callable[[], object]) -> None:
                begun = clock(self.device)
                work()
                spent[name] = clock(self.device) - begun

            timed("replay texts", lambda: write_replay(trainer, quiet))
            timed("reference", lambda: find_reference(trainer, quiet))
            validation = ValidationRows.of(rows["forget"][:half], unseen, rows["retain"], rows["forget"])
            validator = Validator(loaded, validation)
            timed("evaluation step", lambda: validator.at(1.0))
            timed("capturing", lambda: self.say("135m run", speed_up(trainer) or "as it is: no CUDA"))
            _, _, count, seconds = self._time(_Steps(trainer))
            every = trainer.rows.evaluation_every(validation)
            taken = trainer.rows.num_steps
            evaluations = taken // every * spent.pop("evaluation step")
            spent |= {"training": taken * seconds / count, "evaluation steps": evaluations}
            parts = ", ".join(f"{name} {value:.1f}" for name, value in spent.items())
            steps = f"{taken} steps of {config.tokens_per_step} tokens, {1000 * seconds / count:.0f} ms each"
            self.say("135m run", f"{sum(spent.values()):.0f} s for {steps} ({parts})", "135m run")

    def part_score(self) -> None:
        """Greedy generation with the gold completions as drafts; random models never stop, so 64 tokens at most."""
        with self.model("135m") as loaded:
            rows = [row for side in self.rows(loaded, "validation").values() for row in side if row.completion_start]
            prompts = [row.input_ids[: row.completion_start] for row in rows]
            drafts = [row.input_ids[row.completion_start :] for row in rows]
            begun = clock(self.device)
            greedy(loaded, prompts, drafts=drafts, max_new_tokens=8 if self.tiny else 64)
            self.say("135m score", f"{clock(self.device) - begun:.1f} s for {len(rows)} rows, 64 tokens", "135m score")


def _batch(rows: dict[str, list[TokenizedExample]], step: Step) -> Batch:
    """The rows of a step as the plain side takes them."""
    return [(rows["forget"][i], True) for i in step.forget] + [(rows["retain"][i], False) for i in step.retain]


class _Steps:
    """The first steps of a run again and again, with their log read as a run reads it.

    A call takes one; it gives its tokens, and those that go through the head.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._taken = trainer, list[TakenStep]()
        self._steps = cycle(islice(trainer.rows.plan.steps(), 60))

    def __call__(self) -> tuple[int, int]:
        trainer, step = self._trainer, next(self._steps)
        self._taken.append(trainer.take_step(step))
        if len(self._taken) >= STEPS_PER_READ[trainer.loaded.device.type]:
            trainer.read(self._taken)
            self._taken.clear()
        seen = trainer.rows.sides_of(step)
        sides = [(seen[name], row) for name, indices in trainer.rows.chosen(step).items() for row in indices]
        rows = [(side.rows[row], side.span) for side, row in sides]
        return sum(len(row) for row, _ in rows), sum(len(row.targets(span)) for row, span in rows)


def _to_nf4(model: torch.nn.Module) -> None:
    """Replace the linear layers but the head by 4-bit ones, one after the other, so that little memory is needed."""
    import bitsandbytes as bnb

    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                quantized = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, bias=layer.bias is not None,
                    compute_dtype=torch.bfloat16, quant_type="nf4", device="meta",
                )  # fmt: skip
                weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                quantized.weight = weight.to(layer.weight.device)
                quantized.bias = layer.bias
                setattr(parent, name, quantized)


def main(argv: list[str] | None = None) -> None:
    """Measure and print.

    Raises:
        SystemExit: There is no CUDA device and `--tiny` is not given.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models in place of the large ones")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=4, help="measured training time of each kind (default 4)")
    args = parser.parse_args(argv)
    if not (args.tiny or torch.cuda.is_available()):
        raise SystemExit("no CUDA device here; --tiny shows on the CPU that the script works")
    Bench(args.tiny, args.seconds).run(args.parts)


if __name__ == "__main__":
    main()
