"""Read two finished models on the same rows, one after the other, and compare."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_sft.audit.agreement import check_ids, check_order, check_positions, check_vocabularies, choose_template
from lightning_sft.audit.contexts import worst_contexts
from lightning_sft.audit.guard import Forgetting, GuardSet, read_forgetting, read_guard
from lightning_sft.audit.probing import (
    ProbeOutcome,
    ProbePass,
    compare_probes,
    pass_probes,
    under_other_rows,
    unembedding_rows,
)
from lightning_sft.audit.result import (
    Audit,
    ReadModel,
    Trained,
    among,
    by_source,
    nll_change,
    read_model,
    verdicts,
)
from lightning_sft.audit.rows import AuditRows, What
from lightning_sft.audit.special import SpecialTokens, read_special
from lightning_sft.audit.spool import Spool
from lightning_sft.audit.tokens import TokenPass, read_tokens
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.metrics.silent import SilentReading, read_silent
from lightning_sft.metrics.silent_verdict import SilentVerdict
from lightning_sft.models.access import input_embeddings
from lightning_sft.models.finished import FinishedModel, FoundModel
from lightning_sft.models.generation import special_ids
from lightning_sft.probes.encode import EncodedProbes, encode_probes
from lightning_sft.probes.files import load_probes
from lightning_sft.progress import progress
from lightning_sft.units import plural


@dataclass(frozen=True)
class AuditSettings:
    """How models are audited.

    Attributes:
        what: which set of the data is read.
        trained: whether its rows were trained on, which decides what counts as a failure.
        rows: the most rows to read, spread evenly over the set; None reads all.
        chat_template: ``"before"``, ``"after"``, or a template or its file; None takes what is clear by itself.
        probes: near-synonym probes as `load_probes` takes them; None reads none.
        guard: the guard set, ``"general"`` or a file; None reads none.
        together: hold both models in memory at once, which saves the time of a file in between.
        device: where models are put; None: the accelerator, where there is one.
        top: how many of the worst contexts to keep.
        min_fall: nats by which a token's NLL must have fallen to count as learned.
    """

    what: What = "test"
    trained: Trained = "unknown"
    rows: int | None = 1000
    chat_template: str | None = None
    probes: str | None = None
    guard: str | None = "general"
    together: bool = False
    device: str | None = None
    top: int = 100
    min_fall: float = 0.1


def audit(
    after: FoundModel,
    before: FoundModel | None,
    data: SFTDataModule,
    settings: AuditSettings | None = None,
    say: Callable[[str], Any] = lambda line: print(line, file=sys.stderr),
) -> Audit:
    """Read a finished model, and compare it with an earlier one; nothing is trained.

    One model is in memory at a time, unless ``settings.together``.

    Args:
        after: the model.
        before: what it began as; None reads the model alone.
        data: the rows; its settings say which of their tokens count.
        settings: None is the defaults.
        say: called with each line about what is being done.

    Raises:
        UserError: models that cannot be compared, or rows of which none can be read.
    """
    settings = settings or AuditSettings()
    tokenizer = _tokenizer(after)
    notes = []
    first = None
    if before is not None:
        check_order(before, after)
        first = _tokenizer(before)
        notes += [note for note in [check_vocabularies(first, tokenizer)] if note]
    chosen = choose_template(first, tokenizer, settings.chat_template)
    tokenizer.chat_template = chosen.template
    rows = AuditRows(data, settings.what, tokenizer, settings.rows)
    guard = None if settings.guard is None else GuardSet(settings.guard, tokenizer)
    encoded = None if settings.probes is None else encode_probes(load_probes(settings.probes), tokenizer)
    with ExitStack() as stack:
        return _Work(rows, guard, encoded, settings, say, stack).run(before, after, notes, chosen.whose)


def _tokenizer(found: FoundModel) -> PreTrainedTokenizerBase:
    try:
        return found.tokenizer_settings.load()
    except UserError as error:
        raise UserError(f"{error} Where a model was saved without its tokenizer, name one with --tokenizer.") from error


@dataclass
class _First:
    """What is kept of the first model.

    Attributes:
        about: it.
        tokens: its reading of the rows.
        probes: its reading of the probes; None without probes.
        model: itself, where both models are held.
    """

    about: ReadModel
    tokens: TokenPass
    probes: ProbePass | None
    model: FinishedModel | None


class _Work:
    """The passes of one audit, and what waits in files between them."""

    def __init__(
        self,
        rows: AuditRows,
        guard: GuardSet | None,
        encoded: EncodedProbes | None,
        settings: AuditSettings,
        say: Callable[[str], Any],
        stack: ExitStack,
    ) -> None:
        self.rows, self.guard, self.encoded, self.settings, self.say = rows, guard, encoded, settings, say
        self.guard_spool = stack.enter_context(Spool.opened())
        self.rows_spool = stack.enter_context(Spool.opened())

    def run(self, before: FoundModel | None, after: FoundModel, notes: list[str], template: str) -> Audit:
        """Read both, the first one first."""
        rows, settings = self.rows, self.settings
        first = None if before is None else self._first(before)
        gc.collect()  # modules hold each other in circles
        model, now = self._read(after)
        earlier = None if first is None else first.tokens.tokens
        near = (now if first is None else first.tokens).near
        reading = read_silent(now.tokens, rows.row, earlier, settings.min_fall)
        ids = special_ids(model.causal_lm, rows.tokenizer)
        special = read_special(rows, now.tokens, earlier, settings.min_fall, ids)
        return Audit(
            after=read_model(model, now),
            before=None if first is None else first.about,
            rows=len(rows.chosen),
            total_rows=rows.total,
            set=settings.what,
            trained=settings.trained,
            min_fall=settings.min_fall,
            masks=rows.report.masks,
            template=template,
            notes=notes,
            silent=reading,
            synonyms=among(rows, now.tokens, earlier, settings.min_fall, near),
            sources=by_source(rows, now.tokens, earlier, settings.min_fall),
            nll_change=nll_change(rows, now.tokens, earlier),
            contexts=worst_contexts(rows, now.tokens, earlier, settings.top, settings.min_fall, near, model.step),
            probes=self._probes(model, first),
            forgetting=self._forgetting(model, first),
            verdicts=self._verdicts(reading, special, compared=first is not None),
            special=special,
        )

    def _verdicts(
        self, reading: SilentReading, special: SpecialTokens | None, *, compared: bool
    ) -> list[SilentVerdict]:
        read, total = len(self.rows.chosen), self.rows.total
        more, all_read = f"--rows, here {read} of {total}", f"all {plural(total, 'row')} of the set"
        some = {"more": more} if read < total else {"all_read": all_read}
        return verdicts(reading, self.settings.trained, compared=compared, special=special, **some)

    def _first(self, found: FoundModel) -> _First:
        model, tokens = self._read(found)
        probes = None if self.encoded is None else pass_probes(model, self.encoded)
        if self.settings.together:
            return _First(read_model(model, tokens), tokens, probes, model)
        if probes is not None and probes.plain:
            self.rows_spool.write(unembedding_rows(model))
        if self.guard is not None:
            self.guard_spool.write(read_guard(model, batch) for batch in self.guard.batches)
        return _First(read_model(model, tokens), tokens, probes, None)

    def _forgetting(self, model: FinishedModel, first: _First | None) -> Forgetting | None:
        guard = self.guard
        if guard is None or first is None:
            return None if guard is None else read_forgetting(model, guard)
        live = first.model
        readings = iter(self.guard_spool) if live is None else (read_guard(live, batch) for batch in guard.batches)
        return read_forgetting(model, guard, readings)

    def _probes(self, model: FinishedModel, first: _First | None) -> list[ProbeOutcome]:
        if self.encoded is None:
            return []
        before = None if first is None else first.probes
        after = pass_probes(model, self.encoded if before is None else before.encoded)  # with its competitors
        kept = None
        if first is not None and before is not None and before.rows != after.rows and before.plain and after.plain:
            rows = self.rows_spool if first.model is None else unembedding_rows(first.model)
            kept = under_other_rows(model, after.hidden, rows)
        return compare_probes(after, before, kept)

    def _read(self, found: FoundModel) -> tuple[FinishedModel, TokenPass]:
        """Load a model and read the rows with it."""
        self.say(f"Loading {found.name}" + (f" on {found.base}" if found.base else ""))
        model = found.load(self.settings.device)
        check_ids(self.rows.ids, len(input_embeddings(model.causal_lm)), repr(found.name), self.rows.tokenizer)
        check_positions(model.causal_lm, self.rows.longest, found.name, self.say)
        count = len(self.rows.chosen)
        self.say(f"Reading {len(self.rows)} tokens of {count} rows with {found.name}")
        with progress(found.name, count) as advance:
            return model, read_tokens(model, self.rows, advance)
