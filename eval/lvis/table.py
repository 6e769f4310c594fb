"""Both methods side by side, beside what RegionSpot's authors report."""

from collections.abc import Mapping, Sequence

from eval.results import figure, markdown_table, published_figures

WHERE = "LVIS "  # how figures of LVIS begin in published.yaml
PUBLISHED_NAMES = {"AP_rare": "APr"}  # theirs: ours
NOTE = (
    "published: its authors' figures on LVIS v1 val with GLIP-T's boxes, not measured here; "
    "–: nothing of that kind is annotated, or not published"
)


def side_by_side(metrics: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Rows of a table, the header first: a row per figure, a column per method, then the published heads.

    metrics: {method: {figure: percent}}.
    """
    published = published_columns()
    names = list(dict.fromkeys(name for figures in metrics.values() for name in figures))
    header = ["figure (%)", *metrics, *(f"{name} (published)" for name in published)]
    rows = [
        [name, *(figure(column.get(name, float("nan"))) for column in (*metrics.values(), *published.values()))]
        for name in names
    ]
    return [header, *rows]


def published_columns() -> dict[str, dict[str, float]]:
    """{"RegionSpot BB": {"box AP": 20.9, "box APr": …}, …}, the figures named as here."""
    columns: dict[str, dict[str, float]] = {}
    for one in published_figures():
        if one.where.startswith(WHERE):
            kind, name = one.where.removeprefix(WHERE).split(" ")
            column = columns.setdefault(f"{one.method} {one.backbone}", {})
            column[f"{kind} {PUBLISHED_NAMES.get(name, name)}"] = one.value
    return columns


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def as_markdown(rows: Sequence[Sequence[str]], facts: Sequence[str]) -> str:
    """results.md: the table, its note, and a line per fact."""
    lines = ["# LVIS: names of boxes", "", *markdown_table(rows[0], rows[1:]), "", NOTE[0].upper() + NOTE[1:] + ".", ""]
    return "\n".join([*lines, *(f"- {fact}" for fact in facts)]) + "\n"
