"""Named presets over the settings of a run: what differs from the defaults of `UnlearnConfig`.

`default` (docs/method.md) takes the target NLL of forgotten texts from unseen ones and stops by them; without any,
texts that the model writes stand for them. `npo` pushes by NPO for a set number of epochs. `paper` is arXiv 2503.13690
as it describes itself, with the exact KL.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "npo": {
        "loss": "npo",
        "retain_weight": 1.0,
        "kl_weight": 1.5,
        "replay_weight": 0.0,
        "context_tokens": 0,
        "epochs": 14,
        "schedule": "cosine",
        "warmup": 0.05,
        "ema_steps": 0,
        "eval_every": 0,
    },
    "paper": {
        "loss": "npo",
        "loss_args": "beta=0.5,level=token",
        "retain_weight": 1.0,
        "kl_weight": 0.5,
        "replay_weight": 0.0,
        "context_tokens": 0,
        "retain_test": 0.0,
        "forget_span": "completion",
        "kl_span": "completion",
        "lora_rank": 5,
        "target_modules": "auto",
        "epochs": 20,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "max_grad_norm": 0.0,
        "ema_steps": 0,
        "rows_per_step": 4,
        "eval_every": 0,
        "dtype": "float32",
    },
}
"""Name -> settings."""
RENAMED_RECIPES = {
    "steered": "--recipe default, which takes target NLLs from unseen texts",
    "paper-code": "--recipe paper, with the exact KL",
}
"""Recipes of the first version -> what is written now."""
