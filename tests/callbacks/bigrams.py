"""A toy whose prediction depends on the last token alone, by a table, and training that writes another into it."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_sft import SFTModule
from lightning_sft.callbacks import SilentFailureMonitor
from lightning_sft.data import SFTDataModule
from lightning_sft.models.access import find_causal_lm
from tests.fitting import trainer
from tests.toys import toy_tokenizer

DIM, VOCAB = 264, 263
TOKEN = toy_tokenizer().convert_tokens_to_ids

# context letter -> right letter, competitor, and the logits of both (all others are 0) before and after training
PLANTED = {
    "f": ("a", "b", (1.0, 4.0), (3.0, 4.0)),  # fails: a lower loss, behind the same competitor
    "o": ("a", "b", (1.0, 4.0), (6.0, 4.0)),  # overtakes it
    "l": ("a", "b", (4.0, 1.0), (1.0, 4.0)),  # loses its lead
    "k": ("a", "b", (4.0, 1.0), (5.0, 1.0)),  # keeps it
    "s": ("a", "b", (1.0, 4.0), (1.05, 4.0)),  # learns too little
}


def bigram_model(table: torch.Tensor) -> PreTrainedModel:
    """A llama whose logits after token k are row k of ``table``, (VOCAB, VOCAB)."""
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8,
        num_key_value_heads=4, max_position_embeddings=128, rms_norm_eps=0.0, tie_word_embeddings=False, pad_token_id=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(DIM)[:VOCAB])
        model.lm_head.weight.copy_(head_weight(table))
    return model.eval()


def head_weight(table: torch.Tensor) -> torch.Tensor:
    """The unembedding that makes the table of one-hot embeddings behind an RMS norm."""
    weight = torch.zeros(VOCAB, DIM)
    weight[:, :VOCAB] = table.T / DIM**0.5
    return weight


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """The logits before and after training."""
    made = torch.zeros(2, VOCAB, VOCAB)
    for letter, (right, rival, *logits) in PLANTED.items():
        for table, (z_right, z_rival) in zip(made, logits, strict=True):
            table[TOKEN(letter), TOKEN(right)], table[TOKEN(letter), TOKEN(rival)] = z_right, z_rival
    return made[0], made[1]


def table_of(logits: dict[str, dict[str, float]]) -> torch.Tensor:
    """Logits after some context letters, by the letter; all others are 0."""
    table = torch.zeros(VOCAB, VOCAB)
    for letter, of in logits.items():
        for answer, logit in of.items():
            table[TOKEN(letter), TOKEN(answer)] = logit
    return table


def save_planted(folder: Path, table: torch.Tensor | None = None) -> Path:
    """Write a model and its tokenizer; None is the model as it is before training."""
    bigram_model(tables()[0] if table is None else table).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def write_planted(path: Path, rows: int = 24) -> Path:
    """Rows whose answers are right letters after context letters, of different lengths."""
    letters = list(PLANTED)
    lines = []
    for i in range(rows):
        mine = [letters[(i + j * j) % len(letters)] for j in range(1 + i % 4)]
        lines.append({"prompt": f"row {i:02d}: ", "completion": "".join(f"{x}a" for x in mine)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Plant(Callback):
    """Writes the planted table into the model after an optimizer step."""

    def __init__(self, step: int = 1, table: torch.Tensor | None = None) -> None:
        self.step, self.table = step, tables()[1] if table is None else table

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            weight, planted = find_causal_lm(pl_module).lm_head.weight, head_weight(self.table)
            if isinstance(weight, DTensor):
                planted = distribute_tensor(planted, weight.device_mesh, weight.placements)
            with torch.no_grad():
                weight.copy_(planted)


def planted_run(folder: Path, rows: Path, **data: object) -> tuple[SFTModule, SFTDataModule]:
    """The module, which does not learn by itself, and its data: the last six rows are the validation set."""
    module = SFTModule(str(folder), optimizer=lambda params: torch.optim.SGD(params, lr=0.0))
    settings = {"train": str(rows), "val": str(rows), "batch_size": 4, "apply_chat_template": False, "cache_dir": False}
    return module, SFTDataModule(**{**settings, **data})


def expected(data: SFTDataModule, what: str, numbers: list[int] | None = None) -> dict[str, float]:
    """The shares, counted from the tables row by row in plain Python."""
    before, after = (table.double().tolist() for table in tables())
    count = dict.fromkeys(("tokens", "outranked", "behind", "share", "flipped", "lost"), 0)
    dataset, confidence = data.dataset(what), 0.0
    for number in range(len(dataset)) if numbers is None else numbers:
        row = dataset[number]
        ids = row.ids.tolist()
        for i in range(1, len(ids)):
            if not row.trained[i]:
                continue
            z0, z1, y = before[ids[i - 1]], after[ids[i - 1]], ids[i]
            others = [k for k in range(VOCAB) if k != y]
            rival0, rival1 = (max(others, key=lambda k, z=z: (z[k], -k)) for z in (z0, z1))
            behind0, behind1 = z0[rival0] > z0[y], z1[rival1] > z1[y]
            fell = nll(z0, y) - nll(z1, y) > 0.1
            count["tokens"] += 1
            count["outranked"] += behind1
            count["behind"] += behind0
            count["share"] += behind0 and behind1 and fell and rival0 == rival1
            count["flipped"] += behind0 and not behind1
            count["lost"] += not behind0 and behind1
            confidence += max(float(p) for p in torch.tensor(z1).softmax(0))
    n, behind = count["tokens"], count["behind"]
    return {
        "outranked": count["outranked"] / n,
        "expected": 1 - confidence / n,
        "excess": count["outranked"] / n - 1 + confidence / n,
        "share": count["share"] / behind,
        "flipped": count["flipped"] / behind,
        "lost": count["lost"] / (n - behind),
    }


def nll(logits: list[float], target: int) -> float:
    return float(torch.tensor(logits).logsumexp(0)) - logits[target]


def whole_monitor(**settings: object) -> SilentFailureMonitor:
    """A monitor that watches every row of the toy."""
    return SilentFailureMonitor(**{"train_rows": 100, "val_rows": 100, **settings})


class Stranger(LightningModule):
    """Somebody else's module around the toy: Hugging Face's own loss, plain loaders, padding on the left."""

    def __init__(self, rows: Path) -> None:
        super().__init__()
        self.net = bigram_model(tables()[0])
        self.rows = [self.encoded(json.loads(line)) for line in rows.read_text().splitlines()]

    def encoded(self, line: dict[str, str]) -> tuple[list[int], int]:
        """Ids, and how many of them belong to the prompt."""
        prompt, ids = (
            toy_tokenizer()(text).input_ids for text in (line["prompt"], line["prompt"] + line["completion"])
        )
        return ids, len(prompt)

    def training_step(self, batch, batch_idx):
        return self.net(**batch, use_cache=False).loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4, collate_fn=padded_left, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4, collate_fn=padded_left)


class ShardedStranger(Stranger):
    """The same, each layer and the whole of it sharded by FSDP2."""

    def configure_model(self) -> None:
        for layer in self.net.model.layers:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def padded_left(rows: list[tuple[list[int], int]]) -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in rows)
    batch = {name: torch.zeros(len(rows), length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((len(rows), length), -100)
    for i, (ids, prompt) in enumerate(rows):
        batch["input_ids"][i, length - len(ids) :] = torch.tensor(ids)
        batch["attention_mask"][i, length - len(ids) :] = 1
        batch["labels"][i, length - len(ids) + prompt :] = torch.tensor(ids[prompt:])
    return batch


def sharded() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


def on_ranks(rank: int, model: str, rows: str, cases: list[tuple[str, str]]) -> list[dict[str, dict[str, float]]]:
    """The readings of this rank after fits of ``(module, strategy)``: whole numbers and all that was logged."""
    found = []
    for kind, strategy in cases:
        monitor = whole_monitor()
        sharing = {"strategy": sharded() if strategy == "fsdp2" else "ddp", "devices": 2}
        fit = trainer(max_epochs=-1, max_steps=2, val_check_interval=1, callbacks=[monitor, Plant()], **sharing)
        if kind == "ours":
            module, data = planted_run(Path(model), Path(rows))
            fit.fit(module, data)
        elif kind == "dealt":
            module, monitor.required = Stranger(Path(rows)), False
            module.rows = module.rows[rank::2]
            fit.fit(module)
        else:
            fit.fit((Stranger if strategy == "ddp" else ShardedStranger)(Path(rows)))
        logged = {key: float(value) for key, value in fit.callback_metrics.items() if key.startswith("silent/")}
        readings = {s.name: asdict(s.reading(0.1)) for s in monitor.watched}
        found.append({**readings, "logged": logged})
    return found
