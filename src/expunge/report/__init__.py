"""The report: one page that says what was forgotten, what it cost and how sure one can be. Loads no torch.

run_data.py      what a run directory holds; results of anything else are left out
scores.py        results files as one list of scores
questions/       the four questions, answered by the criteria (answers.py); judge.py what follows from them
groups.py        runs of one configuration pooled, methods side by side
details.py       cost, method, origin, what was not measured
figures.py       figures of scores; curves.py of the course of training; drawing.py their way into a page
forget_texts.py  texts of the forget set, for internal use and on request alone
page.py          the page
write.py         what is written: page, figures, model cards
"""

from expunge.report.judge import Verdict, verdict, write_verdict
from expunge.report.write import write_cards, write_report

__all__ = ["Verdict", "verdict", "write_cards", "write_report", "write_verdict"]
