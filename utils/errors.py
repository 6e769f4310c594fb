"""The one error that a user's input may raise, and the checks that raise it most."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input. The message is one line: what was got, what was expected, what to do.

    Programs print it without a traceback and exit with code 2; libraries may catch it as ValueError.
    """


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """The value if it is one of the choices; InputError naming them otherwise."""
    if value not in choices:
        raise InputError(f"got {name} {value!r}, expected one of {', '.join(choices)}")
    return value


def at_least(name: str, value: int, least: int = 1) -> int:
    """The value if it is a whole number of at least `least`; InputError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"got {name} {value!r}, expected a whole number of at least {least}")
    return value


def sides(pair: Sequence[int], name: str = "scale") -> tuple[int, int]:
    """The pair as a tuple if it is two whole numbers of at least 1; InputError otherwise."""
    if len(tuple(pair)) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise InputError(f"got {name} {pair!r}, expected two whole numbers of at least 1")
    return tuple(pair)
