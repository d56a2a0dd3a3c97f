"""Probes as token ids, and competitors that the model names."""

import json

import pytest
import torch

from lightning_sft.callbacks import OrderParameterLogger, SynonymRankMonitor
from lightning_sft.errors import UserError
from lightning_sft.probes import Probe, encode_probes, load_probes, save_probes
from lightning_sft.probes.competitors import STRONGEST, lacks_competitors, name_competitors
from lightning_sft.probes.forward import read_probes
from lightning_sft.sweep.observers import ProbeObserver
from lightning_sft.sweep.prediction.predict import predict_critical_lr
from tests.callbacks.stranger import Stranger, fit
from tests.toys import toy_model, toy_tokenizer

BY_IDS = Probe(context_ids=(1, 40, 41), correct_id=65, competitor_id=66)
LINE = {"context_ids": [1, 40, 41], "correct_id": 65, "competitor_id": 66}
TEXT = {"context": "I am ", "correct": "a", "leading_space": False}


def test_ids_are_taken_as_they_are():
    encoded = encode_probes([BY_IDS, Probe("xyz", "a", "b", leading_space=False)], toy_tokenizer())
    assert encoded.input_ids[0, : int(encoded.last[0]) + 1].tolist() == [1, 40, 41]
    assert (int(encoded.correct[0]), int(encoded.competitor[0])) == (65, 66)
    assert encoded.probes[0].name == "65-66"


def test_lines_of_a_run_are_probes_and_read_back_the_same(tmp_path):
    path = tmp_path / "silent.jsonl"
    seen = {"p_correct": 0.1, "p_competitor": 0.5, "nll_start": 3.0, "nll": 2.3, "near_synonym": False}
    place = {"set": "train", "source": None, "row": 3, "position": 3, "step": 10}
    texts = {"context": "...", "correct": "\n", "competitor": " "}
    path.write_text("".join(json.dumps({**texts, **LINE, **seen, **place}) + "\n" for _ in range(2)))
    probes = load_probes(path)
    assert [(p.context_ids, p.correct_id, p.competitor_id) for p in probes] == [((1, 40, 41), 65, 66)] * 2
    assert len({p.name for p in probes}) == 2
    for ending in ("jsonl", "yaml"):
        assert load_probes(save_probes(probes, tmp_path / f"again.{ending}")) == probes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_ids": []}, "at least one token id"),
        ({"context_ids": "1 2"}, "must be a list"),
        ({"context_ids": [1, -2]}, "no whole numbers"),
        ({"context_ids": [1, 2.5]}, "no whole numbers"),
        ({"correct_id": None}, "answers are not ids"),
        ({"competitor_id": None}, "answers are not ids"),
        ({"competitor_id": 65}, "competes with itself"),
    ],
)
def test_ids_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        load_probes([{**LINE, **change}])


def test_ids_of_another_tokenizer_are_refused_by_the_model():
    for change in ({"context_ids": (1, 5000)}, {"correct_id": 5000}, {"competitor_id": 5000}):
        probe = Probe(**{"context_ids": (1, 40), "correct_id": 65, "competitor_id": 66, **change})
        with pytest.raises(UserError, match=r"token id 5000, but the ids of this model's vocabulary end at 262"):
            read_probes(toy_model(), encode_probes([probe], toy_tokenizer()))


def by_definition(net, context, correct, how):
    with torch.no_grad():
        z = net(torch.tensor([toy_tokenizer()(context).input_ids])).logits[0, -1].double()
    z[correct] = -torch.inf
    if how == "auto":
        return int(z.argmax())
    rows = torch.nn.functional.normalize(net.get_input_embeddings().weight.detach().double(), dim=1)
    strongest = z.topk(STRONGEST).indices
    return int(strongest[(rows[strongest] @ rows[correct]).argmax()])


@pytest.mark.parametrize("how", ["auto", "nearest"])
def test_the_model_names_the_strongest_or_the_nearest_of_the_strongest(how):
    model, tokenizer = toy_model(), toy_tokenizer()
    encoded = encode_probes([Probe(**TEXT, competitor=how), BY_IDS], tokenizer)
    assert lacks_competitors(encoded)
    named = name_competitors(encoded, read_probes(model, encoded).logits, model, tokenizer)
    assert not lacks_competitors(named)
    assert int(named.competitor[0]) == by_definition(model, "I am ", int(encoded.correct[0]), how)
    assert named.probes[0].competitor_id == int(named.competitor[0])
    assert named.probes[0].name == f"a-{how}"
    assert (int(named.competitor[1]), named.probes[1]) == (66, encoded.probes[1])


def test_every_instrument_takes_them_and_a_resumed_run_keeps_its_competitors(tmp_path):
    probes = [Probe(**TEXT, competitor="auto"), BY_IDS]
    module = Stranger()
    expected = by_definition(module.net.eval(), "I am ", toy_tokenizer()("a").input_ids[0], "auto")
    ranks, order = SynonymRankMonitor(probes, every_n_steps=2), OrderParameterLogger(probes, every_n_steps=2)
    trainer = fit(module.train(), [ranks, order], tmp_path, max_steps=2, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert ranks.competitors() == order.competitors() == [expected, 66]
    again = Stranger()
    with torch.no_grad():  # the competitor of the present would be another
        again.net.get_input_embeddings().weight.copy_(toy_model(seed=4).get_input_embeddings().weight)
    more = SynonymRankMonitor(probes, every_n_steps=2), OrderParameterLogger(probes, every_n_steps=2)
    fit(again, list(more), tmp_path, max_steps=4, ckpt_path=tmp_path / "half.ckpt")
    assert [m.competitors() for m in more] == [[expected, 66]] * 2
    assert order.verdicts.keys() == {"a-auto", "65-66"}

    observer = ProbeObserver(probes, module)
    observer.read(trainer, module)
    assert not lacks_competitors(observer.encoded)


def test_predictions_take_them(tmp_path):
    model = toy_model()
    found = predict_critical_lr(model, toy_tokenizer(), [Probe(**TEXT, competitor="auto")], steps=4)
    named = found.inputs["probes"][0]["competitor_id"]
    assert named == by_definition(model, "I am ", toy_tokenizer()("a").input_ids[0], "auto")
