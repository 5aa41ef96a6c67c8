"""Speed and memory against a plain implementation of the same method; see docs/performance.md.

workload.py   models and rows to measure on
plain.py      the published algorithm, written plainly
measure.py    one measurement in its own process
machine.py    memory and the rate of matrix products
report.py     tables, on the screen and in docs/performance.md
__main__.py   `python -m bench`: which measurements, in which order; tables
gpu.py        `python -m bench.gpu`: the same on a CUDA machine, at 1B and 7B
metrics.py    `python -m dev.metrics`: the table of metrics; docs/evaluation.md
quality.py    `python -m experiments.quality`: methods, learning rates and ranks over seeds; docs/log.md
parity/       `python -m dev.parity`: our metrics against published numbers; docs/papers.md
records.py    `python -m bench.records`: the cost of all teacher-forced metrics; docs/evaluation.md
taught.py     `python -m experiments.taught`: subjects of other architectures, for experiments.quality
rounding.py   `python -m experiments.rounding`: what comes back at 8 and 4 bits; docs/log.md
subjects.py   `python -m experiments.subjects`: which metrics tell three models apart; docs/evaluation.md
crash.py      `python -m dev.crash`: runs killed at random moments and gone on with; docs/reliability.md
fuzz.py       `python -m dev.fuzz`: damaged files for the readers
processes.py  `python -m bench.processes`: one, two and three processes under a launcher; docs/scaling.md
"""
