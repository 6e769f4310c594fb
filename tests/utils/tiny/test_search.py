"""The program that measures region search on drawn scenes; what it finds is bounded in tests/textregion/index."""

from utils.tiny.search import WORDS, main


def test_the_program_draws_indexes_and_goes_on_from_there(tmp_path, capsys):
    run = ["--scenes", "2", "--output", str(tmp_path)]
    assert main(run) == 0
    first = capsys.readouterr().out.splitlines()
    assert len(first) == len(WORDS) + 2  # header, and what the scenes were
    assert "2 drawn scenes (2 images encoded" in first[-1]
    assert main([*run, "--markdown"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert "0 images encoded, 0 regions" in again[-1]
    assert "2 unchanged" in again[-1]
    assert again[0].startswith("| words")
