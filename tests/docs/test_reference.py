"""The reference pages name what the code has: every log key, setting, callback, verb and class, and nothing else."""

import importlib.util
import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typing_extensions import override

from lightning_sft import SFTDataModule, SFTModule, callbacks
from lightning_sft.callbacks import (
    CriticalLearningRateFinder,
    DriftMonitor,
    GenerationMonitor,
    LearningRateSweep,
    ObjectiveSweep,
    OrderParameterLogger,
    SynonymRankMonitor,
)
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.data import Source
from lightning_sft.objectives import NLL, Adaptive, PowerFamily
from tests.callbacks.stranger import PROBES
from tests.docs.pages import ROOT, table_column
from tests.running import write_rows
from tests.toys import save_toy

REFERENCE = ROOT / "docs" / "reference"
#: the further forms of probe keys, as the page's second table lists them, around a key of the first
FORMS = re.compile(r"^(order|synonyms)/(?:(?:control|train|test|first|last|three)/)?(?:output_)?(?=\w+$)")


#: keys of named sets and of several sources, which tests/test_evaluation.py holds, and of some models and adapters
BY_NAME = {
    *("val/<set>/...", "test/<set>/...", "train/source/<name>/nll", "train/source/<name>/token_share"),
    *("train/router_loss", "train/adapter_loss"),
    *("val/pass_at_<k>", "test/pass_at_<k>", "val/sampled_pass_at_<k>", "test/sampled_pass_at_<k>"),
    *("capability/content/...", "capability/special/...", "capability/end/...", "capability/source/<name>/..."),
    *(f"sweep/<name>/{key}" for key in ("told", "share", "rate")),  # of ExposureForecast: tests/sweep/test_forecast.py
    *(f"sweep/<name>/{key}" for key in ("seen_share", "median_error", "covered")),
}


def logged_keys(folder: Path) -> set[str]:
    """Tags of scalars, texts and figures of a run."""
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    found = {tag.removesuffix("/text_summary") for kind in ("scalars", "images", "tensors") for tag in tags[kind]}
    return {tag for tag in found if not tag.startswith(("custom_scalars__", "_hparams_/"))}


def test_log_keys_are_those_of_a_run(tmp_path: Path) -> None:
    model = save_toy(tmp_path / "model", tie_word_embeddings=False)
    source = Source(str(write_rows(tmp_path / "rows.jsonl")), name="rows", score="exact_match")
    logger = TensorBoardLogger(tmp_path, "run", default_hp_metric=False)
    trainer = Trainer(
        max_steps=3,
        val_check_interval=3,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            GenerationMonitor(limit=2, test_limit=2, max_new_tokens=2),
            DriftMonitor({"own": ["a text"]}),
            SynonymRankMonitor(PROBES, every_n_steps=1, log_per_probe=True),
            OrderParameterLogger(PROBES, every_n_steps=1, with_purity=True, log_per_probe=True),
            LearningRateSweep(low=1e-4, high=100.0, steps=12),
            CriticalLearningRateFinder(
                criterion="val_nll", target=5.5, low=1e-6, high=0.1, points=3, steps=3, resolution=9.0
            ),
            ObjectiveSweep([NLL(), PowerFamily(alpha=1.0)], steps=1, points=3, refine=0, seeds=1, select="val/nll"),
        ],
    )
    module = SFTModule(str(model), objective=Adaptive())
    data = SFTDataModule(train=source, val_split=4, test=source, batch_size=4)
    trainer.fit(module, data)
    trainer.test(module, data)
    logger.finalize("success")

    logged = logged_keys(Path(logger.log_dir)) - {"epoch"}
    assert "synonyms/first/rank" in logged
    assert "order/output_phi" in logged
    apart = {key for key in logged if re.match("capability/(content|special|end)/", key)}
    assert {"capability/content/mean_p", "capability/special/mean_p", "capability/end/nll"} <= apart
    # which shares there are depends on the tokens: none was outranked, or none had a near-synonym before it
    watched = {key for key in logged if key.startswith("silent/")}
    forms = {re.sub("^silent/(train|val)/", "silent/<set>/", key) for key in watched}
    known = {key for key in table_column(REFERENCE / "log_keys.md", "") if key.startswith("silent/")}
    assert {"silent/<set>/outranked", "silent/<set>/excess", "silent/<set>/share", "silent/verdict"} <= forms
    assert any("/content/" in key for key in forms)
    assert {re.sub("/(synonym|content)/.*", r"/\1/...", key) for key in forms} <= known
    logged -= apart | watched
    plain = {re.sub(r"^(sweep|drift)/\w+/", r"\1/<name>/", FORMS.sub(r"\1/", key)) for key in logged}
    table = set(table_column(REFERENCE / "log_keys.md", "")) - known
    objective = {key for key in plain if key.startswith("train/objective/")}
    assert objective == {"train/objective/alpha", "train/objective/mean_p"}
    assert (
        plain - objective
        == table - {"train/objective/<name>"} - {"threshold", "median_nll", "alpha", "mean_p"} - BY_NAME
    )


@pytest.mark.parametrize(("heading", "target"), [("model", SFTModule), ("data", SFTDataModule)])
def test_settings_are_those_of_the_class(heading: str, target: type) -> None:
    named = table_column(REFERENCE / "config.md", heading)
    assert sorted(named) == sorted(inspect.signature(target).parameters)


@pytest.mark.parametrize(("heading", "target"), [("model", SFTModule), ("data", SFTDataModule)])
def test_plain_defaults_are_those_of_the_class(heading: str, target: type) -> None:
    page = (REFERENCE / "config.md").read_text(encoding="utf-8")
    for name, parameter in inspect.signature(target).parameters.items():
        if isinstance(parameter.default, bool | int | float):
            told = re.search(rf"^\| `{name}` \| (\S+) \|", page, re.M)
            assert told, name
            assert told[1].lower() == str(parameter.default).removesuffix(".0").lower(), name


def test_trainer_settings_exist() -> None:
    assert set(table_column(REFERENCE / "config.md", "trainer")) <= set(inspect.signature(Trainer).parameters)


def test_callbacks_are_those_of_the_package() -> None:
    assert sorted(table_column(REFERENCE / "config.md", "Callbacks")) == sorted(callbacks.__all__)


def test_verbs_are_those_of_the_program() -> None:
    verbs = {*LIGHTNING_VERBS, *OWN_VERBS}
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page[: page.index("## ")], re.M)) == verbs


def of_docs(name: str) -> ModuleType:
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_python_page_lists_what_the_site_shows() -> None:
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    assert of_docs("api").page() == text, "run `python docs/api.py`"
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| \[(.+)\]\(\.\./\.\./(.+)\) \|$", text, re.M)
    shown = re.findall(r"^::: [\w.]*?(\w+)$", text, re.M)
    assert [name for name, *_ in rows] == shown
    for name, sentence, file, target in rows:
        assert len(sentence.split()) > 3, name
        assert file == target
        assert re.search(rf"^(?:class|def) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.M)


def test_the_site_links_files_of_the_repository_at_the_code_host() -> None:
    text = (REFERENCE / "api.md").read_text(encoding="utf-8")
    shown = of_docs("site").on_page_markdown(text, config={"repo_url": "https://host/us"})
    assert "](https://host/us/blob/main/lightning_sft/module.py)" in shown
    assert not re.search(r"\]\((?:\.\./)+lightning_sft/", shown)
    assert "](../objectives.md#gallery)" in shown


def test_classes_of_the_python_page_exist() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (REFERENCE / "api.md").read_text(encoding="utf-8"), re.M)
    assert {f"lightning_sft.callbacks.{name}" for name in callbacks.__all__} <= set(names)
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__


class _Validations(Callback):
    """The optimizer steps after which a validation began."""

    def __init__(self) -> None:
        self.after: list[int] = []

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after.append(trainer.global_step)


def test_validations_are_counted_in_batches_as_the_pages_say(tmp_path: Path) -> None:
    seen = _Validations()
    trainer = Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=4,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[seen],
    )
    rows = str(write_rows(tmp_path / "rows.jsonl"))
    data = SFTDataModule(train=rows, val=rows, batch_size=1, order="sequential")
    trainer.fit(SFTModule(str(save_toy(tmp_path / "model"))), data)
    assert seen.after[:3] == [2, 4, 6]  # every fourth batch is every second optimizer step
    assert "| `val_check_interval` | batches between validations" in (REFERENCE / "config.md").read_text("utf-8")
    page = (ROOT / "docs/coming_from.md").read_text("utf-8")
    rows_of = re.findall(r"^\| .*`trainer\.val_check_interval` \| (.*) \|$", page, re.M)
    assert len(rows_of) == 2
    assert all(told.startswith("counted in batches, not in optimizer steps") for told in rows_of)
