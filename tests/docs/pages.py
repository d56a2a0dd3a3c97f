"""What the documentation holds: pages, fenced blocks with their markers, shell commands, links, headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?:<!-- test: (?P<marker>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
PROGRAM = re.compile(r"(?:lightning|lightning-sft|python -m lightning_sft) (.+)")


def name_of(page: Path) -> str:
    """The page's path from the root, as it is shown in test names."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block; the marker is what stands after ``test:`` in an HTML comment right above it."""

    page: Path
    number: int
    language: str
    marker: str | None
    text: str

    @property
    def id(self) -> str:
        return f"{name_of(self.page)}-{self.number}"


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    """All fenced blocks of some languages."""
    return [
        Block(page, number, match["language"], match["marker"], match["text"])
        for page in pages
        for number, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8")))
        if match["language"] in languages
    ]


def shell_lines() -> Iterator[tuple[Path, str]]:
    """Every line of every shell block, without comments."""
    for block in blocks("sh", "bash", "console", "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.partition(" #")[0].strip()
            if command:
                yield block.page, command


def program_commands() -> list[tuple[Path, str]]:
    """Arguments of every command of the program in a shell block, each once per page."""
    found = ((page, PROGRAM.fullmatch(line)) for page, line in shell_lines())
    return list(dict.fromkeys((page, match[1]) for page, match in found if match))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of all links and images that stay inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that headings get."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def table_column(page: Path, heading: str, column: int = 0) -> list[str]:
    """Cells in backticks of one column of the first table under a heading ("" is the top of the page)."""
    text = page.read_text(encoding="utf-8")
    start = text.index(f"\n## {heading}\n") if heading else 0
    table = re.search(r"(?:^\|.*\n)+", text[start:], re.M)
    assert table, f"{name_of(page)} has no table under {heading!r}"
    cells = [re.split(r"(?<!\\)\|", line)[column + 1] for line in table[0].splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
