"""The one error that a user's input may raise, and the checks that raise it most."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeVar

Choice = TypeVar("Choice", str, int)


class InputError(ValueError):
    """Bad input. The message is one line: what was got, what was expected, what to do.

    Programs print it without a traceback and exit with code 2; libraries may catch it as ValueError.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


LONGEST_MESSAGE = 1200  # characters


def one_line(message: str) -> str:
    """A message as one line of printable characters: others are escaped, the middle of a very long one is left out."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} … {message[-LONGEST_MESSAGE // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: as Python, CUDA and MPS say it, torch on a CPU, OpenCV."""
    phrases = ("out of memory", "can't allocate memory", "insufficient memory")
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in phrases)


def first_line(error: BaseException, length: int = 200) -> str:
    """The start of an error's message, for use inside a one-line message; its type's name when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


@contextmanager
def needs(what: str, layer: str = "", extra: str = "") -> Iterator[None]:
    """InputError with the command that installs it when an optional package that the body imports is missing.

    what: who needs it. layer: the flag of setup_env.sh that installs it into a checkout's .venv, if one does.
    extra: textregion's extra that has it, if one does.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("textregion", "eval", "utils"):
            raise
        commands = [f"bash setup_env.sh --{layer}"] * bool(layer) + [f"pip install 'textregion[{extra}]'"] * bool(extra)
        raise InputError(f"{what} needs {package}, which is not installed; run: {', or '.join(commands)}") from error


def one_of(name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    """The value if it is one of the choices; InputError naming them otherwise."""
    if value not in choices or isinstance(value, bool):
        raise InputError(f"got {name} {value!r}, expected one of {', '.join(map(str, choices))}")
    return value


def at_least(name: str, value: int, least: int = 1) -> int:
    """The value if it is a whole number of at least `least`; InputError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"got {name} {value!r}, expected a whole number of at least {least}")
    return value


def fraction(name: str, value: Any) -> float:
    """The value if it is a number in 0..1; InputError otherwise."""
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise InputError(f"got {name} {value!r}, expected a number in 0..1")
    return value


def sides(pair: Sequence[int], name: str = "scale") -> tuple[int, int]:
    """The pair as a tuple if it is two whole numbers of at least 1; InputError otherwise."""
    whole = isinstance(pair, Sequence) and all(isinstance(n, Integral) and n >= 1 for n in pair)
    if not whole or len(pair) != 2:
        raise InputError(f"got {name} {pair!r}, expected two whole numbers of at least 1")
    return tuple(pair)
