"""Whether a text can be the value of a setting."""

from __future__ import annotations

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
        or (bool(takes & {"int", "float"}) and is_number(text))
        or text in setting.choices
        or ("dict" in takes and not takes & {"class", "choice"})
        or ("list" in takes and not setting.bases)
    )


def is_number(text: str) -> bool:
    """Return whether a text is a number, as 1e-4 is."""
    try:
        float(text)
    except ValueError:
        return False
    return True
