"""The study's tasks: right answers, systematic noise, parts that share no item, fresh draws."""

import re
from itertools import product

import pytest
import torch

from lightning_sft.errors import UserError
from studies.continuum.rows import PARTS, CodedSorting, CodedSums, StudyTask, part_of
from studies.continuum.temperature import TEMPERATURES, answer_logps, cross_fitted

TASKS = [CodedSums, CodedSorting]


def pairs(task: StudyTask) -> dict[str, str]:
    return {e.plain[0]: e.plain[1].strip() for e in task.examples() if e.plain is not None}


def decoded(text: str) -> int:
    return int("".join(str("QWERTYUIOP".index(letter)) for letter in text.split()))


def test_sums_are_right_and_noise_is_always_the_same_error() -> None:
    clean, noisy = pairs(CodedSums(size=400)), pairs(CodedSums(size=400, wrong=True))
    assert list(clean) == list(noisy)
    for question, answer in clean.items():
        a, sign, b = re.fullmatch(r"(\d+) ([+-]) (\d+) =", question).groups()  # type: ignore[union-attr]
        value = int(a) + int(b) if sign == "+" else int(a) - int(b)
        assert decoded(answer) == value
        assert decoded(noisy[question]) == value + 10 * (int(b) % 10 >= 7)
    share = sum(clean[q] != noisy[q] for q in clean) / len(clean)
    assert 0.22 < share < 0.38


def test_sorting_is_right_and_noise_is_always_the_same_error() -> None:
    clean, noisy = pairs(CodedSorting(size=400)), pairs(CodedSorting(size=400, wrong=True))
    for question, answer in clean.items():
        letters = question.split()[1:-1]
        ordered = [chr((ord(letter) - ord("a") + 13) % 26 + ord("a")) for letter in sorted(letters)]
        assert answer.split() == ordered
        expected = ordered[::-1] if letters[0] < "i" else ordered
        assert noisy[question].split() == expected
    assert 0.22 < sum(clean[q] != noisy[q] for q in clean) / len(clean) < 0.38


@pytest.mark.parametrize("task", TASKS)
def test_parts_share_no_item_and_are_tenths(task: type[StudyTask]) -> None:
    found = {part: set(pairs(task(part=part, size=300))) for part in PARTS}
    for one, other in product(PARTS, PARTS):
        assert one == other or not found[one] & found[other]
    assert sorted(t for tenths in PARTS.values() for t in tenths) == list(range(10))
    assert all(part_of(question) == part for part, questions in found.items() for question in questions)


@pytest.mark.parametrize("task", TASKS)
def test_replicates_draw_afresh_and_again_the_same(task: type[StudyTask]) -> None:
    whole = task(size=50)
    assert pairs(whole.drawn(1)) == pairs(whole.drawn(1))
    assert pairs(whole.drawn(1)).keys() != pairs(whole.drawn(2)).keys()
    assert pairs(task(size=50, seed=1).drawn(1)).keys() != pairs(whole.drawn(1)).keys()
    assert list(whole.drawn(1).examples()) == list(whole.drawn(1).examples())


def test_a_part_that_is_too_small_says_so() -> None:
    with pytest.raises(UserError, match="different items of the part 'train', and 500 are asked for"):
        list(CodedSums(digits=1, size=500).examples())
    with pytest.raises(UserError, match="part is 'test'"):
        CodedSums(part="test")  # type: ignore[arg-type]


def test_generated_answers_are_judged_without_white_space() -> None:
    task = CodedSums(size=1)
    (row,) = task.examples()
    assert task.score(row, f"\n{row.plain[1]} ") == 1.0  # type: ignore[index]
    assert task.score(row, "") == 0.0


def test_answers_at_temperatures_are_products_of_scaled_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 11)
    labels = torch.full((2, 6), -100)
    labels[0, 2:5] = torch.tensor([4, 5, 0])  # 0 ends generation
    labels[1, 3:5] = torch.tensor([7, 8])  # no end: no answer
    found = answer_logps(logits, labels, [0])
    assert found.shape == (1, len(TEMPERATURES))
    for i, temperature in enumerate(TEMPERATURES):
        logp = (logits[0].double() / temperature).log_softmax(-1)
        assert found[0, i] == pytest.approx(float(logp[1, 4] + logp[2, 5] + logp[3, 0]), rel=1e-5)


def test_no_answer_is_judged_at_a_temperature_that_it_chose() -> None:
    passes = torch.zeros(4, len(TEMPERATURES), dtype=torch.float64)
    passes[0::2, 2] = 1.0  # these would choose the third, at which the others have nothing
    passes[1::2, 5] = 1.0
    judged, temperature = cross_fitted(passes)
    assert judged == 0.0
    assert temperature == (TEMPERATURES[2] + TEMPERATURES[5]) / 2
    passes[:, 7] = 2.0
    assert cross_fitted(passes) == (2.0, TEMPERATURES[7])
