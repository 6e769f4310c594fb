"""Which images, which labels: folders, globs, duplicates, label files, YAML."""

from pathlib import Path

import pytest

from textregion.cli.arguments import parse_arguments
from textregion.cli.jobs import find_images, find_query, gather_jobs, read_labels_file, read_query_cfg
from textregion.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.webp", "notes.txt", ".hidden.png", "x[1].png"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.png").touch()
    return tmp_path


def names(paths) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_is_its_images_sorted(folder, capsys):
    assert names(find_images([str(folder)])) == ["a.jpg", "b.PNG", "c.webp", "x[1].png"]
    assert capsys.readouterr().out == f"{folder}: 4 images, 1 other file passed over\n"


def test_globs_files_and_duplicates(folder, capsys):
    assert names(find_images([f"{folder}/*.png"])) == ["x[1].png"]
    assert names(find_images([f"{folder}/**/*.[pj]*g"])) == ["a.jpg", "d.png", "x[1].png"]
    assert names(find_images([f"{folder}/x[1].png"])) == ["x[1].png"]
    capsys.readouterr()
    assert names(find_images([f"{folder}/c.webp", f"{folder}/sub/../a.jpg", str(folder)]))[:2] == ["c.webp", "a.jpg"]
    assert "2 images named more than once: labelled once\n" in capsys.readouterr().out
    assert names(find_images(["absent.png", "notes.txt"])) == ["absent.png", "notes.txt"]


def test_results_are_no_images_to_label(folder):
    (folder / "sub" / "run.json").touch()
    assert names(find_images([f"{folder}/**/*.png"])) == ["x[1].png"]
    with pytest.raises(InputError, match="no image in"):
        find_images([str(folder / "sub")])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_labels_file(tmp_path, mark):
    path = tmp_path / "labels.txt"
    path.write_bytes(f"{mark}# furniture\r\nsofa; couch\r\n\r\n  дерево \n# x\nC# code\n".encode())
    assert read_labels_file(path) == ["sofa; couch", "дерево", "C# code"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n# x\n", "holds no label"), (b"\xff\xfe\x00", "not UTF-8 text"), (None, "no file")]
)
def test_bad_labels_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_labels_file(path)
    assert "\n" not in str(error.value)


def test_query_file_by_name_and_its_errors(tmp_path):
    path = tmp_path / "q.yaml"
    path.write_text("\ufeffa/x.png: [dog]\nb/y.png: [cat, sofa]\n", encoding="utf-8")
    queries = read_query_cfg(path)
    assert find_query(queries, tmp_path / "elsewhere" / "y.png") == ["cat", "sofa"]
    with pytest.raises(InputError, match="0 entries"):
        find_query(queries, tmp_path / "z.png")
    for text, message in (
        ("[1, 2", "not valid YAML"),
        ("[" * 600 + "]" * 600, "not valid YAML"),
        ("2020-99-99: [a]", "not valid YAML"),
        ("just words", "expected a mapping"),
        ("a.png: 3", "expected a l"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_query_cfg(path)
    with pytest.raises(InputError, match="no file"):
        read_query_cfg(tmp_path / "absent.yaml")


def test_jobs_from_image_list_and_labels():
    jobs = gather_jobs(parse_arguments(["--image", "a.png", "--image_list", "b.png", "--labels", "x", "y"]))
    assert [(job.image.name, job.labels) for job in jobs] == [("a.png", ("x", "y")), ("b.png", ("x", "y"))]


def test_jobs_of_a_folder_with_a_labels_file(folder):
    (folder / "notes.txt").write_text("dog\nsky\n")
    jobs = gather_jobs(parse_arguments(["--image", str(folder), "--labels_file", str(folder / "notes.txt")]))
    assert [job.image for job in jobs] == [folder / name for name in ("a.jpg", "b.PNG", "c.webp", "x[1].png")]
    assert {job.labels for job in jobs} == {("dog", "sky")}


def labels_of(*arguments: object) -> list[tuple[str, ...]]:
    return [job.labels for job in gather_jobs(parse_arguments([str(argument) for argument in arguments]))]


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["red star, sky"], ("red star", "sky")),
        (["red", "star,", "sky,grass"], ("red", "star", "sky", "grass")),
        (['"red, round star"', "sky"], ("red, round star", "sky")),
        (["sofa;couch, sky"], ("sofa; couch", "sky")),
    ],
)
def test_labels_on_the_command_line_are_split_at_commas(words, labels):
    assert labels_of("--image", "a.png", "--labels", *words) == [labels]


@pytest.mark.parametrize("words", [["", "sky"], ["sky", " , "], ["sky", ";"]])
def test_a_blank_label_is_one_line(words):
    with pytest.raises(InputError, match="expected words or phrases"):
        labels_of("--image", "a.png", "--labels", *words)


def test_a_line_of_a_file_is_one_label(tmp_path):
    (tmp_path / "labels.txt").write_text("red, round star\nsky\n")
    assert labels_of("--image", "a.png", "--labels_file", tmp_path / "labels.txt") == [("red, round star", "sky")]


def test_a_text_in_a_query_file_is_split_and_a_list_taken_as_it_stands(tmp_path):
    path = tmp_path / "q.yaml"
    path.write_text("a.png: '\"red, round star\", sky'\nb.png: ['red star, sky', grass]\n")
    assert labels_of("--image_query_cfg", path) == [("red, round star", "sky"), ("red star, sky", "grass")]


def test_labels_named_twice_are_merged_and_said(tmp_path, capsys):
    assert labels_of("--image", "a.png", "-l", "grass", "sky; heaven", "grass", "sky; blue") == [
        ("grass", "sky; heaven; blue")
    ]
    assert capsys.readouterr().err == "note: labels named more than once, taken once: grass, sky\n"
    path = tmp_path / "q.yaml"
    path.write_text("a.png: [sky, sky]\n")
    assert labels_of("--image_query_cfg", path) == [("sky",)]
    assert capsys.readouterr().err == "note: a.png: labels named more than once, taken once: sky\n"
    path.write_text("a.png: [sky, '']\n")
    with pytest.raises(InputError, match=r"a\.png: got '' as a label"):
        labels_of("--image_query_cfg", path)


def test_no_image_is_the_drawn_scene():
    assert gather_jobs(parse_arguments([])) == []
    assert Path("a.png") == gather_jobs(parse_arguments(["--image", "a.png", "--labels", "x"]))[0].image
