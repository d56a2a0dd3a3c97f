"""What is true of every architecture that transformers maps to a causal language model: the rows of a page.

``python -m tests.models.every_architecture`` writes docs/reference/architectures.md and the table of adapters in
docs/how_to/adapters.md; with names of types it prints their rows.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig
from torch.nn.functional import cross_entropy

from lightning_sft.errors import UserError, first_line
from lightning_sft.models.access import find_causal_lm, text_config
from lightning_sft.models.answering import find_answering
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.proofs import prove_documents_apart
from lightning_sft.models.router import router_coefficient
from lightning_sft.models.small_copy import CopyFailed, small_copy
from lightning_sft.objectives import NLL
from tests.models.tuners import TUNERS, examine
from tests.models.zoo import TYPES, save_tiny, tiny_config
from tests.toys import save_toy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/architectures.md"
ADAPTERS = ROOT / "docs/how_to/adapters.md"
START, END = "<!-- tuners: written by make architectures -->", "<!-- end of tuners -->"


INTRODUCTION = """# Architectures

Which model types can be trained, and what works with each. For the type of your model, look at `model_type` in its
`config.json`, and find the row.

Tested is every type that `AutoModelForCausalLM` of transformers {version} knows: a small model with random weights is
built of it, and does what a run does. ("Works" means that of such a model; a large one of the type was not tried.) Of
{types} types {built} train; {not_built} cannot, and their last column says why.

- **loss**. *equal*: loss and gradients are those of the model's own logits, to 1e-5 in fp32. *own logits*: this package
  cannot compute its logits in chunks, so the model makes all of them at once, which takes more memory.
- **flat, packed**. *yes*: rows can lie end to end without padding, and none sees another; this was tried on a small
  copy with large weights. *with kernels*: only with kernels that are told where rows end. *no*: rows are padded.
- **LoRA**: how much of the model's linear layers and experts the adapter reaches, as a share of their weights: under
  `target_modules: all-linear`, and after the stroke under `everything`. One number: both reach the same. *refused*:
  `all-linear` does not fit, and the beginning of the message follows.
- **router loss**, of mixtures of experts. *yes*: `output_router_logits: true` adds the loss that balances the experts.
  *refused*: the type has that setting and no such loss. Empty: it has no such setting.
- **answers**. *together*: prompts of different lengths are answered in one batch. *one at a time*: padding would change
  the answers.

DeepSeek-V3.2, GLM-MoE-DSA and Doge attend only to the k positions with the highest scores. Where scores are equal, the
layout of the batch decides which are taken. So the same row may have another loss in another batch, and the 1e-5 of the
column *loss* is not promised for them.
"""


@dataclass
class Row:
    """One architecture, as cells of a table."""

    kind: str
    loss: str = ""
    packed: str = ""
    lora: str = ""
    router: str = ""
    answers: str = ""
    refused: str = ""


def examine_architecture(kind: str) -> Row:
    """Build a tiny model of a type as a run does, and look what it can do."""
    row = Row(kind)
    try:
        tiny_config(kind)
    except Exception as error:
        return Row(kind, refused=f"no small model is made here: {_short(error)}")
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folder = save_tiny(Path(place) / "model", kind)
        except Exception as error:
            return Row(kind, refused=f"no small model is made here: {_short(error)}")
        try:
            scorer = build_scorer(ModelSettings(folder), NLL(), 259)
        except UserError as error:
            return Row(kind, refused=_short(error))
        except Exception as error:
            return Row(kind, refused=f"TRACEBACK {_short(error)}")
        model = find_causal_lm(scorer)
        try:
            copy = small_copy(model)
        except CopyFailed:
            copy = None
        row.loss = _cell(lambda: _loss(scorer))
        row.packed = _cell(lambda: "with kernels" if prove_documents_apart(model, copy) else "yes", refused="no")
        row.answers = _cell(lambda: _answers(model))
        if any(hasattr(config, "output_router_logits") for config in (model.config, text_config(model))):
            row.router = _cell(lambda: str(router_coefficient(model, copy) and "yes"), refused="refused")
        row.lora = _cell(lambda: _lora_share(folder))
    return row


def _cell(look: Any, refused: str = "") -> str:
    try:
        return str(look())
    except UserError as error:
        return refused or f"refused: {_short(error)}"
    except Exception as error:
        return f"TRACEBACK {_short(error)}"


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 255, (3, 40), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 30:], labels[1, 30:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _loss(scorer: Any) -> str:
    """Return whether loss and gradients are those of the model's own loss, and by which head."""
    batch = _batch()
    scorer.eval()
    output = scorer(batch, NLL())
    (output.loss_sum / len(output.losses)).backward()
    ours = {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}
    scorer.zero_grad()
    logits = scorer.causal_lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    own = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    own.backward()
    far = abs(float(output.loss_sum.detach()) / len(output.losses) - float(own.detach())) / abs(float(own.detach()))
    largest = max(float(p.grad.abs().max()) for p in scorer.parameters() if p.grad is not None)
    for name, parameter in scorer.named_parameters():
        if parameter.grad is not None:
            mine = ours.get(name, torch.zeros_like(parameter.grad))
            far = max(far, float((mine - parameter.grad).abs().max()) / largest)
    equal = "equal" if far <= 1e-5 else f"differs by {far:.0e}"
    return equal if scorer.head == "fused" else f"{equal}, own logits"


def _lora_share(folder: str) -> str:
    """Return the share of linear layers and experts that all-linear and everything adapt, after a backward pass."""
    shares = []
    for targets in ("all-linear", "everything"):
        config = LoraConfig(r=4, lora_dropout=0.05, target_modules=targets)
        scorer = build_scorer(ModelSettings(folder, adapter=config), NLL(), 259).train()
        scorer(_batch(), NLL()).loss_sum.backward()
        assert scorer.adapter_reach is not None
        shares.append(f"{scorer.adapter_reach.share:.0%}")
    return shares[0] if shares[0] == shares[1] else " / ".join(shares)


def _answers(model: Any) -> str:
    way = find_answering(model)
    return ("together" if way.together else "one at a time") + ("" if way.cached else ", without a cache")


def _short(error: BaseException) -> str:
    text = re.sub(r"'/\S+'", "it", first_line(error))
    known = {
        r"cannot train on rows": "its code does not take rows of any length in training",
        r"not a causal language model": "what it saves is of a type that AutoModelForCausalLM does not load",
        r"sees the future": "sees future tokens",
        r"requires the (\w+) library": r"needs \1",
    }
    for pattern, said in known.items():
        if found := re.search(pattern, text):
            return found.expand(said)
    return f"{type(error).__name__}: {text[:70]}".replace("|", "/").replace("\n", " ")


def page(rows: list[Row]) -> str:
    """Return the page of architectures."""
    built = [row for row in rows if not row.refused]
    lines = [
        INTRODUCTION.format(
            version=transformers.__version__, types=len(rows), built=len(built), not_built=len(rows) - len(built)
        ),
        "| type | loss | flat, packed | LoRA | router loss | answers | refused because |",
        "|---|---|---|---|---|---|---|",
        *(f"| `{row.kind}` | " + " | ".join(astuple(row)[1:]) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def tuner_table(work: Path) -> str:
    """Return the table of peft's tuners."""
    folder = save_toy(work / "toy", tie_word_embeddings=False)
    lines = [
        f"Every tuner of peft {peft.__version__}, trained for a few steps beside a plain peft loop, rebuilt from its",
        "checkpoint, exported and merged:",
        "",
        "| tuner | trains as plain peft | adapter alone | merged |",
        "|---|---|---|---|",
    ]
    for kind in TUNERS:
        place = work / kind
        place.mkdir()
        seen = examine(kind, folder, place)
        if "refused" in seen:
            why = "works on the prompt" if "works on the prompt" in seen["refused"] else "has a forward of its own"
            lines.append(f"| `{kind}` | refused: {why} | | |")
        elif "needs" in seen:
            lines.append(f"| `{kind}` | needs {seen['needs']} | | |")
        else:
            cells = [
                "yes" if seen["losses"] <= 1e-5 and seen["rebuilt"] == 0 else f"differs by {seen['losses']:.0e}",
                *(
                    "refused" if isinstance(seen[k], str) else "same NLL" if seen[k] <= 1e-5 else f"{seen[k]:.0e}"
                    for k in ("adapter", "merged")
                ),
            ]
            lines.append(f"| `{kind}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """Return the page of adapters with another table between its marks."""
    before, rest = text.split(START)
    return f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}"


def main(kinds: list[str]) -> None:
    """Write both pages, or print the rows of some types."""
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if kinds:
        for kind in kinds:
            print(astuple(examine_architecture(kind)), flush=True)
        return
    PAGE.write_text(page([examine_architecture(kind) for kind in TYPES]), encoding="utf-8")
    with tempfile.TemporaryDirectory() as work:
        table = tuner_table(Path(work))
    ADAPTERS.write_text(with_table(ADAPTERS.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
