"""`SFTDataModule`: sources in, batches out."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank, is_told
from lightning_sft.data.batches.batching import TrainingBatches
from lightning_sft.data.batches.collate import Collator, FlatCollator
from lightning_sft.data.batches.loader import ResumableDataLoader, State
from lightning_sft.data.batches.loaders import is_flat, sequential_loader
from lightning_sft.data.batches.settings import Batching, Layout, Order, at_least, batch_settings
from lightning_sft.data.encoding.build import BuildOptions
from lightning_sft.data.encoding.encode import ApplyChatTemplate, Encoder, TrainOn
from lightning_sft.data.encoding.tokenizer import find_tokenizer, pad_token_id
from lightning_sft.data.encoding.trace import OnDroppedReasoning
from lightning_sft.data.encoding.truncate import Truncation
from lightning_sft.data.encoding.weights import LossWeights
from lightning_sft.data.launch import reading_once
from lightning_sft.data.library import SetLibrary
from lightning_sft.data.named import Sets, read_settings, set_sampler, skipped_sources
from lightning_sft.data.prompts import Answered, prompts
from lightning_sft.data.reading.conversation import OnRepeatedRole, OnUnanswered, Rules
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.sets import OnBadRow, list_rejected
from lightning_sft.data.storage.cache import Cache, cache_folder
from lightning_sft.data.storage.dataset import SetReport, TokenDataset
from lightning_sft.data.types import GenerationRow
from lightning_sft.errors import UserError

STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class SFTDataModule(LightningDataModule):
    """Rows of any usual format, tokenised, masked, laid into batches and dealt to the ranks.

    A padded batch is a dict of int64 tensors: ``input_ids``, ``attention_mask``, ``labels`` (batch, length), ``row``
    (index of the row in its set, -1 for a padding row) and ``source`` (index into `source_names`), (batch,). A flat
    batch is one sequence with ``position_ids`` in place of ``attention_mask`` (see ``FlatCollator``); modules that take
    those say so by an attribute ``takes_flat_batches = True``, and others get padded batches.

    Args:
        train: what to train on: a path, a `DataSource`, or a list of them.
        val: validation rows, the same way; or a mapping of names to them, for log keys ``val/<name>/...``. A set
            ``{sources: ..., every: 4}`` is read at every fourth validation, and not in the pooled ``val/...``.
        val_split: instead of ``val``: a fraction or a number of rows taken from ``train``, the same for one ``seed``.
        test: rows to test on, the same way.
        predict: rows to answer, the same way.
        tokenizer: a tokenizer or the name or folder of one; default is the LightningModule's ``tokenizer``.
        batch_size: rows (packs, under ``order: packed``) of a batch on one rank.
        val_batch_size: the same for the other loaders; default is ``batch_size``.
        num_workers: processes that load. Rows are tokenised beforehand, so 0 is enough.
        max_length: the most tokens of a row.
        truncation: what to do with longer rows: ``error``, ``drop``, ``left`` and ``right`` cut that side off,
            ``keep_completion`` cuts the left, and drops a row rather than cut what is trained.
        train_on: whose words are trained, see `Encoder`.
        apply_chat_template: whether rows of plain strings are put into the chat template, see `Encoder`.
        template_kwargs: variables for the chat template, such as ``{enable_thinking: false}``.
        loss_weights: weights of prompts, answers, sources and tokens behind given contexts in the loss, see
            `LossWeights`; they multiply what rows (``weight``, ``loss_weight``, ``loss_scale``) and messages (the same,
            or ``loss_spans``) say. Validation counts every token once.
        on_dropped_reasoning: ``error``, or ``allow`` rows whose reasoning the chat template leaves out, see `Encoder`.
        on_unanswered: what to do with conversations that do not end with an answer, see `Rules`.
        on_repeated_role: what to do with those in which a role speaks twice in a row, see `Rules`.
        on_bad_row: ``error``, or ``skip``: count bad rows and list them.
        rejected_file: where to list them; default is ``rejected_rows.jsonl`` in the run's folder.
        system: system prompt for conversations that bring none.
        order: which training rows share a batch: ``shuffled`` (the default), a permutation of each epoch;
            ``grouped``, the same with rows of similar length in a batch; ``packed``, ``batch_size`` packs of rows of
            up to ``max_length`` tokens each; ``sequential``, as they were given. The other sets are sequential.
        layout: how the rows of a batch lie in memory: ``flat``, end to end in one sequence, none seeing another;
            ``padded``, each filled up to the batch's longest; ``auto`` (the default), flat where the module takes it.
            Loss and gradient are the same. Rows to predict are always padded.
        shuffle: ``false`` is ``order: sequential``; with ``order: packed``, packs come in one order.
        seed: seed of the order and of ``val_split``.
        pad_to_multiple_of: round the length of a batch up to a multiple.
        batching: an older name for both: ``padded``, ``grouped`` and ``auto`` have ``layout: padded``, with ``order:
            shuffled`` or ``grouped``; ``packed`` is ``order: packed``; see ``batch_settings``.
        packing: ``true`` is ``order: packed``.
        padding_free: ``true`` is ``layout: flat``, ``false`` is ``layout: padded``.
        cache_dir: where encoded rows are kept between runs: a folder; ``true`` for ``LIGHTNING_SFT_DATA_CACHE`` or
            ``data`` in the package's cache folder; ``false`` or null to keep nothing.
        num_proc: processes that tokenise; default is one a core, up to 8, and a single one for a few thousand rows.
    """

    def __init__(
        self,
        train: str | DataSource | list[str | DataSource] | None = None,
        val: Sets = None,
        val_split: int | float | None = None,
        test: Sets = None,
        predict: str | DataSource | list[str | DataSource] | None = None,
        tokenizer: Any = None,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        max_length: int | None = None,
        truncation: Truncation = "error",
        train_on: TrainOn = "assistant",
        apply_chat_template: ApplyChatTemplate = "auto",
        template_kwargs: dict[str, Any] | None = None,
        on_dropped_reasoning: OnDroppedReasoning = "error",
        on_unanswered: OnUnanswered = "error",
        on_repeated_role: OnRepeatedRole = "error",
        on_bad_row: OnBadRow = "error",
        rejected_file: str | None = None,
        system: str | None = None,
        order: Order | None = None,
        layout: Layout | None = None,
        shuffle: bool | None = None,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
        batching: Batching | None = None,
        packing: bool | None = None,
        padding_free: bool | None = None,
        cache_dir: bool | str | None = True,
        num_proc: int | None = None,
        loss_weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, val_batch_size=val_batch_size, max_length=max_length, num_proc=num_proc)
        at_least(1, pad_to_multiple_of=pad_to_multiple_of)
        at_least(0, seed=seed, num_workers=num_workers)
        rules = Rules(on_unanswered, on_repeated_role)
        given = {"train": train, "val": val, "test": test, "predict": predict}
        sources, self.named_sets = read_settings(given, rules)
        options = BuildOptions(max_length, truncation, on_bad_row, num_proc)
        self.sets = SetLibrary(sources, val_split, seed, system, options, Cache(cache_folder(cache_dir)))
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.num_workers = num_workers
        self.loss_weights = loss_weights or LossWeights()
        self.encoder_options = (train_on, apply_chat_template, template_kwargs, on_dropped_reasoning, self.loss_weights)
        self.rejected_file = rejected_file
        self.seed = seed
        self.pad_to_multiple_of = pad_to_multiple_of
        asked = batch_settings(
            order, layout, shuffle=shuffle, batching=batching, packing=packing, padding_free=padding_free
        )
        self.train_batches = TrainingBatches(asked, batch_size, max_length, seed)
        self.report: dict[str, SetReport] = {}
        self._given_tokenizer = tokenizer
        self._tokenizer: Any = None
        self._encoder: Encoder | None = None
        self._position: State = {}
        self._told_layout = ""
        if not self.sets.has("val"):  # then Lightning must find no hook: for an empty list it would validate nothing
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]

    @property
    def source_names(self) -> tuple[str, ...]:
        """Name of each source by its index; rows of ``val_split`` keep the index of their train source."""
        return tuple(source.name for source in self.sets.sources)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in use; known after `setup`, and can be set before it."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._given_tokenizer = tokenizer

    @override
    def setup(self, stage: str) -> None:
        """Read, tokenise and count the sets of ``stage``; what was built before is kept."""
        if self._tokenizer is None:
            self._tokenizer = find_tokenizer(self._given_tokenizer, self.trainer)
            self._encoder = Encoder(self._tokenizer, *self.encoder_options)
        with reading_once(self.sets, self.trainer):
            for what in STAGES[stage]:
                if what not in self.sets and self.sets.has(what):
                    assert self._encoder is not None
                    self.report[what] = self.sets.build(what, self._encoder).report
                    list_rejected(self.rejected_file, what, self.report[what].rejected, self.trainer)
        if stage == "fit" and "train" in self.sets and self.train_batches.items is None:
            self.train_batches.prepare(self.sets["train"].dataset, self.report["train"])

    @property
    def packed(self) -> bool:
        """Whether training rows are packed: the model must keep them apart by their positions."""
        return self.train_batches.settings.order == "packed"

    @property
    def wants_flat(self) -> bool:
        """Whether batches will be flat if the module takes them."""
        return self.train_batches.settings.layout != "padded"

    def _flat(self) -> bool:
        """Return whether batches are flat, and log why once."""
        module = None if self.trainer is None else self.trainer.lightning_module
        flat, told = is_flat(self.train_batches.settings.layout, module)
        if told and told != self._told_layout and not is_told(self.trainer):
            self._told_layout = told
            rank_zero_info(told)
        return flat

    def dataset(self, what: Literal["train", "val", "test", "predict"]) -> TokenDataset:
        """Return the encoded rows of one set, after `setup`."""
        return self.sets[what].dataset

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training loader."""
        if "train" not in self.sets:
            raise UserError("There is nothing to train on: data.train is not set. Give a path or a DataSource.")
        batches = self.train_batches
        assert batches.items is not None
        weights = self.loss_weights.of_sources(self.source_names)
        collator = partial(batches.collator, pad_token_id(self._tokenizer), self.pad_to_multiple_of, weights)
        if self.trainer is not None and getattr(self.trainer, "overfit_batches", 0) > 0:
            # Lightning puts its own sequential sampler into loaders that shuffle, with a warning
            padded = collator(flat=False)
            return sequential_loader(batches.items, self.batch_size, padded, num_workers=self.num_workers, ranks=None)
        loader = ResumableDataLoader(
            batches.items,
            batches.sampler([s.weight for s in self.sets.sources], *data_parallel_size_and_rank(self.trainer)),
            self.sets.fingerprint,
            batch_size=self.batch_size,
            collator=lambda: collator(flat=self._flat()),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            order=batches.describe(),
        )
        if self._position:
            loader.load_state_dict(self._position)
            self._position = {}
        return loader

    @override
    def state_dict(self) -> State:
        """Return the position in the training data.

        Lightning stores the training loader's own state too, but does not give it back to a loader that it has made
        before it restores a checkpoint, as it does to count the steps of runs that are measured in epochs.
        """
        loader = self._loader_in_use()
        return {} if loader is None else loader.state_dict()

    @override
    def load_state_dict(self, state_dict: State) -> None:
        """Continue at a position, with the training loader that is there or the next one."""
        loader = self._loader_in_use()
        if loader is not None:
            loader.load_state_dict(state_dict)
        elif self.trainer is not None and self.trainer.state.fn == "fit":
            self._position = state_dict

    def _loader_in_use(self) -> ResumableDataLoader | None:
        """Return the loader that the trainer trains from; others are made to look at the first rows."""
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return loader if isinstance(loader, ResumableDataLoader) else None

    @override
    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation loader; nothing where there is no validation set."""
        return self._loader("val") if "val" in self.sets else []

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test loader."""
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the predict loader."""
        return self._loader("predict")

    def _loader(self, what: str) -> DataLoader[Any]:
        if what not in self.sets:
            raise UserError(f"There is nothing for {what}: data.{what} is not set. Give a path or a DataSource.")
        kind = FlatCollator if what != "predict" and self._flat() else Collator  # answers are asked for row by row
        return sequential_loader(
            self.sets[what].dataset,
            self.val_batch_size,
            kind(pad_token_id(self._tokenizer), self.pad_to_multiple_of),
            num_workers=self.num_workers,
            ranks=data_parallel_size_and_rank(self.trainer),
            sampler=set_sampler(self.named_sets.get(what, []), self.sets[what].dataset.sources, self.trainer),
        )

    def generation_rows(self, stage: Answered, limit: int | None = None) -> list[GenerationRow]:
        """Return prompts to answer, at most ``limit``, evenly from the sets that are read now; plain text has none."""
        if stage not in self.sets or self._encoder is None:
            return []
        skipped = skipped_sources(self.named_sets.get(stage, []), self.trainer)
        return prompts(self.sets[stage], self._encoder, stage, limit, skipped)

    def score(self, row: GenerationRow, answer: str) -> float | None:
        """Return the score of an answer, 0 to 1; None where the row's source has no scorer."""
        example = self.sets[row.stage].examples[row.index]
        return self.sets.sources[row.source].score(example, answer)
