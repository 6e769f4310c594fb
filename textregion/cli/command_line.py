"""What every program of the project does alike: one-line errors, exit codes, argument types."""

import argparse
import io
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from textregion.errors import InputError, first_line, one_line, out_of_memory

NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)  # how a value begins that is no flag


def spelled(flag: str) -> str:
    """The one spelling of a flag, `--work_dir` for `--work-dir` too; anything else as it is."""
    name, equals, value = flag.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else flag


class Group(argparse._ArgumentGroup):
    """A group of flags; each is shown in its one spelling."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse."""
        return super().add_argument(*map(spelled, names), **options)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line; flags are not abbreviated, "-" and "_" within them are the same.

    Help and errors show them with "_". A word that begins with a negative number ("-0.5,0,50,50") is a value, no flag.
    """

    def __init__(self, **options) -> None:
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(**options)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """As argparse."""
        return super().add_argument(*map(spelled, names), **options)

    def add_argument_group(self, *names: str, **options: Any) -> Group:
        """As argparse."""
        self._action_groups.append(group := Group(self, *names, **options))
        return group

    def parse_known_args(self, args=None, namespace=None):
        """As argparse, but a flag may be written with "-" for "_"; what follows a bare "--" is no flag."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(spelled, words[:end]), *words[end:]], namespace)

    def parse_args(self, args=None, namespace=None):
        """As argparse; of an unknown flag the most similar known one is named."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
            similar = get_close_matches(flag, self._option_string_actions, 1) if flag else []
            meant = f"; did you mean {similar[0]}?" if similar else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return options

    def error(self, message: str) -> None:
        """Print one line to stderr and exit with code 2."""
        self.exit(2, f"error: {one_line(message)}; see {self.prog} --help\n")


def run_program(body: Callable[[], int | None], how_to_go_on: str = "", tells: bool = True) -> int:
    """Run a program's body; returns its exit code.

    0: all that was asked for is done; 1, returned by the body: done, but for something that is bad or missing; 2, after
    one line: bad input, nothing could be done; 130: stopped by Ctrl-C. TEXTREGION_DEBUG=1 shows tracebacks as well.
    how_to_go_on: what to do after a stop. tells: whether this process prints, of several that meet the same error.
    An OSError that nothing else explains (full disk, forbidden or impossible path) and running out of memory are bad
    input too. Warnings become one line each. What the terminal's encoding lacks is printed with backslashes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _interrupts() as came:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                code = body() or 0
                sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has left, as `| head` does: nobody is there to be told
            _give_up_stdout()
            return 2
        except KeyboardInterrupt:
            return _stopped(how_to_go_on if tells else None)
        except Exception as error:
            if came:  # a library in C has made an error of its own out of Ctrl-C
                return _stopped(how_to_go_on if tells else None)
            if (line := _explained(error)) is None:
                raise
            if os.environ.get("TEXTREGION_DEBUG") == "1":
                traceback.print_exc()
            if tells:
                print(f"error: {line}", file=sys.stderr)
            return 2
    return code


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals of Ctrl-C that came so far; each also raises KeyboardInterrupt, as it does anyway."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield came
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _explained(error: Exception) -> str | None:
    """The line for an error that users can do something about; None for a mistake in the program."""
    if isinstance(error, InputError):
        return str(error)
    if out_of_memory(error):
        return f"out of memory ({first_line(error)}); ask for less at once"
    if isinstance(error, OSError):
        _give_up_stdout()
        is_of_a_file = error.errno is not None  # a shared library that is missing, say, has none
        return one_line(str(error)) + "; check the path, its permissions and the free space" * is_of_a_file
    return None


def _stopped(how_to_go_on: str | None) -> int:
    if how_to_go_on is not None:
        print("; ".join(filter(None, ["stopped", "what was already written is kept", how_to_go_on])), file=sys.stderr)
    return 130


def _give_up_stdout() -> None:
    """Where nothing can be printed any more, send the rest nowhere, so that Python does not try again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(io.UnsupportedOperation, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: object) -> None:
    """A warning as one line, without the place in the code that gave it."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def boolean(text: str) -> bool:
    """Argument type: true or false in the usual spellings."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"got {text!r}, expected True or False")


BOOLEAN = {"type": boolean, "nargs": "?", "const": True, "metavar": "BOOL"}  # a flag that may stand alone for True


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number


class Sides(argparse.Action):
    """Two whole numbers, as `2016 672`, `2016,672` or `(2016, 672)`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Store a (int, int) tuple or stop with one line."""
        words = " ".join(values)
        numbers = re.findall(r"\d+", words)
        if len(numbers) != 2 or re.sub(r"[\d\s,()\[\]x]", "", words):
            parser.error(f"got {option_string} {words}, expected two whole numbers such as 2016 672")
        setattr(namespace, self.dest, tuple(int(n) for n in numbers))


def output_folder(path: str | Path, flag: str = "--output") -> Path:
    """The folder for results, made and checked before any long work. InputError when it cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ValueError) as error:  # ValueError: no path at all, it holds a NUL
        raise InputError(f"cannot write to {folder} ({error}); choose another {flag}") from error
