"""Whether a text can be the value of a setting."""

from __future__ import annotations

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.listing import Setting

NULL = ("null", "~", "", "Null", "NULL")
_BOOL = ("true", "false", "yes", "no", "on", "off", "1", "0")


def is_inline(text: str) -> bool:
    """Return whether a text is a list or a mapping."""
    return text.lstrip()[:1] in ("{", "[") or "\n" in text


def fits(text: str, setting: Setting) -> bool:
    """Return whether the parser may take a text; no is certain, yes is not."""
    takes = set(setting.takes)
    if takes & {"str", "flag"} or (is_inline(text) and takes & {"list", "dict", "class"}):
        return True
    return (
        ("null" in takes and text in NULL)
        or ("bool" in takes and text.lower() in _BOOL)
        or ("float" in takes and is_number(text))
        or ("int" in takes and is_whole(text))
        or text in setting.choices
        or ("dict" in takes and not takes & {"class", "choice"})
        or ("list" in takes and not setting.bases)
    )


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number, as YAML writes them: 10, 1_000 and 0x10, not 2.5 or 1e1."""
    digits = text.strip().lstrip("+-").replace("_", "").lower()
    return digits.isdecimal() or digits[:2] in ("0x", "0b", "0o")


def names_devices(value: str | yaml.Node) -> bool:
    """Return whether a value can be ``trainer.devices``: how many, ``auto``, -1 for all, or a list of numbers."""
    if isinstance(value, yaml.SequenceNode):
        return all(isinstance(one, yaml.ScalarNode) and is_whole(one.value) for one in value.value)
    text = value if isinstance(value, str) else str(value.value)
    if "," in text:
        return all(is_whole(one) for one in text.rstrip(", ").split(","))
    return text in ("auto", "-1") or (text.isdecimal() and int(text) > 0)


def is_number(text: str) -> bool:
    """Return whether a text is a number, as 1e-4 is."""
    try:
        float(text)
    except ValueError:
        return False
    return True
