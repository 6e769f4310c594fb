"""The table of a batch on the screen and in files."""

import csv
import io

from textregion.cli.summary import MOST_ROWS, Row, csv_text, markdown, print_table, totals, write_summary

DONE = Row("a|b.png", "out/a|b", "done", 20, 10, 3, "дом 60%, sky 40%", 1.234)
FAILED = Row("bad.png", "out/bad", "failed", message='bad.png is, "truly", no image')


def test_rows_tell_what_run_json_holds():
    run = {"width": 5, "height": 7, "regions": 2, "shares": [["a", 0.5], ["b", 0.3], ["c", 0.1], ["d", 0.1]]}
    row = Row.of_run("x.png", "out/x", "resumed", {**run, "kept": "out/x.old-1"}, 0.1)
    assert (row.width, row.height, row.regions, row.labels) == (5, 7, 2, "a 50%, b 30%, c 10%")
    assert row.line() == (
        "x.png: 2 regions -> out/x (resumed; a 50%, b 30%, c 10%; 0.10 s; an earlier run is kept as out/x.old-1)"
    )
    assert FAILED.line() == 'skipped: bad.png is, "truly", no image'


def test_totals_and_files():
    assert totals([DONE, FAILED, DONE]) == "3 images: 2 done, 1 failed; 2.5 s"
    rows = list(csv.DictReader(io.StringIO(csv_text([DONE, FAILED]))))
    assert (rows[0]["image"], rows[0]["labels"], rows[0]["seconds"]) == ("a|b.png", "дом 60%, sky 40%", "1.23")
    assert rows[1]["message"] == FAILED.message
    lines = markdown([DONE, FAILED]).splitlines()
    assert lines[2] == "| a\\|b.png | 20 x 10 | 3 | дом 60%, sky 40% | 1.23 s | done |  |"
    assert lines[-1] == "2 images: 1 done, 1 failed; 1.2 s"


def test_screen_table_is_aligned_and_bounded(capsys):
    print_table([DONE, FAILED])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].index("status") == lines[2].index("done") == lines[3].index("failed")
    print_table([DONE] * MOST_ROWS + [FAILED, Row("long/" * 40 + "name.png", "x", "done", 1, 1)])
    out = capsys.readouterr().out
    assert "bad.png" in out
    assert "a|b.png" not in out
    assert f"({MOST_ROWS + 1} more rows)" in out
    assert max(map(len, out.splitlines())) < 200


def test_a_summary_of_other_images_is_kept(tmp_path, capsys):
    write_summary(tmp_path, [DONE, FAILED])
    first = (tmp_path / "summary.csv").read_bytes()
    write_summary(tmp_path, [FAILED, DONE, Row("c.png", "out/c", "done")])
    assert not list(tmp_path.glob("*.old-*"))
    second = (tmp_path / "summary.csv").read_bytes()
    assert second != first
    write_summary(tmp_path, [DONE])
    assert (tmp_path / "summary.csv.old-1").read_bytes() == second
    assert "an earlier summary of other images is kept as" in capsys.readouterr().out
    (tmp_path / "summary.csv").write_bytes(b"\xff mine")
    write_summary(tmp_path, [DONE])
    assert (tmp_path / "summary.csv.old-2").read_bytes() == b"\xff mine"
