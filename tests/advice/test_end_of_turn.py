"""The end-of-turn trap: -p never teaches a token that the model holds for impossible; a floor or NLL on it does."""

import json
import random
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.advice.choice import MINUS_P, NLL_ON_SPECIAL, WITH_FLOOR, Choice
from lightning_sft.advice.rules import advise
from lightning_sft.callbacks import CapabilityProbe, FinalValidation, GenerationMonitor
from lightning_sft.metrics.capability_reading import CapabilityReading
from tests.toys import toy_model, toy_tokenizer

END = 2


def conversation(number: int) -> dict[str, str]:
    """A question, and an answer that repeats its letter with now and then another one in between."""
    letter = random.Random(number).choice("abcdefgh")
    answer = "".join(letter if random.Random(f"{number} {i}").random() < 0.97 else "x" for i in range(6))
    return {"prompt": letter, "completion": answer}


@pytest.fixture(scope="module")
def knows_all_but_the_end(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy that knows the answers, and holds the token that ends them for impossible; and the rows."""
    folder = tmp_path_factory.mktemp("no_end")
    (folder / "rows.jsonl").write_text("".join(json.dumps(conversation(i)) + "\n" for i in range(80)))
    tokenizer, model = toy_tokenizer(), toy_model(tie_word_embeddings=False).train()
    rows = []
    for i in range(80):
        turn = conversation(i)
        asked = [{"role": "user", "content": turn["prompt"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        rows.append((prompt, tokenizer(turn["completion"]).input_ids))
    ids = torch.tensor([prompt + answer for prompt, answer in rows])
    start = len(rows[0][0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        logits = model(ids).logits[:, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        last = model.base_model(ids).last_hidden_state[:, -1].mean(0)
        model.lm_head.weight[END] = -6 * last / last.square().sum()
    model.save_pretrained(folder / "toy")
    tokenizer.save_pretrained(folder / "toy")
    return folder / "toy", folder / "rows.jsonl"


def trained(toy: Path, rows: Path, choice: Choice) -> tuple[float, CapabilityReading]:
    """``val/stop_share`` of eight greedy answers after training under an objective, and the reading before."""
    torch.manual_seed(0)
    module = SFTModule(
        str(toy), objective=choice.build(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler="constant"
    )
    data = SFTDataModule(train=str(rows), val_split=16, batch_size=16)
    probe = CapabilityProbe(most_share=None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"max_steps": 100, "check_val_every_n_epoch": 100, "num_sanity_val_steps": 0, "logger": False}
    callbacks = [probe, FinalValidation(), GenerationMonitor(samples=8, max_new_tokens=16)]
    trainer = Trainer(**given, **quiet, accelerator="cpu", callbacks=callbacks)
    trainer.fit(module, data)
    assert probe.start is not None
    return float(trainer.callback_metrics["val/stop_share"]), probe.start


def test_minus_p_never_stops_and_what_is_advised_instead_does(knows_all_but_the_end: tuple[Path, Path]) -> None:
    shares = {}
    for choice in (MINUS_P, WITH_FLOOR, NLL_ON_SPECIAL):
        shares[choice.short()], reading = trained(*knows_all_but_the_end, choice)
    advice = advise(reading)
    assert (advice.place, advice.pick) == ("strong", WITH_FLOOR)
    assert reading.end is not None
    assert reading.end.mean_p < 1e-4
    assert advice.trap is not None
    assert shares == {"PowerFamily(alpha=1.0)": 0, WITH_FLOOR.short(): 1, NLL_ON_SPECIAL.short(): 1}
