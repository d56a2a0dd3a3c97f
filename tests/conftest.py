"""Hygiene for every test: no network, no rank or process group left behind, one cache for converted models."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.devices import DEVICES
from tests.distributed.ranks import POOL
from tests.toys import save_toy

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "LIGHTNING_SFT_RUN_NAMES", "numbers"
)  # a folder that a test can name; test_run_names.py has others
# tests run side by side: more threads would only wait for each other, here and in the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

#: seconds by the clock for tests that start ranks: `ranks.py` tells ranks that hang from a machine that is busy
RANKS_TAKE = 1500
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that start ranks more time by the clock."""
    for item in items:
        if item.get_closest_marker("ranks") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(RANKS_TAKE))


@pytest.fixture(autouse=True)
def _hygiene(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Each test starts from the same seeds, in an empty folder, and leaves environment and process groups clean.

    Encoded rows are kept for the session only: outside of tmp_path, where some tests look at every file.
    """
    before = dict(os.environ)
    monkeypatch.setenv("LIGHTNING_SFT_DATA_CACHE", str(tmp_path_factory.getbasetemp() / "encoded_rows"))
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in {*RANK_VARIABLES, *(set(os.environ) - set(before))}:
        if name in before:
            os.environ[name] = before[name]
        elif not name.startswith("PYTEST_"):
            os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _ranks_end() -> Iterator[None]:
    """The process that forks ranks ends with the session."""
    yield
    POOL.close()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and CUDA where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a toy Llama and its tokenizer."""
    return save_toy(tmp_path_factory.mktemp("toy"))
