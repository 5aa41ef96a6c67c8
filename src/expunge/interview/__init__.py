"""What a model knows of a name, found by asking it: texts to forget that nobody had to write.

questions.py   what is asked, of whom else, and the user's own questions
facts.py       from many answers to one question to the fact that they agree on
run.py         asking, resuming, writing
"""
