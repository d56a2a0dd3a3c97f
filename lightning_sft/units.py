"""Times, counts and adapters as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a time.

    >>> duration(45), duration(180), duration(200), duration(7500)
    ('45 s', '3 min', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, unit, rest, below = (whole // 60, "min", whole % 60, "s")
    if whole >= 3600:
        large, unit, rest, below = (whole // 3600, "h", whole % 3600 // 60, "min")
    return f"{large} {unit} {rest} {below}" if rest else f"{large} {unit}"


def pace(number: float) -> str:
    """Return how many in a second: whole numbers, and of slow ones two digits.

    >>> pace(1234.5), pace(12.3), pace(3.14), pace(0.42)
    ('1,234', '12', '3.1', '0.42')
    """
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def count(number: float) -> str:
    """Return a number of parameters or tokens, with three digits.

    >>> count(999), count(31_100), count(134_515_008), count(8.03e9)
    ('999', '31.1 k', '135 M', '8.03 B')
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= size:
            scaled = number / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return f"{number:,.0f}"


def probability(p: float) -> str:
    """Return a mean probability: three decimals, and of a small one two digits, so that it is not 0.000.

    >>> probability(0.71828), probability(0.0561), probability(0.000241)
    ('0.718', '0.056', '0.00024')
    """
    return f"{p:.3f}" if p >= 0.1 or p == 0 else f"{p:.2g}"


def plural(number: int, noun: str) -> str:
    """Return a number of things.

    >>> plural(1, "row"), plural(2000, "row")
    ('1 row', '2,000 rows')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def was(number: int) -> str:
    """Return the verb of a number of things in the past."""
    return "was" if number == 1 else "were"


def are(number: int) -> str:
    """Return the verb of a number of things."""
    return "is" if number == 1 else "are"


def adapter_kind(name: str) -> str:
    """Return an adapter as it is called, from the name of its configuration's class.

    >>> adapter_kind("LoraConfig"), adapter_kind("peft.AdaLoraConfig"), adapter_kind("IA3Config")
    ('LoRA', 'AdaLoRA', 'IA3')
    """
    return name.rpartition(".")[2].removesuffix("Config").replace("Lora", "LoRA")
