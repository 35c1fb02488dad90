"""A stored record of what the analysis and the choice find in reference networks, compared exactly by the tests.

A change of the code that should change no result is safe as long as the record holds. Where a result changes on
purpose, `PYTHONPATH=tests:tests/helpers python -m replay --write` stores the new record and prints what is different;
the changed files go into the same commit.
"""
