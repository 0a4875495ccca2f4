"""The remote tier."""

import pytest

pytest.register_assert_rewrite("tests.cache.remote.faults")
