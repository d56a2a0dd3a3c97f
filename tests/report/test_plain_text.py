"""Pages are Markdown in files, and plain text on a terminal."""

import io

import pytest

from lightning_sft.report.plain_text import in_plain_text, shown

PAGE = """# Before you train

**1e-3 is sane.** A sentence that is long enough to be broken by a terminal of forty characters.

- one point that is long enough to be broken, too, by such a terminal
- two

```sh
lightning fit sft.yaml --objective PowerFamily --objective.alpha 1 --lr 1e-3 --max_steps 100
```

| of | rows | NLL |
|---|---|---|
| all | 20 | 1.25 |
| a \\| b | 9 | 11.50 |
"""


def test_marks_are_gone_and_commands_are_whole() -> None:
    assert in_plain_text(PAGE, 40).splitlines() == [
        "Before you train",
        "================",
        "",
        "1e-3 is sane. A sentence that is long",
        "enough to be broken by a terminal of",
        "forty characters.",
        "",
        "- one point that is long enough to be",
        "  broken, too, by such a terminal",
        "- two",
        "",
        "  lightning fit sft.yaml --objective PowerFamily --objective.alpha 1 --lr 1e-3 --max_steps 100",
        "",
        "of     rows  NLL",
        "all    20    1.25",
        "a | b  9     11.50",
    ]


def test_a_table_that_is_too_wide_is_turned() -> None:
    columns = "| " + " | ".join(f"column {i}" for i in range(6)) + " |"
    table = f"{columns}\n|{'---|' * 6}\n| {' | '.join('abcdef')} |"
    turned = in_plain_text(table, 40).splitlines()
    assert turned == [f"column {i}  {letter}" for i, letter in enumerate("abcdef")]
    assert len(in_plain_text(table, 80).splitlines()) == 2


def test_a_file_gets_the_page_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(PAGE) == PAGE

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    assert "**" not in shown(PAGE)
