"""``lightning audit``: did the loss fall while the right words stayed outranked, in any two finished models."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.advice.options import without
from lightning_sft.audit.audit import AuditSettings, audit
from lightning_sft.audit.headline import headline
from lightning_sft.audit.next_steps import first_step
from lightning_sft.audit.report import PAGE, new_place, write_report
from lightning_sft.audit.result import Asked, Audit, Trained
from lightning_sft.audit.rows import What
from lightning_sft.audit.summary import CONTEXTS, in_short
from lightning_sft.checkpoints.runs import find_checkpoint
from lightning_sft.cli import run_folders
from lightning_sft.cli.front.needs import require_needed
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.settings import SettingsCLI, check_place
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.models.finished import FoundModel, find_finished
from lightning_sft.places import ADAPTER_CONFIG, CHECKPOINT_WORDS, CHECKPOINTS, RUN_SETTINGS

#: the exit status under --fail_above
TOO_MANY = 3
Precision = Literal["auto", "float32", "bfloat16", "float16", "float64"]


class _AuditCLI(SettingsCLI):
    """The settings of ``fit``, of which those of ``data`` count, so that a run's own configuration can be given."""

    verb = "audit"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)

        def add(name: str, kind: Any, default: Any, text: str) -> None:
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)

        where = (
            "a folder or hub name of a model or an adapter, a run's folder, a checkpoint, last or best of the newest "
            "run, a GGUF file, or pkg://package/file.gguf"
        )
        add("after", str | None, None, f"the model to audit, which must be given: {where}")
        add("before", str | None, None, "the model that it began as, in the same ways. Default: none, and the model is "
            "read alone")  # fmt: skip
        add("set", What | None, None, "the set of the settings' data to read. Default: test with --data FILE, "
            "otherwise the first of val, test, train that is there")  # fmt: skip
        add("trained", Trained | None, None, "whether the model was trained on these rows. Default: known where the "
            "settings have a training set, otherwise unknown, and both verdicts are given")  # fmt: skip
        add("rows", int | None, 1000, "the most rows to read, spread evenly over the set; null reads all")
        add("output", str | None, None, "folder to write, which must not exist yet. Default: audit, or audit-2 and so "
            "on where that exists")  # fmt: skip
        add("fail_above", float | None, None, f"exit with status {TOO_MANY} if the share of silent failures is above "
            "this, such as 0.2, or the verdict is still outranked; without --before, if the excess of outranked tokens "
            "is above it. Default: never")  # fmt: skip
        add("min_fall", float, 0.1, "a token counts as learned if its loss fell by more than this many nats")
        add("probes", str | None, None, "near-synonym probes to read with both models: library (the shipped ones), or "
            "a file. Default: none")  # fmt: skip
        add("guard", str, "general", "text outside the task, to see what was forgotten: general (the shipped one), a "
            "file, or none")  # fmt: skip
        add("top", int, 100, "how many of the worst places to write into contexts.jsonl")
        add("base", str | None, None, "the model under an adapter or a checkpoint, if it has moved. Default: what the "
            "adapter or the checkpoint names")  # fmt: skip
        add("tokenizer", str | None, None, "folder or hub name of a tokenizer for both models. Default: that in each "
            "model's folder")  # fmt: skip
        add("chat_template", str | None, None, "chat template for both models: before or after (that of one of them), "
            "a Jinja template, or its file. Default: theirs, where they are the same")  # fmt: skip
        add("dtype", Precision, "float32", "dtype of the weights")
        add("device", str | None, None, "where models are put, such as cpu or cuda:0. Default: the accelerator, if "
            "there is one")  # fmt: skip
        add("together", bool, False, "hold both models in memory at once, in place of one after the other")


def main(arguments: list[str]) -> None:
    """Audit a finished model, alone or against what it began as: ``lightning audit``."""
    cli = _AuditCLI(args=_plain(arguments), run=False)
    config, data = cli.config, cli.datamodule
    assert isinstance(data, SFTDataModule)
    require_options("audit", config)
    what, known = _choose_set(config.set, data)
    settings = AuditSettings(
        what=what,
        trained=config.trained or known,
        rows=config.rows,
        chat_template=config.chat_template or config.model.chat_template,
        probes=config.probes,
        guard=None if config.guard in ("none", "null") else config.guard,
        together=config.together,
        device=config.device,
        top=config.top,
        min_fall=config.min_fall,
    )
    place = new_place(config.output)
    check_place(place)
    after, before = _find(config.after, config), None if config.before is None else _find(config.before, config)
    found = replace(audit(after, before, data, settings), asked=_asked(arguments, config))
    write_report(found, place)
    print(headline(found))
    print("\n".join(f"- {line}" for line in in_short(found)))
    print(f"\nPage       {place / PAGE}\nAlso       audit.md, audit.json and {CONTEXTS} in {place}")
    for line in first_step(found, place):
        print(line)
    if config.fail_above is not None and (why := _too_many(found, config.fail_above)):
        print(why, file=sys.stderr)
        sys.exit(TOO_MANY)


def _too_many(found: Audit, most: float) -> str:
    """Return why an audit fails under ``--fail_above``; empty where it does not."""
    if found.is_broken or found.headline > most:
        return f"{found.headline_name} is {found.headline:.1%}, above {most:.1%}"
    behind = (verdict.outcome == "still outranked" for verdict in found.verdicts)
    return "Most tokens that were outranked before still are" if any(behind) else ""


def _asked(arguments: list[str], config: Any) -> Asked:
    """Return the command for the page, which repeats it with one thing changed and fits its configuration again."""
    kept = without(arguments, ["--output"])
    configs = []
    for i, argument in enumerate(kept):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            configs += [value] if equals else kept[i + 1 : i + 2]
    optimizer = config.model.get("optimizer") if configs else None
    init_args = optimizer.get("init_args") if optimizer is not None else None
    lr = None if init_args is None else init_args.get("lr")
    return Asked(kept, configs or _settings_of_run(config.after), lr if isinstance(lr, float) else None)


def _settings_of_run(model: str) -> list[str]:
    """Return the settings of the run that a model is from, where it is a run of ours or a checkpoint in one."""
    path = Path(model).expanduser()
    beside = [folder / RUN_SETTINGS for folder in (path, path.parent.parent)]
    return [str(file) for file in beside if file.is_file() and (file.parent / CHECKPOINTS).is_dir()][:1]


def _plain(arguments: list[str]) -> list[str]:
    """Return the arguments as the parser knows them: ``--data FILE`` is the test set, dashes in names are underscores.

    Raises:
        UserError: an option without its value, or no model.
    """
    left, rest = list(arguments), []
    after = None
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." not in name:
            name = "--" + name.removeprefix("--").replace("-", "_")
        name = "--data.test.columns" if name == "--data.columns" else name
        if name not in ("--data", "--after"):
            rest.append(f"{name}={value}" if equals else name)
            continue
        if not equals and (not left or left[0].startswith("--")):
            raise UserError(f"{name} has no value. Allowed: {'a file' if name == '--data' else 'a model'}.")
        value = value if equals else left.pop(0)
        after = value if name == "--after" else after
        rest += [f"--data.test={value}", "--set=test"] if name == "--data" else [f"{name}={value}"]
    if {"-h", "--help"} & set(rest):
        return rest
    if after is None:
        require_needed("audit", ())
    # the settings of `model` are not used, but the parser wants its name
    return [f"--model.model_name_or_path={after}", *rest]


def _choose_set(asked: What | None, data: SFTDataModule) -> tuple[What, Trained]:
    """Return which set is read, and whether it was trained on."""
    choices: tuple[What, ...] = ("val", "test", "train") if asked is None else (asked,)
    what = next((name for name in choices if data.sets.has(name)), None)
    if what is None:
        raise UserError("There are no rows to read. Give --data FILE, or --config with settings of data.")
    if not data.sets.has("train"):
        return what, "unknown"
    return what, "yes" if what == "train" else "no"


def _find(name: str, config: Any) -> FoundModel:
    """Find a model; ``--base`` is for those that stand on something, ``last`` of the run whose config.yaml is given."""
    if name in CHECKPOINT_WORDS:
        trainer = config.trainer
        own = [Path(str(file)).parent for file in config.config or ()]
        own = [folder for folder in own if any((folder / CHECKPOINTS).glob("*.ckpt"))]
        extra = [] if own else run_folders.checkpoint_folders(trainer)
        name = str(find_checkpoint(name, own or run_folders.roots(trainer), extra))
    elif (Path(name).expanduser() / CHECKPOINTS).is_dir():  # a run's folder
        name = str(find_checkpoint(name, ()))
    path = Path(name).expanduser()
    stands = (path.is_file() and path.suffix != ".gguf") or any(
        (path / file).is_file() for file in (".metadata", ADAPTER_CONFIG)
    )
    return find_finished(
        name,
        base=config.base if stands else None,
        tokenizer=config.tokenizer,
        dtype=config.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
