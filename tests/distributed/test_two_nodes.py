"""Two nodes on one machine: two agents of torchrun that meet over the loopback device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.running import run, toy_arguments, write_rows
from tests.toys import save_toy


@pytest.mark.slow
@pytest.mark.ranks
def test_two_agents_train_like_one_device(tmp_path: Path) -> None:
    """Rows without dropout, so that the weights are those of one device with twice the batch."""
    toy, rows = save_toy(tmp_path / "toy"), write_rows(tmp_path / "rows.jsonl")
    settings = {"trainer__max_steps": 2, "model__lr_scheduler": "constant", "trainer__logger": "false"}
    one = toy_arguments(toy, rows, data__batch_size=4, trainer__default_root_dir=tmp_path / "one", **settings)
    run("fit", [*one, "--trainer.strategy=auto", "--trainer.devices=1"])
    two = toy_arguments(toy, rows, data__batch_size=2, trainer__default_root_dir=tmp_path / "two", **settings)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        command += [f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "lightning_sft"]
        command += ["fit", *two, "--trainer.strategy=ddp", "--trainer.devices=1", "--trainer.num_nodes=2"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
        agents.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    outputs = [agent.communicate(timeout=280)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(outputs)[-4000:]
    weights = []
    for name in ("one", "two"):
        (last,) = (tmp_path / name).rglob("last.ckpt")
        weights.append(torch.load(last, weights_only=True)["state_dict"])
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)
