"""Command-line habits: one line, exit code 2, never a traceback."""

import argparse
import io
import re
import signal
import warnings

import pytest

from textregion.cli.command_line import (
    NEGATIVE_NUMBER,
    Parser,
    Sides,
    boolean,
    output_folder,
    positive,
    run_program,
    spelled,
)
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


NEGATIVE = ["-0.5,0,50,50", "-1", "-.5", "-1e-3", "-3,-2,-1,0", "-inf", "-0"]


@pytest.mark.parametrize("word", NEGATIVE)
def test_a_negative_number_is_a_value_and_no_flag(word):
    parser = Parser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--one")
    group = parser.add_argument_group("more")
    group.add_argument("--boxes", nargs="+")
    group.add_argument("-l", "--labels", nargs="+")
    parsed = parser.parse_args([word, "--one", word, "--boxes", "1,2,3,4", word, "-l", word, "b"])
    assert (parsed.words, parsed.one, parsed.boxes, parsed.labels) == ([word], word, ["1,2,3,4", word], [word, "b"])
    assert parser.parse_args([f"--one={word}"]).one == word


@pytest.mark.parametrize("word", ["--", "-x", "--nan", "-i", "-d5", "-"])
def test_other_words_with_a_dash_are_no_numbers(word):
    assert not NEGATIVE_NUMBER.match(word)


@pytest.fixture
def both_spellings() -> Parser:
    """A parser whose flags are declared in both ways, alone and in a group."""
    parser = Parser(prog="p", usage="p")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--work-dir", default="x")
    parser.add_argument("--labels_file", "-f")
    parser.add_argument_group("more", "of them").add_argument("--mask-cache", action="store_true")
    return parser


@pytest.mark.parametrize("flag", ["--work-dir", "--work_dir"])
@pytest.mark.parametrize("joined", [True, False])
def test_both_spellings_are_taken(both_spellings, flag, joined):
    words = [f"{flag}=a-b_c"] if joined else [flag, "a-b_c"]
    assert both_spellings.parse_args(words).work_dir == "a-b_c"
    assert both_spellings.parse_args(["--mask-cache"]) == both_spellings.parse_args(["--mask_cache"])
    assert both_spellings.parse_args(["--labels-file", "y"]).labels_file == "y"


def test_the_help_and_the_errors_show_one_spelling(both_spellings, capsys):
    text = both_spellings.format_help()
    assert set(re.findall(r"--\w[\w-]*", text)) == {"--help", "--work_dir", "--labels_file", "--mask_cache"}
    with pytest.raises(SystemExit):
        both_spellings.parse_args(["--work-dir"])
    assert capsys.readouterr().err == "error: argument --work_dir: expected one argument; see p --help\n"


def test_what_follows_two_dashes_is_taken_as_it_is(both_spellings):
    assert both_spellings.parse_args(["--work-dir", "a", "--", "--b-c", "d-e"]).files == ["--b-c", "d-e"]


@pytest.mark.parametrize(("word", "flag"), [("--work-dirs=3", "--work_dir"), ("--lables-file", "--labels_file")])
def test_an_unknown_flag_names_the_one_that_is_meant(both_spellings, capsys, word, flag):
    with pytest.raises(SystemExit) as stop:
        both_spellings.parse_args([word])
    assert stop.value.code == 2
    end = f"; did you mean {flag}?; see p --help\n"
    assert capsys.readouterr().err == f"error: unrecognized arguments: {spelled(word)}{end}"
