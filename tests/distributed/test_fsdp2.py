"""FSDP2 on two gloo ranks: the trajectory of one device, sharded and resumable."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_sft.cli.entry import main
from tests.distributed.fits import assert_equal, fit_arguments, fit_lines, fsdp2_strategy, last_checkpoint, last_path
from tests.distributed.ranks import two_ranks
from tests.lazy import Lazy
from tests.running import run, run_folder, scalars, write_rows
from tests.toys import save_toy

pytestmark = pytest.mark.ranks
FRAGMENT = Path(__file__).parents[2] / "configs" / "strategy" / "fsdp2.yaml"
FORMS = {"one file": False, "shards": True}
RESUMED = {f"{form}, {kind}": (sharded, kind == "lora") for form, sharded in FORMS.items() for kind in ("full", "lora")}
#: no dropout: two ranks draw other masks than one device
EXACT: dict[str, Any] = {"dropout": 0.0, "model__dtype": "float64"}
DORA = json.dumps({"class_path": "peft.LoraConfig", "init_args": {"target_modules": "all-linear", "use_dora": True}})
TRAJECTORIES = {"full": {}, "lora": {"adapter": True}, "dora": {"model__adapter": DORA}}


@pytest.fixture(scope="module")
def fits(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lazy[Path]:
    """The folder of a fit on two ranks, by its name."""
    folder = tmp_path_factory.mktemp("fsdp2")
    rows = write_rows(folder / "rows.jsonl")
    large = save_toy(folder / "large", vocab_size=40_000)  # so that a frozen base would show in a checkpoint's size

    def fit(name: str) -> Path:
        if name in RESUMED:
            sharded, adapter = RESUMED[name]
            model = large if adapter else toy_folder
            lines = fit_lines(model, rows, adapter=adapter, strategy=fsdp2_strategy(sharded), root=name)
        else:
            further = {**EXACT, **TRAJECTORIES[name], "trainer__default_root_dir": name}
            verb, *words = fit_arguments(toy_folder, rows, **further)
            lines = [[verb, f"--config={FRAGMENT}", *words]]
        two_ranks("work:command_lines", folder, lines=lines)
        return folder / name

    return Lazy(fit)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "one file, lora")) for n in RESUMED])
def test_resumed_run_ends_like_the_uninterrupted_one(name: str, fits: Lazy[Path]) -> None:
    sharded, _ = RESUMED[name]
    assert last_path(fits[name] / "parts").is_dir() == sharded
    assert_equal(*(last_checkpoint(fits[name] / part) for part in ("parts", "whole")))


@pytest.mark.parametrize("form", [pytest.param("one file", marks=pytest.mark.slow), "shards"])
def test_an_adapter_checkpoint_holds_the_adapter_and_no_more(form: str, fits: Lazy[Path]) -> None:
    root = fits[f"{form}, lora"] / "whole"
    saved, path = last_checkpoint(root), last_path(root)
    weights = saved["state_dict"]
    assert len(weights) == 2 * 2 * 7, "two matrices for each linear layer"
    assert all("lora_" in name for name in weights)
    trained = 3 * 4 * sum(v.numel() for v in weights.values())  # with both moments of AdamW
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]))
    assert size <= 1.1 * trained + (500_000 if FORMS[form] else 150_000)  # RNG states, names, headers of shards
    assert size < 0.2 * (root.parents[1] / "large" / "model.safetensors").stat().st_size


def test_a_folder_of_shards_is_exported_as_it_is(fits: Lazy[Path]) -> None:
    root = fits["shards, lora"] / "whole"
    main(["export", f"--ckpt_path={last_path(root)}", "--output=out"])
    weights = last_checkpoint(root)["state_dict"]
    exported = load_file("out/adapter_model.safetensors")
    assert len(exported) == len(weights)
    for name, value in exported.items():
        name = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        assert torch.equal(weights[f"scorer.model.{name}"], value), name
    assert "| val/nll |" in Path("out/README.md").read_text()
    assert sorted(p.name for p in last_path(root).parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    main(["export", f"--ckpt_path={last_path(fits['shards, full'] / 'whole')}", "--output=whole"])
    full = last_checkpoint(fits["shards, full"] / "whole")["state_dict"]
    for name, value in load_file("whole/model.safetensors").items():
        assert torch.equal(full[f"scorer.model.{name}"], value), name


def test_one_device_refuses_a_folder_of_shards(
    fits: Lazy[Path], toy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = fit_arguments(toy_folder, write_rows(Path("rows.jsonl")))
    with pytest.raises(SystemExit) as stop:
        main([*arguments, f"--ckpt_path={last_path(fits['shards, full'] / 'whole')}"])
    assert stop.value.code == 2
    assert "a folder with a file of each rank, which this run's strategy does not read" in capsys.readouterr().err


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "lora")) for n in TRAJECTORIES])
def test_trajectory_is_that_of_one_device(name: str, fits: Lazy[Path], toy_folder: Path) -> None:
    settings = {**EXACT, **TRAJECTORIES[name], "data__batch_size": 4, "trainer__default_root_dir": "one"}
    verb, *arguments = fit_arguments(toy_folder, write_rows(Path("rows.jsonl")), **settings)
    run(verb, arguments)
    one, two = Path("one"), fits[name]
    expected, got = (last_checkpoint(root)["state_dict"] for root in (one, two))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert (got[key] - value).norm() <= 1e-5 * value.norm(), key
    readings, again = (scalars(run_folder(root / "lightning_logs")) for root in (one, two))
    for key in ("train/loss", "train/grad_norm", "val/nll", "val/token_accuracy"):
        assert [s for s, _ in again[key]] == [s for s, _ in readings[key]]
        assert [v for _, v in again[key]] == pytest.approx([v for _, v in readings[key]], rel=1e-5), key


@pytest.fixture(scope="module")
def facts(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks holds, and what they refuse."""
    folder = tmp_path_factory.mktemp("facts")
    narrow = save_toy(folder / "narrow", hidden_size=24, num_attention_heads=3, num_key_value_heads=3)
    calls = {"sharded_facts": {"model": str(toy_folder)}, "refusals": {"model": str(toy_folder), "narrow": str(narrow)}}
    return two_ranks("work:several", folder, calls=calls)


def test_ranks_see_different_rows_and_hold_shards(facts: list[dict[str, Any]]) -> None:
    first, second = (rank["sharded_facts"] for rank in facts)
    for rank in (first, second):
        assert rank["data_parallel_size"] == 2
        assert rank["local"] <= 0.6 * rank["whole"]
        assert rank["largest_share"] < 1
    assert first["local"] + second["local"] == first["whole"]
    assert len(first["rows"]) == len(second["rows"]) > 0
    assert not set(first["rows"]) & set(second["rows"])


def test_what_cannot_work_is_refused(facts: list[dict[str, Any]]) -> None:
    other = r"checkpoint holds '.*toy.*'.*this run built '.*narrow.*of another shape: scorer"
    objective = r"trained under Adaptive.*this run uses NLL.*lightning-sft export"
    parts = {
        "auto": "data_parallel_size: 2 and tensor_parallel_size: 1",
        "sizes": r"data_parallel_size=3.*tensor_parallel_size=1.* multiplied should equal the world size \(2\)",
        "torch_compile": "torch_compile: false",
        "predict": "predict does not run under FSDP2",
        "single rows": r"trainable_token_indices under FSDP2.*modules_to_save: \[embed_tokens, lm_head\]",
        "adapter on split layers": "An adapter was given with tensor_parallel_size 2",
        "heads": "tensor_parallel_size is 2, which does not divide num_attention_heads = 3 of LlamaForCausalLM",
        "another model": other,
        "another model, shards": other,
        "an adapter": r"holds '.*toy.*'.* built '.*with LoraConfig.*missing there: .*lora_A",
        "another objective": objective,
        "an optimizer without a state": "its optimizer has no state.*save_distributed_checkpoint: true",
        "another objective, shards": objective,
    }
    for messages in (rank["refusals"] for rank in facts):
        assert messages.keys() == parts.keys()
        for name, part in parts.items():
            assert re.search(part, messages[name]), f"{name}: {messages[name]}"
