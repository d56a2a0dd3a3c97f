"""Text and the spans of it that are trained -> token ids and a mask, in time linear in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.template import ChatTemplate, Span
from lightning_sft.data.encoding.weights import Weighted, of_tokens
from lightning_sft.data.types import BadRowError, Encoded, MaskFrom

HEADER, MOST_HEADERS = 100, 1000
"""Characters of a text whose ids are kept, and how many such texts."""


class SpanTokenizer:
    """Tokenises texts so that each span begins and ends between two tokens.

    A generating model reads the tokens of the text before a span, then writes. So the ids of the whole text must begin
    with the ids of every such prefix; where a tokenizer merges across a boundary, the pieces are tokenised on their
    own, and the result must still decode to the text.

    Args:
        template: knows the tokenizer and its special tokens.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.tokenizer = template.tokenizer
        self.special = template.special
        self._headers: dict[str, list[int]] = {}
        """Ids of short texts between a special token and a cut: the same few in every row."""

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without what the tokenizer adds around texts."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def __call__(self, text: str, spans: Sequence[Span], mask: MaskFrom, weighted: Sequence[Weighted] = ()) -> Encoded:
        """Return the ids of ``text`` with those of ``spans`` trained; what weighs 0 is not.

        Raises:
            BadRowError: the tokenizer cannot keep a span apart from what stands before it, or tell the tokens of
                weighted characters.
        """
        ids = self.ids(text)
        cuts = sorted({cut for span in spans for cut in span if 0 < cut < len(text)})
        whole, positions = ids, self._positions(text, ids, cuts)
        if positions is None:
            ids, positions = self._apart(text, ids, cuts)
        positions |= {0: 0, len(text): len(ids)}
        trained = np.zeros(len(ids), np.bool_)
        for start, end in spans:
            trained[positions[start] : positions[end]] = True
        weights = of_tokens(len(ids), positions, self._begins(text, whole, ids, weighted, positions), weighted)
        trained &= weights != 0
        plain = bool((weights[trained] == 1).all())
        return Encoded(np.array(ids, np.int32), trained, mask, None if plain else weights)

    def _begins(
        self,
        text: str,
        whole: list[int],
        ids: list[int],
        weighted: Sequence[Weighted],
        positions: Mapping[int, int],
    ) -> list[int] | None:
        """Return the first character of each token, where characters inside of spans are weighted."""
        inside = any(place not in positions for span, _ in weighted for place in span)
        if not inside or ids != whole or not self.tokenizer.is_fast:
            return None
        given = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [start for start, _ in given["offset_mapping"]]

    def _positions(self, text: str, ids: list[int], cuts: Sequence[int]) -> dict[int, int] | None:
        """Return how many tokens stand before each cut; None where a prefix has tokens of its own.

        A tokenizer never merges across a special token. So of a prefix only what follows its last special token is
        tokenised again; the tokens before are those of the whole.
        """
        places = [match.span() for match in self.special.finditer(text)] if cuts else []
        names = [text[start:end] for start, end in places]
        known: Any = self.tokenizer.convert_tokens_to_ids(list(dict.fromkeys(names)))
        at = np.flatnonzero(np.isin(ids, known)).tolist()
        if names != self.tokenizer.convert_ids_to_tokens([ids[i] for i in at]):
            places, at = [], []
        positions: dict[int, int] = {}
        behind = 0
        for cut in cuts:
            while behind < len(places) and places[behind][1] <= cut:
                behind += 1
            start, before = (places[behind - 1][0], at[behind - 1]) if behind else (0, 0)
            part = text[start:cut]
            prefix = self._header(part)
            if ids[before : before + len(prefix)] != prefix:
                return None
            positions[cut] = before + len(prefix)
        return positions

    def _header(self, text: str) -> list[int]:
        if len(text) > HEADER:
            return self.ids(text)
        if text not in self._headers:
            if len(self._headers) >= MOST_HEADERS:
                self._headers.clear()
            self._headers[text] = self.ids(text)
        return self._headers[text]

    def _apart(self, text: str, whole: list[int], cuts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """Return ids, and the position of each cut, of the pieces of ``text`` tokenised one by one.

        Tokenizers of the SentencePiece kind put a space before each text; after a line break they do not.
        """
        bounds = [0, *cuts, len(text)]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        for tokenize in (self.ids, self._ids_inside):
            parts = [self.ids(pieces[0]), *map(tokenize, pieces[1:])]
            ids = [token for part in parts for token in part]
            if self.tokenizer.decode(ids) == self.tokenizer.decode(whole):
                return ids, dict(zip(bounds, accumulate(map(len, parts), initial=0), strict=True))
        at = text[max(cuts[0] - 10, 0) : cuts[0] + 10]
        raise BadRowError(f"the tokenizer cannot keep prompt and answer apart (near {at!r})", Code.TOKENIZER)

    def _ids_inside(self, text: str) -> list[int]:
        """Return the ids of ``text`` as of a piece that does not begin a text."""
        before, both = self.ids("\n"), self.ids("\n" + text)
        return both[len(before) :] if both[: len(before)] == before else self.ids(text)
