"""Damaged files end in a clear error or a counted skip, and every whole row in them is recovered."""

import re
import time

import pytest

from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, template
from tests.data.reading.damage import Damaged, corpus, write

CORPUS = corpus()
SECONDS = 20


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(template("chatml"))


def test_the_corpus_is_as_large_as_promised():
    assert len(CORPUS) >= 100
    assert len({damaged.kind for damaged in CORPUS}) >= 12


@pytest.mark.parametrize("damaged", CORPUS, ids=lambda damaged: f"{damaged.kind}-{damaged.name}")
def test_damaged_file(damaged: Damaged, tokenizer, tmp_path):
    path = write(damaged, tmp_path)
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        SFTDataModule(train=str(path), tokenizer=tokenizer).setup("fit")
    message = str(error.value)
    assert path.name in message or path.name.split(".")[0] in message
    assert len(message) < 2000
    assert message.isprintable()

    options = {"on_bad_row": "skip", "rejected_file": str(tmp_path / "rejected.jsonl")}
    data = SFTDataModule(train=str(path), tokenizer=tokenizer, batch_size=1, shuffle=False, **options)
    if not damaged.whole:
        with pytest.raises(UserError):
            data.setup("fit")
    else:
        data.setup("fit")
        texts = [tokenizer.decode(batch["input_ids"][0]) for batch in data.train_dataloader()]
        found = [int(re.search(r"question (\d+)<", text)[1]) for text in texts]
        assert tuple(found) == damaged.whole
        rejected = data.report["train"].rejected
        assert rejected
        assert all(row.reason and path.name in row.where for row in rejected)
        assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == len(rejected)
    assert time.monotonic() - started < SECONDS
