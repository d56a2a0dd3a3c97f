"""Training metrics, samples and summaries of a toy run, against plain transformers."""

import json
import math
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import GenerationMonitor
from tests.running import run, run_folder, scalars, toy_arguments, write_rows


def plain_readings(folder: Path, rows: list[dict[str, str]]) -> dict[str, float]:
    """Token averages by transformers alone, row by row, without padding, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logps, hits = [], []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(prompt + row["completion"] + "<|im_end|>").input_ids])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        logps.append(logp.gather(-1, ids[0, start:, None])[:, 0])
        hits.append(logp.argmax(-1) == ids[0, start:])
    logp = torch.cat(logps)
    return {
        "nll": -logp.mean().item(),
        "perplexity": math.exp(-logp.mean()),
        "mean_p": logp.exp().mean().item(),
        "token_accuracy": torch.cat(hits).double().mean().item(),
    }


def test_validation_equals_plain_transformers_and_a_reload(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in read[:5]))
    settings = {"data__val": held_out, "data__val_split": None, "trainer__num_sanity_val_steps": -1}
    run("fit", toy_arguments(toy_folder, rows, **settings, trainer__val_check_interval=3))
    logged = scalars(run_folder())

    expected = plain_readings(toy_folder, read[:5])
    for key, value in expected.items():
        step, first = logged[f"val/{key}"][0]
        assert step == 0, "the reading before the first step"
        assert first == pytest.approx(value, rel=1e-5), key
    assert logged["val/loss"][0][1] == pytest.approx(expected["nll"], rel=1e-5)

    module = SFTModule.load_from_checkpoint(run_folder() / "checkpoints/last.ckpt").eval()
    data = SFTDataModule(val=str(held_out), tokenizer=module.tokenizer)
    data.setup("validate")
    with torch.no_grad():
        for batch in data.val_dataloader():
            output = module(batch)
            module.averages.update(output.losses, output.scores)
    assert float(module.averages.compute()[0]["nll"]) == pytest.approx(logged["val/nll"][-1][1], abs=1e-6)


def test_training_readings_do_not_depend_on_the_split(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    seen = []
    for batch, accumulate in ((8, 1), (2, 4), (3, 3)):
        settings = {"data__batch_size": batch, "data__val_split": None, "trainer__accumulate_grad_batches": accumulate}
        root = f"{batch}x{accumulate}"
        run("fit", toy_arguments(toy_folder, rows, **settings, trainer__max_steps=2, trainer__default_root_dir=root))
        logged = scalars(run_folder(Path(root) / "lightning_logs"))
        seen.append({k: [v for _, v in points] for k, points in logged.items() if k.startswith("train/")})
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        for key, values in seen[0].items():
            assert other[key] == pytest.approx(values, rel=1e-5), key
    assert {"train/loss", "train/nll", "train/mean_p", "train/token_accuracy", "train/grad_norm", "train/lr"} <= seen[
        0
    ].keys()


def test_samples_and_accuracy_of_a_task(toy_folder: Path) -> None:
    task = {"class_path": "ReasoningGymTask", "init_args": {"name": "chain_sum", "size": 20}}
    arguments = toy_arguments(toy_folder, Path(json.dumps(task)), trainer__val_check_interval=3)
    run("fit", [*arguments, "--trainer.callbacks+=GenerationMonitor", "--trainer.callbacks.max_new_tokens=4"])
    folder = run_folder()
    assert scalars(folder)["val/task_accuracy"][-1][1] == 0.0, "a random model adds no numbers"
    events = EventAccumulator(str(folder))
    events.Reload()
    (text,) = events.Tensors("val/samples/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert table.startswith("| prompt | reference | answer | score |")
    assert "&lt;|im_start" not in table, "pipes inside a cell are escaped"
    assert table.count("\n") == 1 + 4, "one line a held-out row"


def test_other_loggers_get_the_readings_without_a_crash(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    run(
        "fit",
        [
            *toy_arguments(toy_folder, rows, trainer__val_check_interval=3),
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=csv",
        ],
    )
    (metrics,) = Path("csv").rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/nll", "val/nll", "perf/tokens_per_second"} <= set(header)


def test_barebones_is_silent(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    quiet = [
        a for a in toy_arguments(toy_folder, rows, data__val_split=None) if "enable" not in a and "log_every" not in a
    ]
    run("fit", [*quiet, "--trainer.barebones=true"])
    assert not Path("lightning_logs").exists()


def test_generation_monitor_refuses_negative_numbers() -> None:
    with pytest.raises(ValueError, match="limit=-1"):
        GenerationMonitor(limit=-1)


def test_the_data_report_stands_in_tensorboard(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    run("fit", toy_arguments(toy_folder, rows))
    events = EventAccumulator(str(run_folder()), size_guidance={"histograms": 0})
    events.Reload()
    logged = scalars(run_folder())
    assert logged["data/train_rows"] == [(0, 20.0)]
    assert logged["data/val_rows"] == [(0, 4.0)]
    assert 0 < logged["data/train_trained_share"][0][1] < 1
    (histogram,) = events.Histograms("zz_data/train_row_tokens")
    assert histogram.histogram_value.num == 20
    assert "data/report/text_summary" in events.Tags()["tensors"]
