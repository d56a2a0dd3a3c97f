"""Mining: probes from a user's own text, where the model prefers a near-synonym of the word that is written there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.models.instruments import model_to_read
from lightning_sft.probes.forward import evaluation, layer_rows
from lightning_sft.probes.probe import Probe
from lightning_sft.probes.wordnet import are_synonyms

WORD = re.compile(r"[A-Za-z]{3,}")
FUNCTION_WORDS = frozenset(
    "the and but nor for yet not you him her his she they them their our your its who whom whose which that this these "
    "those what when where why how all any both each few more most some such than too very can could may might must "
    "shall should will would have has had having been being are was were did does done from into onto upon with "
    "within without about above after again against among around before behind below between beyond down during here "
    "there near off once only out over own same since then through toward towards under until while because although "
    "though unless whether one two three four five six seven eight nine ten first second last next other another many "
    "much also just ever never always now even still".split()
)


@dataclass(frozen=True)
class Mined:
    """A mined probe and its evidence.

    Attributes:
        probe: the probe.
        margin: logit of the competitor minus that of the correct word: how badly the model prefers the wrong one.
        overlap: cosine of their embedding rows.
        p_correct: probability of the correct word.
        p_competitor: probability of the competitor.
        wordnet: whether WordNet knows them as synonyms; None where it was not asked.
    """

    probe: Probe
    margin: float
    overlap: float
    p_correct: float
    p_competitor: float
    wordnet: bool | None


def mine_probes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    top: int = 50,
    min_overlap: float = 0.5,
    min_probability: float = 0.01,
    wordnet: Path | None = None,
    per_pair: int = 1,
    context_tokens: int = 48,
) -> list[Mined]:
    """Find positions whose strongest wrong candidate is a near-synonym of the word that is written there.

    A position counts if the written word and the model's first choice are whole words of one token each, not forms of
    one another, no function words, and near-synonyms: by WordNet, where its folder is given, else by the cosine of
    their embedding rows together with both being likely in the context.

    Args:
        model: the model, as it is before fine-tuning.
        tokenizer: its tokenizer.
        texts: the user's held-out texts.
        top: the most probes to return.
        min_overlap: least cosine of the two embedding rows.
        min_probability: least probability of the written word: a word the model thinks impossible is rarely a
            near-synonym of the one it expects.
        wordnet: folder of WordNet's database; None goes without.
        per_pair: the most probes of one pair of words.
        context_tokens: tokens of context that a probe keeps; cut at the beginning of a word.

    Returns:
        Mined probes, those the model gets wrong the worst first.
    """
    model = model_to_read(model)
    rows = torch.nn.functional.normalize(layer_rows(model.get_input_embeddings()).float(), dim=1)
    words = _words(tokenizer, len(rows))
    usable = torch.tensor([w is not None for w in words], device=rows.device)
    found: list[Mined] = []
    with torch.no_grad(), evaluation(model):
        for text in texts:
            ids = list(tokenizer(text).input_ids)
            for start in range(0, max(len(ids) - 1, 0), 256):
                window = ids[max(0, start - context_tokens) : start + 257]
                skip = min(start, context_tokens)
                for i, other, p_correct, p_other in _behind(model, window, skip, usable, min_probability):
                    target = window[i + 1]
                    overlap = float(rows[target] @ rows[other])
                    a, b = words[target], words[other]
                    if a is None or b is None or overlap < min_overlap or _same_stem(a, b):
                        continue
                    known = None if wordnet is None else are_synonyms(a, b, wordnet)
                    context = _context(tokenizer, window[: i + 1][-context_tokens:], target)
                    if known is False or context is None:
                        continue
                    probe = Probe(context, a, b)
                    margin = float(torch.tensor(p_other / p_correct).log())
                    found.append(Mined(probe, margin, overlap, p_correct, p_other, known))
    return _best(found, top, per_pair)


def _behind(
    model: PreTrainedModel, ids: Sequence[int], skip: int, usable: Tensor, least: float
) -> Iterator[tuple[int, int, float, float]]:
    """Yield positions, first choices and probabilities where the written word is likely but not the first choice."""
    window = torch.tensor([ids], device=usable.device)
    p = model(input_ids=window, use_cache=False).logits[0, :-1].float().softmax(-1)
    targets = window[0, 1:]
    p_correct = p.gather(1, targets[:, None])[:, 0]
    p_other, other = p.scatter(1, targets[:, None], 0.0).max(1)
    keep = usable[targets] & usable[other] & (p_other > p_correct) & (p_correct >= least)
    for i in keep.nonzero()[:, 0].tolist():
        if i >= skip:
            yield i, int(other[i]), float(p_correct[i]), float(p_other[i])


def _words(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[str | None]:
    """Return the word of every token that is one after a space, and None for the others."""
    texts = [str(tokenizer.decode([i])) for i in range(min(vocabulary, len(tokenizer)))]
    words = [t[1:] if t.startswith(" ") and WORD.fullmatch(t[1:]) else None for t in texts]
    words = [None if w is None or w.lower() in FUNCTION_WORDS else w for w in words]
    return [*words, *[None] * (vocabulary - len(words))]


def _same_stem(a: str, b: str) -> bool:
    """Return whether two words look like forms of one: alike but for a short ending, or for capitals."""
    a, b = sorted((a.lower(), b.lower()), key=len)
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    return shared >= 3 and len(a) - shared <= 3 and len(b) - shared <= 4


def _context(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], target: int) -> str | None:
    """Return the text of ids that tokenizes back to them and to the target after them, or None."""
    for start in range(min(len(ids) - 1, 8)):
        text = str(tokenizer.decode(list(ids[start:]), skip_special_tokens=True)).lstrip()
        together = list(tokenizer(text + str(tokenizer.decode([target])), add_special_tokens=False).input_ids)
        if text == text.rstrip() and text and together[-1] == target and together[1:-1] == list(ids[start + 1 :]):
            return text
    return None


def _best(found: Iterable[Mined], top: int, per_pair: int) -> list[Mined]:
    taken: dict[frozenset[str], int] = {}
    best: list[Mined] = []
    for mined in sorted(found, key=lambda m: -m.margin):
        pair = frozenset((mined.probe.correct.lower(), mined.probe.competitor.lower()))
        if taken.get(pair, 0) < per_pair and len(best) < top:
            taken[pair] = taken.get(pair, 0) + 1
            best.append(mined)
    return best


def read_texts(path: Path) -> Iterator[str]:
    """Yield texts: the paragraphs of a ``.txt`` file, or all strings of each row of a ``.jsonl`` file, joined.

    Raises:
        UserError: no such file, or another ending.
    """
    if not path.is_file():
        raise UserError(f"There is no data file {str(path)!r} (looked from {Path.cwd()}). Allowed: .txt, .jsonl.")
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        yield from (" ".join(p.split()) for p in content.split("\n\n") if p.strip())
    elif path.suffix == ".jsonl":
        for number, line in enumerate(content.splitlines(), start=1):
            if line.strip():
                try:
                    yield "\n".join(_strings(json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number} is no JSON: {error}") from error
    else:
        raise UserError(f"The data file {str(path)!r} ends in {path.suffix!r}. Allowed: .txt, .jsonl.")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key != "role":
                yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
