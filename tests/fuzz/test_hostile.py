"""A few hostile files for each reader; the program `python -m tests.fuzz.hostile` has the limits and the full size."""

import warnings

import pytest

from tests.fuzz.case import FAILURE, WORKS
from tests.fuzz.hostile import _read, hostile_file, main, parse_arguments
from tests.fuzz.readers import READERS, Reader

FILES = 6
REFUSED_WHOLE = ("checksums", "models of transformers")  # without the files they list, with weights of another
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_hostile_files_end_in_one_clear_line_and_whole_ones_are_read(reader, tmp_path):
    seeds = reader.seeds()
    paths = [written(tmp_path / f"whole {number}", name, data) for number, (name, data, _) in enumerate(seeds)]
    answers = [_read(reader, path) for path in paths]
    assert WORKS in dict(answers) or reader.name in REFUSED_WHOLE, answers
    for number in range(FILES):
        path = written(tmp_path / str(number), *hostile_file(reader, seeds, 0, number))
        outcome, message = _read(reader, path)
        assert outcome != FAILURE, f"--only {reader.name!r} --number {number}: {message}"


def written(folder, name, data):
    folder.mkdir()
    (folder / name).write_bytes(data)
    return folder / name


def test_what_ends_badly_is_found(tmp_path):
    def fails(path):
        warnings.warn("not this", stacklevel=1)
        return {}["a"]

    def asks(path):
        return bytearray(2**62)

    for read in (fails, asks):
        assert _read(Reader("x", list, read), tmp_path)[0] == FAILURE


def test_unknown_reader_is_one_line(capsys):
    assert main(["--only", "no such reader"]) == 2
    assert capsys.readouterr().err.startswith("error: got --only 'no such reader'")
    assert parse_arguments([]).files == 500
