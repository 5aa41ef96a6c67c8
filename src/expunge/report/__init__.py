"""The report: one page that says what was forgotten, what it cost and how sure one can be. Loads no torch.

collect.py     what run directories hold
readings.py    results files as one list of readings
comparison.py  runs of one configuration pooled, methods side by side
verdict.py     three questions answered by stated rules
facts.py       cost, settings, origin, what was not measured
figures.py     the figures; drawing.py their colours and their way into a page
examples.py    texts of the forget set, for internal use and on request alone
page.py        the page; files.py what is written
cards.py       model cards with results; latex.py the scores as a LaTeX table
"""

from expunge.report.cards import write_cards
from expunge.report.files import verdict_sentence, write_report

__all__ = ["verdict_sentence", "write_cards", "write_report"]
