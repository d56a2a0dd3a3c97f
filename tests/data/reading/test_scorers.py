"""Scorers of answers: what they count as right, against plain references, and what a user's own may return."""

import json

import pytest
from jsonargparse import ArgumentParser

from lightning_sft.data import ReasoningGymTask, Scorer, SFTDataModule, Source
from lightning_sft.data.reading.scorers import SCORERS, as_scorer, last_number, scored
from lightning_sft.errors import UserError
from tests.toys import toy_tokenizer


class Halves(Scorer):
    """A user's: half a point for the first letter."""

    def __init__(self, points: float = 0.5) -> None:
        self.points = points

    def score(self, answer: str, reference: str) -> float | None:
        return self.points if answer[:1] == reference[:1] else 0.0


@pytest.mark.parametrize(
    ("name", "answer", "reference", "expected"),
    [
        ("exact_match", " Paris\n", "Paris", 1),
        ("exact_match", "paris", "Paris", 0),
        ("ignore_case", "STRASSE", "Straße", 1),
        ("ignore_case", "Paris.", "Paris", 0),
        ("contains", "It is paris, of course", "Paris", 1),
        ("contains", "Parisians", "Paris", 0),
        ("contains", "the answer is 15", "5", 0),
        ("contains", "the answer is 5.5", "5", 0),
        ("contains", "the answer is 1,500", "500", 0),
        ("contains", "the answer is 5.", "5", 1),
        ("contains", "答案是北京市", "北京", 1),
        ("contains", "a+b", "a+b", 1),
        ("contains", "anything", "", 0),
        ("last_number", "5 + 7 = 12, so it is 12.00 dollars", "#### 12", 1),
        ("last_number", "1,200", "#### 1200", 1),
        ("last_number", "it is -5", "5", 0),
        ("last_number", "10-5", "5", 1),
        ("last_number", "no idea", "5", 0),
        ("last_number", "5", "no number here", None),
    ],
)
def test_what_counts_as_right(name, answer, reference, expected):
    assert scored(as_scorer(name), answer, reference) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x = \u22127", "-7"),
        ("1,2,3", "3"),
        ("12,345,678.5", "12345678.5"),
        ("1e3", "1000"),
        (".5", "0.5"),
        ("3.", "3"),
    ],
)
def test_the_last_number(text, value):
    assert str(last_number(text).normalize() + 0) == value
    assert last_number("none") is None


def edits(a: str, b: str) -> int:
    """Levenshtein's distance, as in a textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row, before = [i], row
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_similarities():
    pytest.importorskip("rapidfuzz")
    for a, b in (("kitten", "sitting"), ("", "abc"), ("same", "same"), ("flaw", "lawn")):
        expected = 1 - edits(a, b) / max(len(a), len(b))
        assert scored(as_scorer("edit_similarity"), a, b) == pytest.approx(expected)
    # Winkler's own examples
    for a, b, expected in (("MARTHA", "MARHTA", 0.9611), ("DIXON", "DICKSONX", 0.8133), ("DWAYNE", "DUANE", 0.84)):
        assert scored(as_scorer("jaro_winkler"), a, b) == pytest.approx(expected, abs=1e-4)


def test_rows_without_an_answer_and_sources_without_a_scorer_give_no_score():
    assert scored(as_scorer("contains"), "words", None) is None
    assert scored(None, "words", "words") is None


@pytest.mark.parametrize("value", [2, -0.1, float("nan"), "many"])
def test_a_scorer_that_gives_no_share_is_refused(value):
    class Wrong(Scorer):
        def score(self, answer, reference):
            return value

    with pytest.raises(UserError, match=r"The scorer Wrong gave .* Allowed: a number from 0"):
        scored(Wrong(), "an answer", "a reference")


def test_an_unknown_scorer_names_the_known():
    with pytest.raises(UserError, match=r"score is 'bleu'. Allowed: exact_match, ignore_case"):
        Source("rows.jsonl", score="bleu")


def test_every_name_can_be_written_in_a_configuration(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "say", "completion": "Word"}) + "\n")
    parser = ArgumentParser()
    parser.add_class_arguments(SFTDataModule, "data")
    for score in (*SCORERS, {"class_path": f"{__name__}.Halves", "init_args": {"points": 0.25}}):
        source = {"class_path": "lightning_sft.data.Source", "init_args": {"path": str(path), "score": score}}
        config = parser.parse_object({"data": {"test": source, "cache_dir": False}})
        data = parser.instantiate_classes(config).data
        data.tokenizer = toy_tokenizer()
        data.setup("test")
        (row,) = data.generation_rows("test")
        expected = 0.25 if isinstance(score, dict) else None if score == "last_number" else 1.0
        assert data.score(row, "Word") == expected, score


def test_a_task_is_judged_by_itself_or_by_another():
    def judged(**options):
        data = SFTDataModule(test=ReasoningGymTask("chain_sum", size=2, **options), tokenizer=toy_tokenizer())
        data.setup("test")
        (row, _) = data.generation_rows("test")
        return [data.score(row, text.format(row.reference)) for text in ("{}", "it is {}", "none")]

    assert judged() == judged(score="task") == [1, 0, 0]
    assert judged(score="last_number") == [1, 1, 0]
    assert judged(score=None) == [None] * 3
    with pytest.raises(UserError, match="score is 'tasks'"):
        ReasoningGymTask("chain_sum", score="tasks")
