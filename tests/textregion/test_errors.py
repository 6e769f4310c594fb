"""The one line that says what to install; numbers in 0..1."""

import re

import pytest

from textregion.errors import InputError, fraction, needs


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ({"layer": "web", "extra": "web"}, "bash setup_env.sh --web, or pip install 'textregion[web]'"),
        ({"layer": "eval"}, "bash setup_env.sh --eval"),
        ({"extra": "supervision"}, "pip install 'textregion[supervision]'"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(commands, expected):
    with pytest.raises(InputError) as error, needs("the page", **commands):
        import no_such_package.inside  # noqa: F401
    assert str(error.value) == f"the page needs no_such_package, which is not installed; run: {expected}"


def test_a_module_of_ours_that_is_missing_is_a_bug_not_a_layer():
    with pytest.raises(ModuleNotFoundError, match="textregion"), needs("the page", layer="web"):
        import textregion.no_such_module  # noqa: F401


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), "0.5", None])
def test_a_fraction_is_a_number_in_0_to_1(value):
    assert [fraction("share", good) for good in (0, 0.5, 1)] == [0, 0.5, 1]
    with pytest.raises(InputError, match=re.escape(f"got share {value!r}, expected a number in 0..1")):
        fraction("share", value)
