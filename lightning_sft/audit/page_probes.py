"""The page's section on near-synonym probes."""

from __future__ import annotations

from lightning_sft.audit.probing import ProbeOutcome
from lightning_sft.audit.render import Block, Listing, Section, Table, as_code
from lightning_sft.audit.result import Audit
from lightning_sft.audit.summary import outcome

PHANTOM = 0.05  # share of the embeddings below which a change is the readout's alone
SPLITS = {"train": "trained on", "test": "held out", None: "not said"}


def probes_section(audit: Audit) -> Section:
    """Return the section; the audit has probes."""
    compared = audit.before is not None
    what = Table(
        ["probe", "its text is", "before the word", "right word", "competitor",
         *(["what happened"] if compared else []), "p right", "p competitor"],
        [[as_code(o.probe.name), SPLITS[o.probe.split], as_code("..." + o.probe.context),
          _answer(o.probe.correct, o.probe.correct_id), _answer(o.probe.competitor, o.probe.competitor_id),
          *([outcome(o)] if compared else []), _moved(o, "p_correct"), _moved(o, "p_competitor")]
         for o in audit.probes],
    )  # fmt: skip
    why = Table(
        ["probe", "order parameter", "signal", "drag", *(["embeddings' share"] if compared else [])],
        [[as_code(o.probe.name), *(_moved(o, name) for name in ("phi", "signal", "drag")),
          *([_share(o)] if compared else [])] for o in audit.probes],
    )  # fmt: skip
    blocks: list[Block] = [
        "A probe is a context whose right next word has a near-synonym that the model may prefer. The probe names that "
        "competitor itself; in the other tables it is the strongest token beside the right one.",
        what,
        *_advice(audit),
        "Why, in the order parameter and its two parts. The **signal** is the right word's lead over its "
        "competitor: negative while the competitor is likelier. The **drag** is what all other words add: positive "
        "where those that the model predicts are closer (by their embeddings) to the right word than to the "
        "competitor. The **order parameter** is the sum of both, and says which of the two words the prediction as "
        "a whole lies closer to. So it may be positive although the competitor is likelier.",
        why,
    ]
    if compared:
        blocks.append(
            "**Kinematic** failure: the signal stayed below a small bound, so the right word was pushed too little. "
            "**Structural** failure: the drag got worse while the loss fell. The **embeddings' share** says where the "
            "order parameter's change came from: near 100% from moved embeddings, near 0% from the layers in between. "
            "Neither is better; it says what a cure must act on."
        )
        shares = [s for o in audit.probes if (s := o.cause_share) is not None]
        if shares and max(shares) < PHANTOM:
            blocks.append(
                "The embeddings had next to no part in what changed: it was made by the layers in between (under LoRA "
                "it must be). A sudden jump of the order parameter would be a phantom here, in the readout and not in "
                "the geometry of the words; two finished models cannot show whether there was one."
            )
    return Section("Near-synonym probes", blocks)


def _advice(audit: Audit) -> list[Block]:
    advised = [o for o in audit.probes if o.verdict is not None and o.verdict.advice]
    lines = {f"{outcome(o)}: {o.verdict.advice}": None for o in advised if o.verdict is not None}
    return [Listing(list(lines))] if lines else []


def _answer(text: str, token: int | None) -> str:
    return as_code(text.strip() or f"token {token}")


def _moved(o: ProbeOutcome, name: str) -> str:
    now = f"{o.after[name]:.3f}"
    return now if o.before is None else f"{o.before[name]:.3f} -> {now}"


def _share(o: ProbeOutcome) -> str:
    share = o.cause_share if o.cause_share is not None else o.embeddings_share
    return "unknown" if share is None else f"{share:.0%}"
