"""What a case is, how one is run and judged."""

import hashlib
import io
import re
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from textregion.cli.program import main
from textregion.errors import InputError
from textregion.segmenter import TextRegionSegmenter

WORKS, REFUSED, STOPPED, SKIPPED, FAILURE = OUTCOMES = ("works", "refused", "stopped", "skipped", "FAILURE")
EITHER = (WORKS, REFUSED)
OUTPUT, EARLIER = "{output}", "{earlier}"  # in a command line: the case's own folder, the folder of an earlier run
FAST = ("--preset", "tiny", "--masks", "slic", "--resize_method", "resize", "--device", "cpu")
LONGEST_LINE = 1500  # characters of a clear line
PATIENCE, SLOW_PATIENCE = 120, 1800  # seconds until a case counts as hanging
CURSOR = re.compile(r"\x1b\[A")  # how a progress bar moves up
PASSING_LINES = re.compile(r"(note|warning|skipped): |[\w ]+:\s+\d+%\||\d+ of \d+ images dealt with")


class SkippedError(Exception):
    """The case cannot be tried on this machine; the message says why."""


class HangError(BaseException):
    """No answer in time. No Exception, so that nothing catches it."""


@dataclass(frozen=True)
class Case:
    """One input.

    kind: the row of the table. name: unique, names the case for --only. arguments: of the program, or call: a use of
    the API, given a segmenter. expected: the outcomes that are right. around: what holds while it runs (a full disk).
    slow: only when asked for.
    finished: label maps that must be there afterwards.
    """

    kind: str
    name: str
    arguments: tuple[str, ...] | None = None
    call: Callable[[TextRegionSegmenter], object] | None = None
    expected: tuple[str, ...] = EITHER
    around: Callable[[], AbstractContextManager] = nullcontext
    slow: bool = False
    finished: int = 0


@dataclass(frozen=True)
class Result:
    """What became of a case. message: the clear line, or what is wrong. command: what runs it again."""

    kind: str
    name: str
    outcome: str
    message: str
    seconds: float
    command: tuple[str, ...] = field(default=())


class Judge:
    """Runs cases one after the other in a folder of its own, in which the results of an earlier run lie.

    folder: holds inputs/, and output/ with one folder per case, of which only failing ones stay.
    """

    def __init__(self, folder: Path, earlier: tuple[str, ...]) -> None:
        self.folder = folder
        self.earlier = folder / "output" / "earlier"
        self.segmenter = TextRegionSegmenter.from_preset(
            "tiny", mask_generator="slic", resize_method="resize", device="cpu"
        )
        code, _, error = run_program([*earlier, "--output", str(self.earlier)])
        if code != 0:
            raise RuntimeError(f"the run whose results must survive failed: {error}")
        self.digests = digests(self.earlier)

    def judge(self, case: Case) -> Result:
        """Run a case; an outcome that is not among the expected ones is a failure, so is damage to earlier results."""
        output = self.folder / "output" / re.sub(r"\W+", "_", case.name)[:60]
        words = (word.replace(OUTPUT, str(output)) for word in case.arguments or ())
        command = tuple(word.replace(EARLIER, str(self.earlier)) for word in words)
        start = time.perf_counter()
        try:
            with patience(SLOW_PATIENCE if case.slow else PATIENCE):
                outcome, message = self._answer(case, command)
        except SkippedError as reason:
            outcome, message = SKIPPED, str(reason)
        except HangError:
            outcome, message = FAILURE, "no answer, it hangs"
        if outcome not in (*case.expected, SKIPPED, FAILURE):
            outcome, message = FAILURE, f"got {outcome}, expected {' or '.join(case.expected)}: {message}"
        if len(list(output.rglob("labels.png"))) < case.finished:
            outcome, message = FAILURE, f"fewer than {case.finished} images were finished; {message}"
        if damaged := damaged_files(output):
            outcome, message = FAILURE, f"damaged files: {damaged}; {message}"
        if digests(self.earlier) != self.digests:
            outcome, message = FAILURE, f"the earlier results changed; {message}"
            self.digests = digests(self.earlier)
        if outcome != FAILURE:
            shutil.rmtree(output, ignore_errors=True)
        return Result(case.kind, case.name, outcome, message, time.perf_counter() - start, command)

    def _answer(self, case: Case, command: tuple[str, ...]) -> tuple[str, str]:
        if case.call is None:
            return run(command, case.around)
        return call(case.call, case.around, self.segmenter)


def run(command: tuple[str, ...], around: Callable[[], AbstractContextManager]) -> tuple[str, str]:
    """The program in this process: its exit code and its lines."""
    try:
        with around():
            code, _, error = run_program(list(command))
    except SkippedError:
        raise
    except (Exception, KeyboardInterrupt) as unexpected:  # noqa: BLE001 (any exception at all is the finding)
        return FAILURE, "".join(traceback.format_exception(unexpected))
    return judge_lines(code, error)


def run_program(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of `python TextRegionSegmenter.py …` as a terminal in UTF-8 would get them."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    error = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with redirect_stdout(out), redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in (out, error):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8"))
    return code, *texts


def judge_lines(code: object, error: str) -> tuple[str, str]:
    """(outcome, message) from an exit code and what was written to stderr."""
    lines = [line for line in CURSOR.sub("", error).replace("\r", "\n").split("\n") if line.strip()]
    told = [line for line in lines if not PASSING_LINES.match(line)]
    if code == 0 and not told:
        return WORKS, ""
    if code == 130 and len(told) == 1 and told[0].startswith("stopped"):
        return STOPPED, told[0]
    left_out = "images could not be labelled" in error  # some (code 1, the others were) or all
    one_line = len(told) == 1 and told[0].startswith("error: ") and lines[-1] == told[0]
    if one_line and (code == 2 or (code == 1 and left_out)):
        return clear_line(told[0].removeprefix("error: "))
    return FAILURE, f"exit code {code}, {len(told)} lines: {error[-2000:]}"


def clear_line(message: str) -> tuple[str, str]:
    """Refused, if the message can be read: one line, not endless, without control characters."""
    readable = 8 < len(message) <= LONGEST_LINE and message.replace("\t", " ").isprintable()
    return (REFUSED, message) if readable else (FAILURE, f"not a clear line: {message[:2000]!r}")


def call(
    use: Callable, around: Callable[[], AbstractContextManager], segmenter: TextRegionSegmenter
) -> tuple[str, str]:
    """A use of the API: its result, an InputError with a clear line, or a failure."""
    try:
        with warnings.catch_warnings(), around():
            warnings.simplefilter("ignore")
            use(segmenter)
    except InputError as error:
        return clear_line(str(error))
    except SkippedError:
        raise
    except Exception as unexpected:  # noqa: BLE001 (any exception at all is the finding)
        return FAILURE, "".join(traceback.format_exception(unexpected))
    return WORKS, ""


def damaged_files(folder: Path) -> list[str]:
    """Files below a folder that are empty, half written, or left over from writing."""
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and not whole(path)]


def whole(path: Path) -> bool:
    """Whether a file is no temporary one, not empty, and if a picture, of a sane size and readable."""
    if path.name.startswith(".") or path.stat().st_size == 0:
        return False
    if path.suffix == ".png":
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False
    return True


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by its path in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raise HangError in the main thread when the body takes longer (where there are alarm signals)."""

    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
