"""The page: any text is shown as it is, and what it says follows from the figures."""

import html
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.audit.page import sections
from lightning_sft.audit.render import Command, Listing, Section, Table, as_code, to_html, to_markdown
from lightning_sft.audit.result import Audit, Context, ReadModel, verdicts
from lightning_sft.audit.summary import in_short, title
from lightning_sft.metrics.silent import SilentReading

ODD = [
    "a|b",
    " space ",
    "`tick`",
    "two\nlines",
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "\u202edrow",
    "**bold**",
]


@pytest.mark.parametrize("text", ODD)
def test_any_text_stands_in_a_cell_as_it_is(text: str) -> None:
    cell = as_code(text)
    assert all(c.isprintable() for c in cell)
    page = to_html("t", [Section("s", [Table(["x"], [[cell]])])])
    (shown,) = re.findall(r"<td><code>(.*?)</code></td>", page)
    expected = text.replace("\n", "\u23ce").replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    assert html.unescape(shown) == expected
    line = to_markdown("t", [Section("s", [Table(["x"], [[cell]])])]).splitlines()[-1]
    assert len(re.findall(r"(?<!\\)\|", line)) == 2


def test_every_kind_of_block() -> None:
    page = [Section("s <1>", ["Text with `code` & **weight**.", Listing(["one", "two"]), Command("run --a '{x: 1}'")])]
    markdown, shown = to_markdown("T & U", page), to_html("T & U", page)
    assert markdown.startswith(
        "# T & U\n\n## s <1>\n\nText with `code` & **weight**.\n\n- one\n- two\n\n```sh\nrun --a"
    )
    assert "<title>T &amp; U</title>" in shown
    assert "<h2>s &lt;1&gt;</h2>" in shown
    assert "<p>Text with <code>code</code> &amp; <strong>weight</strong>.</p>" in shown
    assert "<li>one</li><li>two</li>" in shown
    assert "<pre>run --a '{x: 1}'</pre>" in shown or "<pre>run --a &#x27;{x: 1}&#x27;</pre>" in shown


MODEL = ReadModel("runs/long/path/model", None, None, "LlamaForCausalLM", "float32", "cpu", 0.1, 0.5, 0.4, 8, 0.25)
READING = SilentReading(
    tokens=100, rows=20, nll=1.5, outranked=0.6, expected=0.5, excess=0.1, excess_low=0.05, excess_high=0.15,
    nll_before=2.0, behind=70, share=0.4, share_low=0.3, share_high=0.5, flipped=0.2, lost=0.1,
)  # fmt: skip
CONTEXT = Context(
    "she was very", " glad", " proud", 0.2, 0.4, 2.0, 1.6, 0.13, 0.45, True, "test", "rows", 3, 5, 20, 7, 8, [1, 2, 3]
)


def made(**changes: Any) -> Audit:
    trained = changes.get("trained", "yes")
    silent = changes.get("silent", READING)
    compared = changes.get("before", MODEL) is not None
    whole = Audit(
        after=MODEL, before=MODEL, rows=20, total_rows=20, set="test", trained="yes", min_fall=0.1, masks={"turns": 20},
        template="the same in both models", notes=[], silent=READING, synonyms=None, sources={},
        nll_change=(-0.5, -0.6, -0.4),
        contexts=[CONTEXT], verdicts=verdicts(silent, trained, compared=compared),
    )  # fmt: skip
    return replace(whole, **changes)


def page_of(audit: Audit) -> str:
    return to_markdown(title(audit), sections(audit, Path("out")))


def test_a_silent_failure_names_the_next_commands() -> None:
    page = page_of(made())
    assert page.startswith("# Audit of path/model, compared with path/model\n")
    assert "- The loss fell: mean NLL 2.000 -> 1.500 nats per token (-0.500, 95% interval -0.600 to -0.400)." in page
    assert "- Silent failure: of 70 trained tokens" in page
    assert "lightning fit --config RUN.yaml --model.objective RunnerUpMargin --model.objective.pairs out/" in page
    assert "--data.loss_weights.contexts '{\"out/contexts.jsonl\": 4}'" in page
    assert "| `...she was very` | `  glad ` | `  proud ` | 0.130 -> 0.200 | 0.450 -> 0.400 | 2.00 -> 1.60 |" in page
    assert "| 40.0% (30.0% to 50.0%) | of 70 |" in page


def test_overconfidence_asks_for_something_else() -> None:
    page = page_of(made(trained="no"))
    assert "- Overconfident: " in page
    assert "--model.objective LabelSmoothing" in page
    assert "RunnerUpMargin" not in page


def test_nothing_wrong_has_no_next_step() -> None:
    fine = replace(READING, share=0.02, share_low=0.0, share_high=0.05)
    page = page_of(made(silent=fine, contexts=[]))
    assert "No silent failure" in page
    assert "What to try next" not in page
    assert "No token got a lower loss and stayed behind the same competitor." in page


def test_places_too_few_for_a_verdict_have_a_next_step() -> None:
    few = replace(READING, rows=3, share_low=math.nan, share_high=math.nan)
    page = page_of(made(silent=few))
    assert "No verdict from so few rows" in page
    assert "RunnerUpMargin" in page
    assert "What to try next" not in page_of(made(silent=few, contexts=[]))


def test_rows_of_which_nothing_is_known_get_both_verdicts() -> None:
    lines = in_short(made(trained="unknown"))
    assert any(line.startswith("If it was trained on these rows: Silent failure") for line in lines)
    assert any(line.startswith("If it was not: Overconfident") for line in lines)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ((-0.5, -0.6, -0.4), "fell"),
        ((0.5, 0.4, 0.6), "rose"),
        ((-0.1, -0.3, 0.1), "did not clearly change"),
        ((0.5, math.nan, math.nan), "rose"),
        ((-0.5, math.nan, math.nan), "fell"),
    ],
)
def test_the_loss_falls_only_where_its_interval_says_so(change: tuple[float, float, float], word: str) -> None:
    assert in_short(made(nll_change=change))[0].startswith(f"The loss {word}:")


def test_plain_rows_used_no_template() -> None:
    assert "Chat template: none was used." in page_of(made(masks={"the row itself, without a chat template": 20}))
