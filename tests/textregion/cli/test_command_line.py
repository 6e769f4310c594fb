"""Command-line habits: one line, exit code 2, never a traceback."""

import argparse
import io
import signal
import warnings

import pytest

from textregion.cli.command_line import Parser, Sides, boolean, output_folder, positive, run_program
from textregion.errors import InputError


def test_unknown_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        Parser(prog="p").parse_args(["--nope"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nope; see p --help\n"


def test_flags_may_not_be_abbreviated():
    parser = Parser()
    parser.add_argument("--labels")
    with pytest.raises(SystemExit):
        parser.parse_args(["--lab", "x"])


@pytest.mark.parametrize(("text", "value"), [("True", True), ("false", False), ("1", True), ("no", False)])
def test_boolean(text, value):
    assert boolean(text) is value


def test_boolean_refuses_other_words():
    with pytest.raises(argparse.ArgumentTypeError, match="maybe"):
        boolean("maybe")


def test_positive():
    assert positive("17") == 17
    for text in ("0", "-3", "2.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"expected (at least 1|a whole number)"):
            positive(text)


@pytest.mark.parametrize("words", [["2016", "672"], ["2016,672"], ["(2016,", "672)"]])
def test_sides(words):
    parser = Parser()
    parser.add_argument("--scale", nargs="+", action=Sides)
    assert parser.parse_args(["--scale", *words]).scale == (2016, 672)


@pytest.mark.parametrize("words", [["7"], ["7", "x"], ["1", "2", "3"], ["__import__('os')", "1", "2"]])
def test_sides_refuses(words, capsys):
    parser = Parser()
    parser.add_argument("--scale", nargs="+", action=Sides)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--scale", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_run_program_codes(capsys):
    def bad():
        raise InputError("got 3, expected 4")

    def stopped():
        raise KeyboardInterrupt

    assert run_program(lambda: None) == 0
    assert run_program(bad) == 2
    assert capsys.readouterr().err == "error: got 3, expected 4\n"
    assert run_program(stopped) == 130


def test_a_warning_is_one_line(capsys):
    assert run_program(lambda: warnings.warn("the label\nis cut", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: the label is cut\n"


def test_words_that_the_terminal_cannot_show(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", narrow)
    assert run_program(lambda: print("犬 \udc80")) == 0
    narrow.flush()
    assert narrow.buffer.getvalue() == b"\\u72ac \\udc80\n"


def test_an_error_of_the_system_is_one_line(capsys, tmp_path):
    assert run_program(lambda: (tmp_path / ("x" * 300)).write_text("a")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 36] File name too long")
    assert error.count("\n") == 1


def test_a_reader_that_has_left_is_not_told(capsys):
    def body() -> None:
        raise BrokenPipeError

    assert run_program(body) == 2
    assert capsys.readouterr().err == ""


def test_odd_characters_of_arguments_are_escaped(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="p").parse_args(["--nope\n\x1b[31m"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --nope\\n\\x1b[31m; see p --help\n"


def test_impossible_output_folders(tmp_path):
    for name in ("nul\0", "\ud800", "x" * 300, "/dev/null/x"):
        with pytest.raises(InputError, match="cannot write to"):
            output_folder(tmp_path / name)


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one(capsys):
    def body() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise ValueError("could not determine the shape") from interrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_program(body) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped; what was already written is kept\n"


def test_mistakes_of_the_program_are_not_hidden():
    def body() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        run_program(body)
