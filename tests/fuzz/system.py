"""What is around the program: places that cannot be written, full disks, Ctrl-C, little memory."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tests.fuzz.case import FAST, OUTPUT, REFUSED, STOPPED, WORKS, Case, SkippedError, damaged_files
from tests.fuzz.images import encoded, plain_write
from textregion.tiny.scenes import draw_scene
from TextRegionSegmenter import TextRegionSegmenter

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-u", str(ROOT / "TextRegionSegmenter.py"))
MOST_MEMORY = 8 * 2**30  # bytes that the largest allowed image may take
LARGEST = (9999, 10_000)  # just below the limit of 100 million pixels


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All cases about the surroundings."""
    images = []
    for number in range(3):
        images.append(str(folder / f"scene_{number}.png"))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(number, 64).image).save(images[-1])
    task = (*FAST, "--image_list", *images, "--labels", "sky", "red shape", "--visualize_global_patch")
    yield from places(folder, task)
    yield from full_disks(folder, task)
    for delay in np.geomspace(0.005, 0.8, 30):
        around = lambda delay=delay: interrupted(float(delay))  # noqa: E731
        yield Case("Ctrl-C", f"after {delay:.3f} CPU s", (*task, "--output", OUTPUT), None, (WORKS, STOPPED), around)
    yield Case("Ctrl-C", "signal to a process", None, lambda _: interrupt_process(folder / "process"), (WORKS,))
    yield from slow(folder, task)


def places(folder: Path, task: tuple[str, ...]) -> Iterator[Case]:
    """--output at places of every sort."""
    (folder / "file").write_text("keep me")
    (folder / "loop").unlink(missing_ok=True)
    (folder / "loop").symlink_to(folder / "loop")
    bad = [folder / "file", folder / "file" / "below", folder / "loop", "/dev/null", "/proc/x", "x" * 300, "nul\0"]
    bad += [str(folder) + "/a" * 3000, "\ud800"]
    for place in bad:
        yield Case("output", f"--output {str(place)[-30:]!r}", (*task, "--output", str(place)), None, (REFUSED,))
    for name in ("two words", "ünïcødé 犬", "-dash", "%d{}", "deep/er/and/deeper"):
        yield Case("output", f"--output {name}", (*task, "--output", f"{OUTPUT}/{name}"), None, (WORKS,))


def full_disks(folder: Path, task: tuple[str, ...]) -> Iterator[Case]:
    """No room at several points: every file is refused above a size; a small file system is full."""
    for limit in (0, 100, 1000, 3000, 10_000, 30_000):
        around = lambda limit=limit: files_up_to(limit)  # noqa: E731
        command = (*task, "--output", OUTPUT)
        expected = (WORKS, REFUSED) if limit > 1000 else (REFUSED,)
        yield Case("full disk", f"files up to {limit} bytes", command, None, expected, around)
    for limit in (0, 100):
        around = lambda limit=limit: files_up_to(limit)  # noqa: E731
        name = f"files up to {limit} bytes, text cache"
        yield Case("full disk", name, None, lambda _: cache(folder), (REFUSED,), around)
    for kilobytes in (4, 16, 64, 128):
        place = folder / f"mount_{kilobytes}"
        around = lambda place=place, size=kilobytes: small_file_system(place, size)  # noqa: E731
        command = (*task, "--output", str(place))
        yield Case("full disk", f"file system of {kilobytes} KB", command, None, (REFUSED,), around)


def cache(folder: Path) -> None:
    """Text embeddings on a disk without room."""
    segmenter = TextRegionSegmenter.from_preset("tiny", mask_generator=None, device="cpu", text_cache=folder / "cache")
    segmenter.encode_text(["sky"])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow above so many bytes (EFBIG)."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@contextmanager
def small_file_system(place: Path, kilobytes: int) -> Iterator[None]:
    """A file system in memory with room for so many kilobytes (ENOSPC); only root may mount one."""
    place.mkdir(exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        subprocess.run(options, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SkippedError("no small file system can be mounted here") from error
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def interrupted(delay: float) -> Iterator[None]:
    """What Ctrl-C does, after some seconds of computing, if the body has not ended before."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    before_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, delay)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        signal.signal(signal.SIGINT, before_interrupt)


def interrupt_process(folder: Path) -> None:
    """SIGINT to the real program after its first image of many: exit code 130, one last line, whole results."""
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(40):
        plain_write(folder / "in" / f"{number}.png", encoded(Image.fromarray(draw_scene(number, 64).image), "PNG"))
    command = [*PROGRAM, *FAST, "--image", str(folder / "in"), "--labels", "sky", "--output", str(folder / "out")]
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a program in the background ignores it)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, cwd=ROOT, text=True, preexec_fn=listen)
    while process.poll() is None and not list(folder.glob("out/[!.]*/*.png")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130, (process.returncode, error)
    assert error.replace("\r", "\n").strip().splitlines()[-1].startswith("stopped"), error
    assert "Traceback" not in error, error
    assert damaged_files(folder / "out") == []


def slow(folder: Path, task: tuple[str, ...]) -> Iterator[Case]:
    """Cases of many seconds each."""
    large = folder / "largest.png"
    checks = {
        "largest image": lambda _: largest_image(large),
        "10,000 different labels": lambda segmenter: many_labels(segmenter),
        "output to a closed pipe": lambda _: closed_pipe(task, folder / "pipe"),
        "output to a full device": lambda _: full_device(task, folder / "device"),
    }
    for name, check in checks.items():
        yield Case("slow", name, None, check, (WORKS,), slow=True)


def largest_image(path: Path) -> None:
    """Just below the limit of pixels: it works, in a process that takes bounded memory."""
    Image.new("RGB", LARGEST, (200, 40, 40)).save(path)
    command = [*PROGRAM, *FAST, "--image", str(path), "--labels", "sky", "--output", str(path.parent / "largest")]
    with open(path.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        peak = usage.ru_maxrss * 2**10
        tqdm.write(f"{LARGEST[0]} x {LARGEST[1]} pixels: peak {peak / 2**20:.0f} MB, {usage.ru_utime:.0f} CPU s")
        assert os.waitstatus_to_exitcode(status) == 0, log.read()
    assert peak < MOST_MEMORY, peak


def many_labels(segmenter: TextRegionSegmenter) -> None:
    """Ten thousand different labels."""
    labels = [f"thing number {number}" for number in range(10_000)]
    result = segmenter.segment(draw_scene(3, 64).image, labels)
    assert len(result.labels) == len(labels)


def closed_pipe(task: tuple[str, ...], folder: Path) -> None:
    """As with `… | head -1`: no traceback, no complaint."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*PROGRAM, *task, "--output", str(folder)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    os.close(writer)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr


def full_device(task: tuple[str, ...], folder: Path) -> None:
    """Standard output on a full disk: one line, exit code 2."""
    if not Path("/dev/full").exists():
        raise SkippedError("no /dev/full here")
    with open("/dev/full", "w") as out:
        command = [sys.executable, *PROGRAM[2:], *task, "--output", str(folder)]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
