"""Speed and memory against a plain implementation of the same method; see docs/performance.md.

workload.py   models and rows to measure on
plain.py      the published algorithm, written plainly
measure.py    one measurement in its own process
machine.py    memory and the rate of matrix products
report.py     tables, on the screen and in docs/performance.md
__main__.py   `python -m bench`: which measurements, in which order; tables
gpu.py        `python -m bench.gpu`: the same on a CUDA machine, at 1B and 7B
records.py    `python -m bench.records`: the cost of all teacher-forced metrics; docs/evaluation.md
processes.py  `python -m bench.processes`: one, two and three processes under a launcher; docs/scaling.md
"""
