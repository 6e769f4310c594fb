"""Links and anchors of README, docs, model cards and the notebook lead somewhere; the net is not asked."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("textregion/**/*.md"), *ROOT.glob("tests/**/*.md")]
PAGES += ROOT.glob("docs/*.ipynb")
LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    """A page's Markdown; of a notebook that of its cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def links(text: str) -> list[str]:
    """Targets of all links outside of code."""
    return [one or other for one, other in LINK.findall(CODE.sub("`", text))]


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them, and of named elements."""
    seen, found = Counter(), set(re.findall(r"<a (?:name|id)=\"([^\"]+)\"", text))
    without_blocks = CODE.sub(lambda code: code[0].split("\n")[0], text)
    for title in re.findall(r"^#{1,6} (.+?)\s*#*$", without_blocks, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title).lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def broken(path: Path, text: str) -> list[str]:
    """The targets of a page that are not there."""
    missing = []
    for target in links(text):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = path if not name else path.parent / name
        if not there.exists() or (anchor and anchor not in anchors(text_of(there))):
            missing.append(target)
    return missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(path):
    assert broken(path, text_of(path)) == []


def test_every_page_of_docs_is_linked_from_another():
    linked = {(path.parent / t.split("#")[0]).resolve() for path in PAGES for t in links(text_of(path)) if ":" not in t}
    assert [path for path in ROOT.glob("docs/*.*") if path.resolve() not in linked] == []


def test_what_is_broken_is_found():
    path, text = ROOT / "README.md", "# A `b`: c, d!\n\n## Again\n\n## Again\n"
    assert anchors(text) == {"a-b-c-d", "again", "again-1"}
    good = "[x](#again-1) [y](docs/api.md#with-curl) ![z](docs/page.png) [w](https://example.org/none) `[v](none)`"
    assert broken(path, text + good.replace("#again-1", "docs/api.md")) == []
    assert broken(path, "[x](docs/none.md) [y](docs/api.md#none)\n\n[z]: none.png") == [
        "docs/none.md",
        "docs/api.md#none",
        "none.png",
    ]
