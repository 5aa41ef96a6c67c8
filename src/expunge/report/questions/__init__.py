"""The four questions of the verdict, each answered from numbers by the one set of criteria.

said.py    Is it still said?
told.py    Can one tell that it was trained on?
rest.py    Is the rest kept?
speech.py  Does it still speak well?

A number is judged where a target is known: that of a retrained model, else the one that the results name, else what
unseen texts give, else that of the checkpoint from before; a count of rows that are said word for word has the target
0. A number without any target is shown and not judged. What is good by too few texts to show it is unclear.
"""

from expunge.report.questions.rest import rest_kept
from expunge.report.questions.said import still_said
from expunge.report.questions.speech import speaks_well
from expunge.report.questions.told import recognisable

__all__ = ["recognisable", "rest_kept", "speaks_well", "still_said"]
