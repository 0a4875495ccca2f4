"""Claims that hold for every input, tried on many that hypothesis makes up.

The inputs are the same in every run, so a claim fails everywhere or nowhere.
"""

from hypothesis import settings

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)
