"""Tokenising on several processes: the same rows in the same order, the same errors, nothing left running."""

import io
import multiprocessing
import os
import signal

import pytest
from lightning.pytorch.utilities import rank_zero_only

from lightning_sft import progress
from lightning_sft.data import SFTDataModule
from lightning_sft.data.encoding import parallel
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.encoding.parallel import encode_rows, processes_for
from lightning_sft.data.types import Encoded
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, write_jsonl
from tests.data.kept import chat, outcome
from tests.toys import CHATML


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK", 3)
    yield
    assert multiprocessing.active_children() == []


BAD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<|im_end|>"}]}
CASES = {
    "good": [chat(i) for i in range(17)],
    "bad among good": [chat(i) if i % 4 else BAD for i in range(17)],
    "first bad": [BAD, *(chat(i) for i in range(8))],
    "last bad": [*(chat(i) for i in range(8)), BAD],
    "all bad": [BAD] * 7,
    "one": [chat(0)],
    "long": [{"messages": [{"role": "user", "content": "x" * i}, chat(0)["messages"][1]]} for i in range(1, 80, 5)],
}


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("case", CASES)
def test_processes_change_nothing(tmp_path, case, on_bad_row):
    options = {
        "train": str(write_jsonl(tmp_path / "rows.jsonl", CASES[case])),
        "tokenizer": byte_tokenizer(CHATML),
        "on_bad_row": on_bad_row,
        "max_length": 90,
        "truncation": "drop" if on_bad_row == "skip" else "error",
        "cache_dir": False,
    }
    one, several = (outcome("fit", num_proc=number, **options) for number in (1, 3))
    assert one == several
    if "bad" in case and on_bad_row == "error":
        assert one.startswith(f"{tmp_path}/rows.jsonl:{CASES[case].index(BAD) + 1}: ")


def test_an_error_of_the_settings_comes_through(tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(9)]))
    options = {"train": path, "tokenizer": byte_tokenizer(), "cache_dir": False}
    one, several = (outcome("fit", num_proc=number, **options) for number in (1, 2))
    assert one == several
    assert "no chat template" in several


def examples(tmp_path, count):
    data = SFTDataModule(train=str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(count)])))
    return data.sets._read("train").examples


def test_a_child_is_another_process_and_the_parent_keeps_its_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    seen = tmp_path / "seen"
    seen.mkdir()
    encode = Encoder.__call__

    def note(self, example):
        (seen / f"{os.getpid()}-{os.environ['TOKENIZERS_PARALLELISM']}").touch()
        return encode(self, example)

    monkeypatch.setattr(Encoder, "__call__", note)
    rows = list(encode_rows(Encoder(byte_tokenizer(CHATML)), examples(tmp_path, 30), 2, "train"))
    assert [type(row) for row in rows] == [Encoded] * 30
    found = [path.name.split("-") for path in seen.iterdir()]
    assert {value for _, value in found} == {"false"}
    assert str(os.getpid()) not in {pid for pid, _ in found}
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_killed_child_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(Encoder, "__call__", lambda self, example: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"2 processes that tokenise was killed.*num_proc: 1"):
        list(encode_rows(Encoder(byte_tokenizer(CHATML)), examples(tmp_path, 9), 2, "train"))


def test_a_defect_in_a_child_is_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(Encoder, "__call__", lambda self, example: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        list(encode_rows(Encoder(byte_tokenizer(CHATML)), examples(tmp_path, 9), 2, "train"))


def test_stopping_early_leaves_no_process(tmp_path):
    rows = encode_rows(Encoder(byte_tokenizer(CHATML)), examples(tmp_path, 60), 2, "train")
    assert isinstance(next(rows), Encoded)
    rows.close()
    assert multiprocessing.active_children() == []


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(20)))
    assert processes_for(parallel.FEW_ROWS - 1) == 1
    assert processes_for(parallel.FEW_ROWS) == parallel.MOST_PROCESSES
    assert processes_for(parallel.FEW_ROWS, 3) == 3
    assert processes_for(2, 3) == 2
    assert processes_for(0, 3) == 1
    monkeypatch.setattr(parallel.sys, "platform", "darwin")
    assert processes_for(parallel.FEW_ROWS) == 1
    assert processes_for(parallel.FEW_ROWS, 3) == 3


def test_as_many_processes_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert processes_for(10**6) == 2


def test_no_processes_is_refused(tmp_path):
    with pytest.raises(UserError, match="num_proc is 0"):
        SFTDataModule(train="rows.jsonl", num_proc=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("rank", "terminal", "shown"), [(0, True, True), (1, True, False), (0, False, True)])
@pytest.mark.parametrize("processes", [1, 2])
def test_rank_zero_says_how_far_it_is(tmp_path, monkeypatch, processes, rank, terminal, shown):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(12)]))
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(progress.sys, "stderr", out)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    data = SFTDataModule(train=path, tokenizer=byte_tokenizer(CHATML), num_proc=processes, cache_dir=False)
    data.setup("fit")
    assert ("Reading rows" in out.getvalue()) == shown
    assert ("Tokenising train" in out.getvalue()) == shown


def test_short_work_shows_no_bar(tmp_path, monkeypatch):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(12)]))
    out = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", out)
    SFTDataModule(train=path, tokenizer=byte_tokenizer(CHATML), cache_dir=False).setup("fit")
    assert out.getvalue().strip() == ""
