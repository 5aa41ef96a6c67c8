"""What is left after unlearning: from one pass over the texts to the numbers of a results file.

run.py            `expunge evaluate` and `score`: the whole way, in order
checks.py         what is refused before any weights load
suite.py          what a benchmark asks for: rows, documents, metrics
benchmarks/       SemEval and LUME, TOFU, MUSE, your own files: data layout, metrics, aggregation
passes.py         one teacher-forced pass and one generation pass, by teacher_forcing.py, generate.py, documents.py and
                  gradients.py
measurement.py    what they leave: a number for each row and metric; mismatched.py what chance gives in the same model
metrics/          metrics and membership attacks, each a registered function
estimate.py       a number with its 95 % interval; stats.py and bootstrap.py make them, paired.py those of differences
assemble.py       from measurements to the content of a results file; results.py reads and writes it
values_file.py    the values of every row beside it; predictions.py the texts, where they are asked for
utility.py        tasks of lm-eval
advice.py         what is seen of a model's answers while it is trained
compare.py        results side by side; pool.py over seeds, compare_formats.py as text; tables.py for the terminal
"""
