"""The page: any text is shown as it is, and what it says follows from the figures."""

import html
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.audit.contexts import Context
from lightning_sft.audit.guard import Forgetting
from lightning_sft.audit.headline import headline
from lightning_sft.audit.next_steps import first_step
from lightning_sft.audit.page import sections
from lightning_sft.audit.probing import ProbeOutcome
from lightning_sft.audit.render import Command, Listing, Section, Table, as_code, to_html, to_markdown
from lightning_sft.audit.result import Asked, Audit, ReadModel, verdicts
from lightning_sft.audit.special import SpecialTokens
from lightning_sft.audit.summary import in_short, title
from lightning_sft.metrics.silent import SilentReading
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.verdict import Verdict

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
    nll_before=2.0, behind=70, share=0.4, share_low=0.3, share_high=0.5, flipped=0.2, displaced=0.3, unlearned=0.1,
    lost=0.1,
)  # fmt: skip
CONTEXT = Context(
    "she was very",
    " glad",
    " proud",
    " happy",
    0.2,
    0.4,
    2.0,
    1.6,
    0.13,
    0.45,
    True,
    "test",
    "rows",
    3,
    5,
    20,
    7,
    8,
    9,
    [1, 2, 3],
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
    loss = "- The loss fell: mean NLL of all 100 tokens 2.000 -> 1.500 nats per token"
    assert f"{loss} (-0.500, 95% interval -0.600 to -0.400)." in page
    assert "- Silent failure: of 70 trained tokens" in page
    assert page.count("mean NLL of all 100 tokens") == 1, "the verdict does not say the loss once more"
    assert "Rows: all rows of the set `test` of the settings, " in page
    asked = Asked(["--before=a", "--after=b", "--data", "held_out.jsonl"], [], None)
    assert "Rows: all rows of the file `held_out.jsonl`, " in page_of(made(asked=asked))
    assert "lightning fit RUN.yaml --objective RunnerUpMargin --objective.pairs out/" in page
    assert "--data.loss_weights.contexts '{\"out/contexts.jsonl\": 4}'" in page
    assert (
        "| `...she was very` | `\u2423glad` | `\u2423happy` | `\u2423proud` | 0.130 -> 0.200 | 0.450 -> 0.400 "
        "| 2.00 -> 1.60 |"
    ) in page
    assert "| before the word | right word | was behind | is behind | p right | p of the one ahead |" in page
    lower = "| outranked | loss lower by more than 0.1 nats,"
    assert f"{lower} still behind the same competitor (**silent failure**) | 40.0% (30.0% to 50.0%) | of 70 |" in page
    assert f"{lower} behind another word than before | 30.0% | of 70 |" in page
    assert "| outranked | outranked, without such a loss | 10.0% | of 70 |" in page
    assert "| outranked | the first choice | 20.0% | of 70 |" in page


def test_the_terminal_gets_the_first_step_alone() -> None:
    run = Asked([], ["runs/a/config.yaml"], None)
    why, command = first_step(made(asked=run), Path("out"))
    assert why.startswith("Next       Train again with a margin between the right words")
    assert command.split() == (
        "lightning fit runs/a/config.yaml --objective RunnerUpMargin --objective.pairs out/contexts.jsonl".split()
    )
    assert command.startswith(" " * 11)
    assert first_step(made(silent=FINE, contexts=[], after=replace(MODEL, exact=0.5)), Path("out")) == []


def test_overconfidence_asks_for_something_else() -> None:
    page = page_of(made(trained="no"))
    assert "- Overconfident: " in page
    assert "--objective LabelSmoothing" in page
    assert "RunnerUpMargin" not in page


def test_nothing_wrong_has_no_next_step() -> None:
    page = page_of(made(silent=FINE, contexts=[], after=replace(MODEL, exact=0.75)))
    assert "No silent failure" in page
    assert "What to try next" not in page
    assert "No token got a loss lower by more than 0.1 nats and stayed outranked." in page


def test_most_tokens_still_outranked_asks_for_more_training() -> None:
    audit = made(silent=BEHIND)
    page = page_of(audit)
    assert "- Still outranked: the loss fell, but most right tokens that were behind at the start still are." in page
    step = (
        "Most right words are not the first choice yet: train for more steps, or at a higher learning rate. Train again"
    )
    assert step in page
    assert "lightning fit RUN.yaml --data.loss_weights.contexts" in page
    run = replace(audit, after=replace(MODEL, step=40), asked=Asked([], ["runs/a/config.yaml"], None))
    why, command = first_step(run, Path("out"))
    assert why.endswith("Most right words are not the first choice yet: train for more steps than 40, or at a higher "
                        "learning rate:")  # fmt: skip
    assert command.split() == "lightning fit runs/a/config.yaml --max_steps 80".split()
    assert "RunnerUpMargin" not in page_of(replace(run, contexts=[]))
    assert page_of(run).count("igher learning rate or more steps") + page_of(run).count("for more steps") == 1
    worse = replace(run, nll_change=(0.2, 0.1, 0.3), asked=Asked([], ["runs/a/config.yaml"], 1e-3))
    why, command = first_step(worse, Path("out"))
    assert why.endswith("The loss of these rows rose: train again at a lower learning rate (it was 0.001):")
    assert command.split() == "lightning fit runs/a/config.yaml --lr 0.0001".split()
    assert "more steps" not in page_of(worse)
    assert "a lower learning rate.\n" in page_of(replace(worse, asked=None))
    same = page_of(replace(run, nll_change=(-0.01, -0.02, -0.01), silent=replace(SAME, share_low=0.0, share_high=0.05)))
    assert "The model is almost unchanged: train it again" in same
    assert "Most right words" not in same, "once is enough"


def test_an_undecided_verdict_names_the_option_that_reads_more_rows() -> None:
    undecided = replace(FINE, share_high=0.2)
    assert "Read more rows (--rows)" in headline(made(silent=undecided, total_rows=2000))
    assert "Read more rows (--data)" in headline(made(silent=undecided))
    some = page_of(made(silent=undecided, total_rows=2000))
    assert "Rows: 20 of 2000 rows, spread evenly, of the set `test` of the settings, " in some
    assert " --rows null" in page_of(made(silent=undecided, total_rows=2000))


def test_places_too_few_for_a_verdict_have_a_next_step() -> None:
    few = replace(READING, rows=3, share_low=math.nan, share_high=math.nan)
    page = page_of(made(silent=few))
    assert "silently: too few rows, since an interval needs at least 8 (3 rows, 100 tokens).**" in page
    assert "- Cannot tell whether it fails silently: 3 rows; an interval needs at least 8 rows. Seen: of 70" in page
    assert "RunnerUpMargin" in page
    assert "--data ROWS.jsonl --trained yes" in page
    assert "RunnerUpMargin" not in page_of(made(silent=few, contexts=[]))
    sparse = replace(few, rows=20)
    assert "of 20 rows fewer than 8 hold a token that was outranked at the start" in page_of(made(silent=sparse))


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


FINE = replace(READING, share=0.02, share_low=0.0, share_high=0.05, flipped=0.9, displaced=0.08, unlearned=0.0)
BEHIND = replace(FINE, flipped=0.3, displaced=0.6, unlearned=0.08)
SAME = replace(READING, share=0.5, share_low=math.nan, share_high=math.nan, flipped=0.0, lost=0.0, rows=3)
GUARD = Forgetting("general", 2657, 4.392, 4.392, 8e-6, 0.001)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({}, "Silent failure: 40.0% of 70 tokens that were outranked before"),
        ({"trained": "no"}, "Overconfident: "),
        ({"trained": "no", "silent": replace(READING, excess_low=-0.1)}, "Fine: "),
        ({"before": None}, "Overconfident: "),
        ({"silent": FINE}, "Fine: no sign of silent failure; greedy decoding writes 2 of 8 answers exactly (20"),
        ({"silent": FINE, "after": replace(MODEL, answers=0)}, "Fine: no sign of silent failure (20 rows"),
        ({"silent": replace(FINE, behind=20, outranked=0.38, lost=0.45)},
         "Not fine: more tokens are outranked than before, as 45."),  # 36 lost and 18 won
        ({"silent": replace(FINE, behind=20, outranked=0.21, flipped=0.9, lost=0.2375)},
         "Fine: no sign of silent failure; "),  # 19 lost and 18 won: by chance
        ({"silent": BEHIND}, "Still outranked: the loss fell, but 49 of 70 tokens that were outranked before still "
         "are, 60.0% behind another word than before (20 rows"),
        ({"silent": BEHIND, "nll_change": (0.2, 0.1, 0.3)}, "Not fine: the loss on the rows that it was trained on"),
        ({"silent": FINE, "nll_change": (-0.1, -0.3, 0.1)}, "Trained too little: the loss on the rows"),
        ({"silent": FINE, "nll_change": (0.2, 0.1, 0.3)}, "Not fine: the loss on the rows that it was trained on rose"),
        ({"silent": replace(FINE, share=0.4, share_high=0.5)}, "Cannot tell yet whether it fails silently: 40.0% of"),
        ({"silent": replace(FINE, share=0.0, share_high=0.2)},
         "Cannot tell yet for certain: no token failed silently, but 70 tokens that were outranked before are too few "
         "to rule it out. Read more rows (--data) (20 rows"),
        ({"silent": replace(FINE, share=0.0, share_high=0.2), "set": "train"},
         "Cannot tell for certain: no token failed silently, but 70 tokens that were outranked before are too few to "
         "rule it out (20 rows"),
        ({"silent": FINE, "forgetting": replace(GUARD, nll=6.738, changed=1.0)},
         "Not fine, it forgot: on 2,657 tokens of other text (guard set `general`) the loss rose by 2.346 nats per "
         "token, and the first choice changed at 100.0%. On the rows: no sign of silent failure; greedy decoding"),
        ({"silent": FINE, "forgetting": replace(GUARD, nll=4.472, changed=0.1)}, "Fine: no sign"),
        ({"silent": replace(READING, behind=0, share=math.nan)}, "Cannot tell whether it fails silently: no token"),
        ({"silent": replace(READING, outranked=math.nan)}, "Cannot tell anything: scores are not finite"),
        ({"trained": "unknown"}, "Cannot tell whether it fails silently: it is not known whether"),
        ({"silent": SAME, "forgetting": GUARD, "nll_change": (-0.15, math.nan, math.nan)},
         "Trained too little: the model is almost unchanged: another first choice at 0 of 100 places, and on other "
         "text nearly the same predictions (KL 8.0e-06 nats). Whether it fails silently cannot be told: too few rows"),
    ],
)  # fmt: skip
def test_the_first_line_is_a_verdict(changes: dict[str, Any], start: str) -> None:
    audit = made(**changes)
    assert headline(audit).startswith(start)
    assert "100 tokens)" in headline(audit)
    assert f"## In short\n\n**{headline(audit)}**\n" in page_of(audit)


def test_what_was_forgotten_stands_in_the_first_line() -> None:
    forgot = replace(GUARD, nll=6.738, changed=1.0)
    assert headline(made(forgetting=forgot)).endswith(
        "(20 rows, 100 tokens). Besides, it forgot: on 2,657 tokens of other text (guard set `general`) the loss rose "
        "by 2.346 nats per token, and the first choice changed at 100.0%."
    )
    assert ". Either way it forgot: on 2,657" in headline(made(forgetting=forgot, trained="unknown"))
    held_out = {"trained": "no", "silent": replace(READING, excess_low=-0.1)}
    assert headline(made(forgetting=forgot, **held_out)).startswith("Not fine, it forgot: ")
    fine = made(silent=FINE, forgetting=forgot, contexts=[], asked=Asked([], ["run.yaml"], 1e-3))
    assert "It forgot other text: train again at a lower learning rate (it was 0.001), or for fewer steps" in page_of(
        fine
    )
    assert "lightning fit run.yaml --lr 0.0001\n" in page_of(fine)


def test_special_tokens_carry_no_first_line() -> None:
    """149 of 152 end tokens are learned, and 72 of 239 others; of the 200 others that were ahead 90 were lost."""
    some = replace(FINE, rows=152, tokens=391, behind=391, flipped=221 / 391, displaced=170 / 391)
    end = replace(FINE, rows=152, tokens=152, behind=152, share=0.0, share_high=0.03, flipped=149 / 152,
                  displaced=3 / 152)  # fmt: skip
    words = replace(FINE, rows=152, tokens=239, behind=239, flipped=72 / 239, displaced=167 / 239)
    special = SpecialTokens(["<|im_end|>"], True, end, words)
    told = verdicts(some, "yes", compared=True, special=special)
    audit = made(silent=some, special=special, verdicts=told, after=replace(MODEL, answers=152, exact=0.0))
    assert headline(audit) == (
        "Still outranked: the loss fell, but 167 of 239 tokens that were outranked before still are, special tokens "
        "left out, 69.9% behind another word than before (152 rows, 391 tokens)."
    )
    assert (
        "- Of 239 tokens that are not special, 167 still are outranked; of 152 places where the end of the answer "
        "(`<|im_end|>`) was outranked before, 3 still are (there the model goes on where the data end the answer)."
    ) in page_of(audit)
    lost = replace(words, behind=39, flipped=0.6, lost=0.45)
    all_lost = replace(some, behind=191, flipped=0.9, lost=0.45)
    special = replace(special, words=lost)
    told = verdicts(all_lost, "yes", compared=True, special=special)
    assert headline(made(silent=all_lost, special=special, verdicts=told)).startswith(
        "Not fine: more tokens are outranked than before, special tokens left out, as 45.0% of the first choices"
    )
    alone = SpecialTokens(["<|im_end|>"], True, end, None)
    told = verdicts(end, "yes", compared=True, special=alone)
    assert headline(made(silent=end, special=alone, verdicts=told)).startswith(
        "Cannot tell whether it fails silently: all are special tokens, such as the end of an answer (152"
    )
    assert "all 152 trained tokens are special tokens" in page_of(made(silent=end, special=alone, verdicts=told))


def test_one_token_is_no_tokens() -> None:
    one = replace(READING, rows=1, tokens=1, behind=1, share_low=math.nan, share_high=math.nan, excess_low=math.nan)
    page = page_of(made(silent=one))
    assert "(1 row, 1 token)" in headline(made(silent=one))
    assert not re.search(r"\b1 (tokens|rows|places|answers)\b", page)


def test_most_answers_inexact_asks_for_more_steps() -> None:
    audit = made(silent=FINE, contexts=[], asked=Asked([], ["run.yaml"], None), after=replace(MODEL, step=40))
    why, command = first_step(audit, Path("out"))
    assert why.endswith("Only 2 of 8 answers would be written exactly: train for more steps than 40:")
    assert command.split() == "lightning fit run.yaml --max_steps 80".split()


def test_a_model_is_unchanged_only_where_nothing_moved() -> None:
    same = made(silent=SAME, forgetting=GUARD, nll_change=(-0.15, math.nan, math.nan))
    assert "That says nothing of forgetting" in page_of(same)
    for changes in (
        {"nll_change": (-2.0, math.nan, math.nan)},
        {"forgetting": replace(GUARD, kl=0.1)},
        {"forgetting": replace(GUARD, changed=0.1)},
        {"silent": replace(SAME, flipped=0.2)},
        {"silent": replace(SAME, lost=0.2)},
        {"forgetting": None},
    ):
        moved = replace(same, **changes)
        assert "almost unchanged" not in page_of(moved)
        assert "says nothing of forgetting" not in page_of(moved)


def test_the_next_commands_can_be_copied() -> None:
    arguments = ["--before=a b", "--after", "x", "--config", "run.yaml", "--rows=3", "--set", "train"]
    audit = made(silent=SAME, forgetting=GUARD, nll_change=(-0.15, math.nan, math.nan),
                 asked=Asked(arguments, ["run.yaml"], 2e-7))  # fmt: skip
    kept = "lightning audit run.yaml '--before=a b' --after x"  # the file as one types it
    page = page_of(audit)
    assert "lightning fit run.yaml --lr 2e-06\n" in page
    assert f"{kept} --data ROWS.jsonl --trained yes\n" in page
    assert "RUN.yaml" not in page
    assert f"{kept} --set train --rows null\n" in page_of(replace(audit, total_rows=2000))


def test_the_end_of_answers_is_counted_apart() -> None:
    end = replace(READING, tokens=20, behind=20, share=0.9, flipped=0.05, outranked=0.95)
    words = replace(READING, tokens=80, behind=50, share=0.2, outranked=0.5)
    found = SpecialTokens(["<|im_end|>"], True, end, words)
    page = page_of(made(special=found))
    assert (
        "- It does not always stop where the data do. Of 20 places where the end of the answer (`<|im_end|>`) was "
        "outranked before, 19 still are, 18 of them with a lower loss and behind the same token; of all other tokens, "
        "40 of 50."
    ) in page
    displaced = page_of(made(special=replace(found, special=replace(end, share=0.0))))
    assert "It does not always stop where the data do. Of 20 places" in displaced, "whichever token is ahead"
    assert "before, 19 still are; of all other tokens" in displaced
    never = page_of(made(special=replace(found, special=replace(end, flipped=0.0))))
    assert "It does not stop where the data do. Of 20 places" in never
    one = replace(end, flipped=0.95, share=0.05)
    assert "before, 1 still is, " in page_of(made(special=replace(found, special=one)))
    assert " stop where" not in page_of(made(special=replace(found, special=replace(end, flipped=1.0))))
    assert " stop where" not in page_of(made(special=replace(found, ends=False)))
    alone = page_of(made(before=None, special=found))
    assert (
        "The end of the answer (`<|im_end|>`): outranked at 95.0% of 20 places; all other tokens: 50.0% of 80." in alone
    )


def test_a_probe_says_its_words_and_whether_it_was_trained() -> None:
    def reading(loss: float) -> dict[str, float]:
        return dict.fromkeys(("p_correct", "p_competitor", "rank", "phi", "signal", "drag"), 0.1) | {"loss": loss}

    advice = "if it is not, training did not carry over to it"
    verdict = Verdict("loss did not fall", (), None, (), "", advice)
    probe = Probe("We would be", "glad", "happy", name="one", split="test")
    fell = ProbeOutcome(probe, reading(2.0), reading(1.97), verdict, 0.0, 0.0)
    rose = replace(fell, probe=replace(probe, name="two", split=None), after=reading(2.1))
    page = page_of(made(probes=[fell, rose]))
    assert "| `one` | held out | `...We would be` | `glad` | `happy` | loss fell by less than 0.05 nats |" in page
    assert "| `two` | not said | `...We would be` | `glad` | `happy` | loss did not fall |" in page
    assert f"- loss fell by less than 0.05 nats: {advice}" in page


def test_a_probe_ahead_of_its_named_word_alone_is_no_plain_flip() -> None:
    reading = dict.fromkeys(("p_correct", "p_competitor", "rank", "phi", "signal", "drag", "loss"), 0.1)
    verdict = Verdict("flipped", (), 1, (), "", "train longer", others_ahead=3)
    found = ProbeOutcome(Probe("We would be", "glad", "happy", name="one"), reading, reading, verdict, 0.0, 0.0)
    first = replace(found, verdict=replace(verdict, advice="", others_ahead=0))
    page = page_of(made(probes=[found, first]))
    assert "Of 2 near-synonym probes: 1 x flipped, but other words are ahead; 1 x flipped." in page
    assert "| `glad` | `happy` | flipped, but other words are ahead |" in page


def test_intervals_are_spoken_of_only_where_there_are_some() -> None:
    none = replace(READING, rows=3, share_low=math.nan, excess_low=math.nan)
    assert "Intervals are" in page_of(made())
    assert "Intervals are" not in page_of(made(silent=none, nll_change=(-0.5, math.nan, math.nan)))
