"""One table over benchmarks and backbones: ours beside published figures, which are marked."""

from collections.abc import Mapping, Sequence

from eval.results import Published, markdown_table, published_figures

BENCHMARKS = (
    "voc21",
    "context60",
    "coco_object",
    "voc20",
    "context59",
    "coco_stuff164k",
    "city_scapes",
    "ade20k",
)
AVERAGE = "average8"
Scores = Mapping[str, Mapping[str, float]]


def overview(scores: Scores, note: str = "") -> list[str]:
    """Markdown lines: a row per backbone of ours, then the published ones.

    scores: {backbone: {benchmark: mIoU in percent}}. Columns: the eight benchmarks, any others, the average of
    the eight where all are there. note: said in our rows' names, e.g. "first 10 images".
    """
    others = sorted({name for row in scores.values() for name in row} - set(BENCHMARKS))
    columns = [*BENCHMARKS, *others, AVERAGE]
    rows = [_row(f"{name}{f' ({note})' if note else ''}", with_average(row), columns) for name, row in scores.items()]
    rows += [_row(f"{name} (published)", row, columns) for name, row in published_rows().items()]
    return markdown_table(["backbone", *columns], rows)


def with_average(row: Mapping[str, float]) -> dict[str, float]:
    """The row and, if all eight benchmarks are in it, their mean."""
    eight = [row[name] for name in BENCHMARKS if name in row]
    return {**row, AVERAGE: sum(eight) / 8} if len(eight) == 8 else dict(row)


def published_rows(figures: Sequence[Published] | None = None) -> dict[str, dict[str, float]]:
    """{"method, backbone": {benchmark or average8: mIoU}} of the figures that have a column."""
    rows: dict[str, dict[str, float]] = {}
    for figure in published_figures() if figures is None else figures:
        if figure.unit == "mIoU" and figure.where in (*BENCHMARKS, AVERAGE):
            rows.setdefault(f"{figure.method}, {figure.backbone}", {})[figure.where] = figure.value
    return rows


def _row(name: str, values: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    return [name, *(f"{values[c]:.1f}" if c in values else "" for c in columns)]
