"""The page's files stay within their quotas, whatever is sent, and those used last are kept."""

import io
import os
from pathlib import Path

import pytest

from textregion.errors import InputError
from textregion.web.cached_segmenter import MEGABYTE, Limits
from textregion.web.uploads import MOST_FILES, Uploads

SMALL = Limits(max_pixels=1, max_bytes=2 * MEGABYTE, disk_bytes=20 * MEGABYTE, session_bytes=5 * MEGABYTE)


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def send(uploads: Uploads, number: int, size: int = MEGABYTE, session: str = "one") -> Path:
    """An upload, used `number` seconds after 1970."""
    with uploads.reserved(size):
        path = uploads.keep(f"{number}.png", io.BytesIO(bytes(size)), session)
    os.utime(path, (number, number))
    return path


def test_a_hundred_uploads_stay_within_the_quota(tmp_path):
    uploads = Uploads(tmp_path, SMALL)
    paths = [send(uploads, number, session=str(number)) for number in range(100)]
    assert bytes_on_disk(tmp_path) <= SMALL.disk_bytes - SMALL.made_bytes
    kept = [path for path in paths if path.exists()]
    assert kept == paths[-len(kept) :]
    assert len(kept) == 17  # 20 MB, of which 1 and 4 bytes are for what is made and 1 was free for the copy
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_a_session_pays_for_its_own_uploads(tmp_path):
    uploads = Uploads(tmp_path, SMALL)
    other = send(uploads, 0, session="other")
    mine = [send(uploads, number) for number in range(1, 9)]
    assert [path.exists() for path in mine] == [False] * 3 + [True] * 5
    assert other.exists()


def test_what_was_used_lately_is_kept_and_examples_always(tmp_path):
    (tmp_path / "scene.png").write_bytes(bytes(100))
    uploads = Uploads(tmp_path, SMALL)
    paths = [send(uploads, number, session=str(number)) for number in range(10)]
    uploads.used(paths[0])
    uploads.used(tmp_path / "gone.png")
    for number in range(10, 30):
        send(uploads, number, session=str(number))
    assert paths[0].exists()
    assert not paths[1].exists()
    assert (tmp_path / "scene.png").exists()


def test_uploads_under_way_count(tmp_path):
    uploads = Uploads(tmp_path, SMALL)
    with uploads.reserved(4 * MEGABYTE), uploads.reserved(4 * MEGABYTE):
        with pytest.raises(InputError, match="too many images are being sent at once"), uploads.reserved(2 * MEGABYTE):
            pass
        uploads.make_room()
    with uploads.reserved(9 * MEGABYTE):
        pass


def test_files_that_the_page_made_go_too(tmp_path):
    uploads = Uploads(tmp_path, SMALL)
    for number in range(25):
        (tmp_path / f"made{number}").mkdir()
        (tmp_path / f"made{number}" / "image.png").write_bytes(bytes(MEGABYTE))
    uploads.make_room()
    assert bytes_on_disk(tmp_path) <= SMALL.disk_bytes - SMALL.made_bytes


def test_the_number_of_files_is_bounded(tmp_path):
    uploads = Uploads(tmp_path, SMALL)
    for number in range(MOST_FILES + 5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").touch()
    uploads.make_room()
    assert len(list(tmp_path.iterdir())) < MOST_FILES


@pytest.mark.parametrize("name", ["..", "../../x", "", "C:\\\\x", ".", "con.png", "a\0b", "x" * 5000, "/etc/passwd"])
def test_a_name_stays_a_name(tmp_path, name):
    with (uploads := Uploads(tmp_path, SMALL)).reserved(1):
        path = uploads.keep(name, io.BytesIO(b"x"), "one")
    assert path.parent.parent == tmp_path
    assert path.read_bytes() == b"x"


def test_a_quota_that_holds_no_image_is_refused():
    with pytest.raises(InputError, match=r"--disk_megabytes.*expected at least 135 for images of 24000000 pixels"):
        Limits(disk_bytes=MEGABYTE)
