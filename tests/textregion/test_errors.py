"""The one line that says what to install."""

import pytest

from textregion.errors import InputError, needs


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
