"""The table at the end of a batch: on the screen, summary.csv and summary.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from textregion.cli.folders import set_aside, writing
from textregion.cli.report import top_labels
from textregion.storage import write_atomically

MOST_ROWS = 40  # on the screen; the files have all


@dataclass(frozen=True)
class Row:
    """One image of a batch. status: done, resumed or failed; message: why, or where an earlier run is kept.

    seconds: of this run.
    """

    image: str
    folder: str
    status: str
    width: int = 0
    height: int = 0
    regions: int = 0
    labels: str = ""
    seconds: float = 0.0
    message: str = ""

    @classmethod
    def of_run(cls, image: str, folder: str, status: str, run: Mapping, seconds: float) -> "Row":
        """From what run.json holds."""
        sizes = {name: int(run[name]) for name in ("width", "height", "regions")}
        message = f"an earlier run is kept as {run['kept']}" if "kept" in run else ""
        return cls(image, folder, status, **sizes, labels=top_labels(run["shares"]), seconds=seconds, message=message)

    def line(self) -> str:
        """The row as one line of running text."""
        if self.status == "failed":
            return f"skipped: {self.message}"
        head = f"{self.image}: {self.regions} regions -> {self.folder}"
        return f"{head} ({'; '.join(filter(None, [self.status, self.labels, self._time, self.message]))})"

    @property
    def _time(self) -> str:
        return f"{self.seconds:.2f} s"

    def cells(self) -> list[str]:
        """The columns of the table on the screen, where the messages stand in lines above."""
        size = f"{self.width} x {self.height}" if self.width else ""
        regions = str(self.regions) if self.width else ""
        return [self.image, size, regions, self.labels, self._time, self.status]


HEADER = ["image", "size", "regions", "labels", "time", "status"]


def totals(rows: Sequence[Row]) -> str:
    """`8 images: 5 done, 2 resumed, 1 failed; 12.3 s`."""
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "resumed", "failed")}
    told = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    return f"{len(rows)} images: {told}; {sum(row.seconds for row in rows):.1f} s"


def print_table(rows: Sequence[Row]) -> None:
    """The table on the screen; of a long one the failures only."""
    shown = rows if len(rows) <= MOST_ROWS else [row for row in rows if row.status == "failed"][:MOST_ROWS]
    cells = [[_clip(cell) for cell in row] for row in [HEADER, *(row.cells() for row in shown)]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
    print()
    for row in cells:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(shown) < len(rows):
        print(f"({len(rows) - len(shown)} more rows)")
    print(totals(rows))


def _clip(text: str, width: int = 56) -> str:
    """One line of at most `width` characters; of a long path the end is what tells it apart."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"


def write_summary(output: Path, rows: Sequence[Row]) -> None:
    """summary.csv and summary.md; an earlier summary with other images than these is kept under another name."""
    files = {"summary.csv": csv_text(rows), "summary.md": markdown(rows)}
    with writing(output):
        if not _images_of(output / "summary.csv") <= {row.image for row in rows}:
            kept = [set_aside(output / name) for name in files if (output / name).exists()]
            print(f"note: an earlier summary of other images is kept as {', '.join(map(str, kept))}")
        for name, text in files.items():
            write_atomically(output / name, text.encode("utf-8", "backslashreplace"))
    print(f"the same table: {output / 'summary.md'}, {output / 'summary.csv'}")


def csv_text(rows: Sequence[Row]) -> str:
    """One line per image with every column."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "seconds": f"{row.seconds:.2f}"} for row in rows)
    return text.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """The table for people, and the totals."""
    lines = [[*HEADER, "note"], ["---"] * (len(HEADER) + 1), *([*row.cells(), row.message] for row in rows)]
    table = ["| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([*table, "", totals(rows), ""])


def _images_of(path: Path) -> set[str]:
    """The images an earlier summary.csv tells of; a file that is not one counts as other images."""
    if not path.exists():
        return set()
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {""}
    return {row.get("image") or "" for row in rows}
