"""``lightning mine-probes``: near-synonym probes from a text of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.front.on_hub import settle_hub
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.usage import VerbParser
from lightning_sft.errors import UserError
from lightning_sft.places import require_model_place
from lightning_sft.progress import loading, note
from lightning_sft.units import plural

ABOUT = "Words of a held-out text behind which the model prefers a near-synonym become probes, the plainest first."


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser("mine-probes", "--model MODEL --data FILE --output FILE [--KEY VALUE ...]", ABOUT)
    add = made.add_argument
    add("--model", required=True, help="hub name, folder, GGUF file or pkg://package/file.gguf")
    add(
        "--data",
        required=True,
        type=Path,
        help="texts that the model was not trained on: .txt with a paragraph each, or .jsonl",
    )
    add("--output", required=True, type=Path, help="probe file to write: .yaml, .yml or .jsonl")
    add("--top", type=int, default=50, help="the most probes to keep")
    add(
        "--min_overlap",
        type=float,
        default=0.5,
        help="leave out pairs whose words' embeddings have a lower cosine than this",
    )
    add(
        "--min_probability",
        type=float,
        default=0.01,
        help="leave out places where the model gives the written word less than this",
    )
    add(
        "--wordnet",
        default="auto",
        help="folder of WordNet's database, which tells synonyms; auto: where it is installed; none: without it",
    )
    add("--limit", type=int, help="the most texts to read. Default: all")
    return made


def main(arguments: Sequence[str]) -> None:
    """Mine probes from a file and save them: ``lightning mine-probes``.

    Args:
        arguments: those after the verb.
    """
    asked = parser().parse_args(list(arguments))
    require_options("mine-probes", asked)
    require_model_place(asked.model)
    if not asked.data.is_file():
        raise UserError(f"--data is {str(asked.data)!r}, and there is no such file (looked from {Path.cwd()}).")
    if remark := settle_hub("mine-probes", arguments):
        note(f"note: {remark}")
    with loading():
        from lightning_sft.models.loading import load_causal_lm, load_tokenizer
        from lightning_sft.probes.files import require_probe_ending, save_probes
        from lightning_sft.probes.mine import mine_probes, read_texts
        from lightning_sft.probes.probe import named
        from lightning_sft.probes.wordnet import find_wordnet

    require_probe_ending(asked.output)  # before minutes of mining
    places = {"auto": find_wordnet(), "none": None}
    wordnet = places.get(asked.wordnet, Path(asked.wordnet))
    texts = list(read_texts(asked.data))[: asked.limit]
    model, tokenizer = load_causal_lm(asked.model), load_tokenizer(asked.model)
    found = mine_probes(
        model,
        tokenizer,
        texts,
        top=asked.top,
        min_overlap=asked.min_overlap,
        min_probability=asked.min_probability,
        wordnet=wordnet,
    )
    if not found:
        raise UserError(
            f"No near-synonyms were found in {plural(len(texts), 'text')} of {str(asked.data)!r}. Give more text, or "
            "lower --min_overlap or --min_probability."
        )
    path = save_probes(named([m.probe for m in found]), asked.output)
    print(
        f"{plural(len(found), 'probe')} in {path}; near-synonyms by {'embeddings' if wordnet is None else f'{wordnet}'}"
    )
    for m in found[:10]:
        p = m.probe
        print(f"  {p.correct} ({m.p_correct:.3f}) behind {p.competitor} ({m.p_competitor:.3f}), O {m.overlap:.2f}")
