"""What Python calls: models, tokenizers and texts as objects or names, typed results.

inputs.py        objects in memory, as settings name them
eliciting.py     `elicit`
evaluating.py    `evaluate`, `Evaluation`
finished.py      `merge`, `calibrate`
unlearning.py    `unlearn`, `forecast`, `Outcome`
"""
