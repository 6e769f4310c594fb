"""What docs/hosting.md hosts starts, and its Dockerfile names what is there."""

import re
import runpy
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from textregion.web import server

ROOT = Path(__file__).resolve().parents[3]


def test_the_hosted_page_starts_and_answers(monkeypatch):
    monkeypatch.setenv("PORT", "0")
    answered = {}

    def run_app(app, listener):
        answered["host"] = listener.getsockname()[0]
        with TestClient(app, base_url="http://demo.example") as client:
            answered["page"], answered["config"] = client.get("/").text, client.get("/config").json()

    monkeypatch.setattr(server, "run_app", run_app)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "hosting" / "app.py"), run_name="__main__")
    assert ended.value.code == 0
    assert answered["host"] == "0.0.0.0"
    assert "TextRegion" in answered["page"]
    names = {dependency["api_name"] for dependency in answered["config"]["dependencies"]}
    assert {"segment", "refer"} <= names


def test_the_dockerfile_copies_what_is_there():
    text = (ROOT / "docs" / "hosting" / "Dockerfile").read_text(encoding="utf-8")
    sources = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert re.findall(r"^ARG (.*)$", text, re.MULTILINE) == ["TORCH=pinned"]
