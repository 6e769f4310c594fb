"""The words beside the picture, as HTML: what was found, the scores of a region, one line of good or bad news."""

from collections.abc import Iterable
from html import escape

import numpy as np
from jaxtyping import Float32

from textregion.render import palette
from textregion.web.pictures import REFERRED
from textregion.web.session import Answer, Encoded

MOST_ROWS = 12
HINT = "Click anywhere in the picture to see how a region scores."


def notice(text: str, kind: str = "news") -> str:
    """One line below the controls; kind: "news", "hint" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="tr-notice tr-{kind}" role="{role}">{escape(text)}</p>'


def summary(image: Encoded, unknown: list[str], heat_map: bool) -> str:
    """How much was found, which words the tiny model never learned, and what a heat map means."""
    height, width = image.size
    text = f"{len(image.regions)} regions in {width} × {height} pixels."
    if unknown:
        text += f" The tiny model never saw: {', '.join(unknown)}."
    if heat_map:
        text += " Heat map: how much more a patch is like its own regions than like others; hatched: left out."
    return notice(text, "hint" if unknown else "news")


def legend(answer: Answer) -> str:
    """Each label with its colour and its share of the picture, largest first; for a sentence its score and box."""
    if answer.grounding is not None:
        return referral_line(answer)
    counts = np.bincount(answer.result.label_map.ravel(), minlength=len(answer.names))
    shares, colours = counts / answer.result.label_map.size, answer.result.palette
    items = [
        f'<li>{swatch(colours[i])}<span class="tr-name">{escape(answer.names[i])}</span>'
        f'<span class="tr-share">{shares[i]:.1%}</span></li>'
        for i in np.argsort(-shares, kind="stable")
    ]
    return f'<ul class="tr-legend">{"".join(items)}</ul>'


def referral_line(answer: Answer) -> str:
    """The region a sentence refers to, in a line."""
    found = answer.grounding
    if found is None or found.region is None:
        return notice("No region was found in this image.", "hint")
    box = "" if found.box is None else " · box {:.0f}, {:.0f}, {:.0f} × {:.0f}".format(*found.box)
    return (
        f'<p class="tr-grounding">{swatch(REFERRED)}<span class="tr-name">{escape(answer.names[0])}</span>'
        f'<span class="tr-share">region {found.region} · cosine {found.score:.3f}{box}</span></p>'
    )


def scores(answer: Answer | None, region: int | None, clicked: bool) -> str:
    """The scores of a region: every label, best first; for a sentence every region, best first."""
    if answer is None:
        return ""
    if answer.grounding is not None:
        return sentence_scores(answer, region, clicked)
    if region is None:
        return notice("No region lies there: the first label is used." if clicked else HINT, "hint")
    order = np.argsort(-answer.cosine[region], kind="stable")[:MOST_ROWS]
    colours = palette(len(answer.names))
    rows = [
        (
            swatch(colours[i]) + escape(answer.names[i]),
            float(answer.cosine[region, i]),
            f"{answer.probability[region, i]:.1%}",
        )
        for i in order
    ]
    return table(f"Region {region}", ("label", "cosine", "probability"), rows, answer.cosine[region])


def sentence_scores(answer: Answer, region: int | None, clicked: bool) -> str:
    """How well each region fits the sentence; the clicked one is marked."""
    if clicked and region is None:
        return notice("No region lies there.", "hint")
    cosine = answer.cosine[:, 0]
    order = np.argsort(-cosine, kind="stable")
    shown = [r for rank, r in enumerate(order) if rank < MOST_ROWS or r == region]
    ranks = {int(r): rank for rank, r in enumerate(order, start=1)}
    rows = []
    for r in shown:
        name = f"<b>region {r}, clicked</b>" if r == region else f"region {r}"
        rows.append((name, float(cosine[r]), f"{ranks[int(r)]} of {len(cosine)}"))
    return table("Regions for this sentence", ("region", "cosine", "rank"), rows, cosine)


def table(
    title: str, heads: tuple[str, str, str], rows: Iterable[tuple[str, float, str]], cosine: Float32[np.ndarray, " n"]
) -> str:
    """A table of (HTML, cosine, text), with bars from the least to the largest of `cosine`."""
    low, high = float(cosine.min(initial=0)), float(cosine.max(initial=1e-6))
    body = "".join(
        f'<tr><td>{name}</td><td class="tr-number">{value:.3f}</td>'
        f'<td class="tr-bar"><i style="width:{100 * (value - low) / max(high - low, 1e-6):.0f}%"></i></td>'
        f'<td class="tr-number">{text}</td></tr>'
        for name, value, text in rows
    )
    head = f"<tr><th>{heads[0]}</th><th>{heads[1]}</th><th></th><th>{heads[2]}</th></tr>"
    return f'<table class="tr-scores"><caption>{title}</caption><thead>{head}</thead><tbody>{body}</tbody></table>'


def swatch(colour: np.ndarray | tuple[int, int, int]) -> str:
    """A small square of an RGB colour, 0..255 each."""
    return f'<i class="tr-swatch" style="background:#{bytes(int(c) for c in colour).hex()}"></i>'
