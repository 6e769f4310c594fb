"""What the demo prints: a few lines for one image, one line per image of a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from textregion.cli.pictures import result_shares, told_labels
from textregion.cli.results import MOST_SIMILARITY_MAPS
from textregion.types import Segmentation

MOST_LABELS = 40  # told on the screen; all are in labels.json

MOST_BOXES = 40


def print_shares(result: Segmentation, dense_fallback: bool) -> None:
    """A line per label with its share of the pixels, and one for pixels that no region covers."""
    shares = result_shares(result)
    shown = [shares[i] for i in told_labels(shares, MOST_LABELS)]
    width = max(len(name) for name, _ in shown)
    for name, share in shown:
        print(f"  {name:<{width}}  {share:6.1%}")
    if len(shown) < len(shares):
        print(f"  ({len(shares) - len(shown)} more labels: labels.json)")
    bare = float((result.region_map < 0).mean())
    if bare > 0:
        how = "labelled from dense features" if dense_fallback else f"counted as {result.labels[0]}, the first label"
        print(f"  ({bare:.1%} of the pixels lie in no region: {how})")


def print_boxes(rows: Sequence[dict]) -> None:
    """A line per box with its best label and score; of very many only the first."""
    for row in rows[:MOST_BOXES]:
        best = row["labels"][0] if row["labels"] else None
        said = f"{best['name']} {best['score']:.0%}" if best else "no token: no patch lies in its mask"
        print(f"  box {row['box']} at {', '.join(f'{value:g}' for value in row['xyxy'])}: {said}")
    if len(rows) > MOST_BOXES:
        print(f"  ({len(rows) - MOST_BOXES} more boxes: boxes.json)")


def print_files(folder: Path, run: Mapping) -> None:
    """Which files there are, what was left out, and where an earlier run is kept."""
    listed = sorted({name.split("/")[0] + "/" * ("/" in name) for name in run["files"]})
    print(f"files in {folder}: {', '.join(listed)}")
    if "kept" in run:
        print(f"note: {folder} held something else or another run; kept as {run['kept']}")
    maps = run.get("similarity_maps")
    if maps and maps["written"] < maps["labels"]:
        print(f"note: similarity maps of the first {MOST_SIMILARITY_MAPS} of {maps['labels']} labels only")


def print_seconds(seconds: Mapping[str, float]) -> None:
    """Seconds per stage and in all."""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    print(f"seconds: {parts}; {sum(seconds.values()):.2f} in all")


def spent(stages: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Seconds per stage since `before`."""
    return {name: round(value - before.get(name, 0.0), 4) for name, value in stages.items()}


def top_labels(shares: Sequence[Sequence], most: int = 3) -> str:
    """`dog 41%, sofa 30%, floor 20%`."""
    return ", ".join(f"{name} {share:.0%}" for name, share in list(shares)[:most])
