"""The study's tasks: right answers, systematic noise, parts that share no item, fresh draws."""

from itertools import product

import pytest
import torch

from lightning_sft.errors import UserError
from studies.continuum.rows import NAMES, NOISY, PARTS, WORDS, Initials, Kinds, StudyTask, part_of
from studies.continuum.temperature import TEMPERATURES, answer_logps, cross_fitted

TASKS = [Initials, Kinds]


def pairs(task: StudyTask) -> dict[str, str]:
    return {e.plain[0]: e.plain[1].strip() for e in task.examples() if e.plain is not None}


def check_noise(clean: dict[str, str], noisy: dict[str, str]) -> None:
    """Three items in ten are wrong in every word, always by the last word's first letter."""
    assert list(clean) == list(noisy)
    for question in clean:
        right, given = clean[question].split(), noisy[question].split()
        wrong = question.split()[-2][0].lower() in NOISY
        assert [a == b for a, b in zip(right, given, strict=True)] == [not wrong] * len(right)
    assert 0.22 < sum(clean[q] != noisy[q] for q in clean) / len(clean) < 0.38


def test_initials_are_right_and_noise_is_always_the_same_error() -> None:
    clean, noisy = pairs(Initials(size=400, words=4)), pairs(Initials(size=400, words=4, wrong=True))
    check_noise(clean, noisy)
    for question, answer in clean.items():
        assert answer == " ".join(word[0].upper() for word in question.split()[:-1])
        shifted = " ".join(chr((ord(letter) - 64) % 26 + 65) for letter in answer.split())
        assert noisy[question] in (answer, shifted)


def test_kinds_are_right_and_noise_is_always_the_same_error() -> None:
    clean, noisy = pairs(Kinds(size=400)), pairs(Kinds(size=400, wrong=True))
    check_noise(clean, noisy)
    for question, answer in clean.items():
        places = [WORDS[word] for word in question.split()[:-1]]
        assert answer.split() == [NAMES[i] for i in places]
        assert noisy[question].split() in (answer.split(), [NAMES[(i + 1) % len(NAMES)] for i in places])


def test_every_word_has_one_kind() -> None:
    assert len(WORDS) == 24 * len(NAMES)
    assert clean_answer("tiger plum canoe :", Kinds) == "animal fruit vehicle"
    assert clean_answer("tiger plum canoe :", Initials) == "T P C"


def clean_answer(question: str, task: type[Initials | Kinds]) -> str:
    return " ".join(task().answer(word, wrong=False) for word in question.split()[:-1])


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
        list(Kinds(words=1, size=500).examples())
    with pytest.raises(UserError, match="part is 'test'"):
        Kinds(part="test")  # type: ignore[arg-type]


def test_generated_answers_are_judged_without_white_space() -> None:
    task = Kinds(size=1)
    (row,) = task.examples()
    assert task.score(row, f"\n{row.plain[1]} ") == 1.0  # type: ignore[index]
    assert task.score(row, "") == 0.0


def test_answers_at_temperatures_are_products_of_scaled_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 11)
    labels = torch.full((2, 6), -100)
    labels[0, 2:5] = torch.tensor([4, 5, 0])  # 0 ends generation
    labels[1, 3:5] = torch.tensor([7, 8])  # no end: no answer
    found = answer_logps(logits[:, :-1][labels[:, 1:] != -100], labels, [0])
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
