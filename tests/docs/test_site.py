"""The site reads nothing from elsewhere, sets its formulas by what lies beside it, and says which version it is of."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, name_of, prose
from tests.test_dependencies import PROJECT

DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
SCRIPTS = [*SETTINGS["extra_css"], *SETTINGS["extra_javascript"], *SETTINGS["extra"]["polyfills"]]
#: a formula between dollars, as the site and GitHub read it
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?! )([^$\n]+?)(?<! )\$(?![\w$])", re.S)


def test_version_and_repository_are_those_of_the_package() -> None:
    assert SETTINGS["extra"]["release"] == PROJECT["version"]
    assert SETTINGS["repo_url"] == PROJECT["urls"]["Homepage"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_page_loads_lies_in_the_repository(name: str) -> None:
    assert (DOCS / name).is_file()
    assert not re.search(r"(?:src|import|url)\W{1,3}https?://", (DOCS / name).read_text(encoding="utf-8"))


def test_the_theme_asks_no_server() -> None:
    assert SETTINGS["theme"]["font"] is False
    for part in (DOCS / "theme").rglob("*.html"):
        text = part.read_text(encoding="utf-8")
        assert "http" not in text
        assert "data-md-component" not in text  # by which the theme's script finds what to ask a server for


def test_formulas_have_their_fonts_and_licence() -> None:
    folder = DOCS / "assets/katex"
    fonts = re.findall(r"url\((fonts/[\w-]+\.woff2)\)", (folder / "katex.min.css").read_text(encoding="utf-8"))
    assert len(fonts) == 20
    assert all((folder / font).is_file() for font in fonts)
    assert "MIT" in (folder / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_formulas_are_whole(page: Path) -> None:
    text = re.sub(r"(`+).+?\1", "", prose(page), flags=re.S)
    for formula in (match[1] or match[2] for match in FORMULA.finditer(text)):
        assert formula.count("{") == formula.count("}"), formula
        assert formula.count("\\left") == formula.count("\\right"), formula
    rest = FORMULA.sub("", text)
    assert not re.search(r"\\(?:frac|sum|alpha|Phi|log|text)\b", rest), f"{name_of(page)}: TeX outside of a formula"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_runs_of_the_command_line_have_names_and_no_numbers(page: Path) -> None:
    """A run's folder says objective, rate and time; only a plain Trainer in Python numbers its runs."""
    allowed = {"docs/how_to/own_project.md", "docs/how_to/logging.md"}
    assert name_of(page) in allowed or "version_0" not in page.read_text(encoding="utf-8")


def test_the_first_picture_is_that_of_its_readings() -> None:
    told = json.loads((DOCS / "assets/silent_failure.json").read_text(encoding="utf-8"))
    low, high = told["rates"]["2e-07"], told["rates"]["6e-06"]
    for theme in ("light", "dark"):
        picture = (DOCS / f"assets/silent_failure_{theme}.svg").read_text(encoding="utf-8")
        for run in (low, high):
            assert f"falls from {run['loss'][0]:.2f} to {run['loss'][-1]:.2f} nats" in picture
    assert all(c < k for c, k in zip(low["p_correct"], low["p_competitor"], strict=True))
    assert high["p_correct"][-1] > high["p_competitor"][-1]
