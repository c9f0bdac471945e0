"""The tests, which mirror the package; what several of them need is in `tests.helpers`."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
