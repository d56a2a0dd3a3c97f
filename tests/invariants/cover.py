"""Few cases in which every two values of two factors meet."""

import itertools
from collections.abc import Collection, Mapping, Sequence

Case = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs_of(case: Case) -> set[Pair]:
    """Every two (factor, value) of a case."""
    return {frozenset(two) for two in itertools.combinations(case.items(), 2)}


def pairwise(factors: Mapping[str, Sequence[str]], refused: Collection[Pair] = ()) -> list[Case]:
    """Cases that hold every pair of values but those ``refused``, each with the most pairs that are still missing."""
    products = (dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values()))
    every = [case for case in products if pairs_of(case).isdisjoint(refused)]
    missing: set[Pair] = set().union(*map(pairs_of, every))
    chosen: list[Case] = []
    while missing:
        best = max(every, key=lambda case: len(pairs_of(case) & missing))
        chosen.append(best)
        missing -= pairs_of(best)
    return chosen
