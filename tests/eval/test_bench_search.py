"""bench search: a small table of made-up regions, written and searched as a large one is."""

import json

from eval.bench.search import A_IMAGE, Tokens, made_up, main


def test_all_rows_find_all_neighbours(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["--rows", "1009", "--width", "17", "--clusters", "7", "--queries", "5", "--json", str(path)]) == 0
    told = json.loads(path.read_text())
    (row,) = told["latencies"]
    assert (row["name"], row["effort"], row["recall"]) == ("all rows", None, 1.0)
    assert [stage["name"] for stage in told["stages"]] == ["write", "truth", "index"]
    assert "no index: 1009 regions are searched exactly" in told["stages"][-1]["what"]
    assert "measured on CPU" in capsys.readouterr().out


def test_regions_are_numbered_as_their_rows():
    tokens = Tokens(3, 5).draw(61, 0)
    images = list(made_up(tokens, 40))
    assert [len(image) for image in images] == [A_IMAGE, A_IMAGE, 11]
    assert images[1].image.endswith("/00000041.jpg")
    assert (images[1].rows["token"][4] == tokens[A_IMAGE + 4]).all()
