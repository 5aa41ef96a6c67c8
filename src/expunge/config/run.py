"""The settings of where a run computes and what it writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from expunge.config.checks import COUNT, SEED, Check, exclusive


@dataclass(kw_only=True)
class DeviceConfig:
    """Where and how it is computed.

    Attributes:
        dtype: `auto` (bfloat16 autocast where the device is fast at it, else float32), `float32`, `bfloat16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        compile: `auto` captures the passes of the layers as graphs on CUDA where that is faster; `off` does not.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        load_in_4bit: Keep the base weights in 4 bits (CUDA, `expunge[4bit]`).
        shard_base: Let each process of the run hold its part of the base's layers alone: less memory, more traffic.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    compile: Literal["auto", "off"] = "auto"
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    shard_base: bool = False


@dataclass(kw_only=True)
class RunConfig:
    """The model, the run directory and what is written.

    Attributes:
        model: Folder, GGUF file or Hub name of the model, or the run directory of an earlier request, on top of which
            this one goes; another PEFT adapter folder is folded into its base first.
        revision: Branch, tag or commit of a name on the Hub; of the base where `model` is an adapter's folder.
        output: Run directory to write.
        title: What was asked, for the head of the report; it is kept in the run.
        recipe: Preset over all settings: `default`, `npo` or `paper`.
        seed: Seed of the adapter's initialisation, of the order of the data and of the replay texts.
        save_every: Optimizer steps between checkpoints; with 0 there is one at the end alone. None: 100, and 1,000 on
            CUDA with less than a billion parameters, whose steps are fast.
        report_to: Trackers (`tensorboard`, `wandb`), separated by commas.
        push_to_hub: Repository on the Hub (`owner/name`) that gets the finished adapter and its card, private unless
            `public`. Refused before training where nobody is logged in.
        public: Make the repository of `push_to_hub` one that everybody can read.
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace an earlier run in `output`.
        resume: Go on from the last checkpoint in `output`; on the command line, with the settings that it was started
            with.
        finish: With `resume`: take no more steps, keep the best state so far and finish the run with it.
        from_manifest: Repeat the run of this manifest.json: its settings, model and data (paths may have moved).
        dry_run: Time a few steps, say what the run would take, and write nothing.
    """

    model: str
    revision: str | None = None
    output: str = ""
    title: str | None = None
    recipe: str = "default"
    seed: int = 0
    save_every: int | None = None
    report_to: str | None = None
    push_to_hub: str | None = None
    public: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False
    resume: bool = False
    finish: bool = False
    from_manifest: str | None = None
    dry_run: bool = False

    def run_checks(self) -> Iterator[Check]:
        """What a run needs, and flags that contradict each other."""
        yield bool(self.model), "--model is missing: give a folder or a Hub name"
        yield bool(self.output), "--output is missing: give the run directory to write"
        yield from COUNT.of(self, "save_every")
        yield from SEED.of(self, "seed")
        yield not self.public or self.push_to_hub is not None, "--public is for --push-to-hub: give the repository"
        yield from exclusive(self, ("overwrite", "resume"), ("from_manifest", "resume"), ("dry_run", "resume"))
        yield self.resume or not self.finish, "--finish ends a run that was interrupted: give --resume, too"
