import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from lightning_sft.callbacks.best_checkpoint import BestCheckpoint
from lightning_sft.callbacks.monitors import monitored_keys
from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.callbacks.synonym_rank import SynonymRankMonitor
from lightning_sft.errors import UserError
from lightning_sft.probes import forward
from tests.callbacks.stranger import PROBES, Stranger, by_definition, fit, from_hidden
from tests.toys import toy_tokenizer


def both(n=1, **options):
    return [SynonymRankMonitor(PROBES, n, **options), OrderParameterLogger(PROBES, n, **options)]


def every_probe(n, **options):
    return OrderParameterLogger(PROBES, n, log_per_probe=True, **options)


class Recorder(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, folder):
        super().__init__(folder)
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        self.seen.setdefault(step, {}).update(metrics)

    def save(self):
        pass


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trajectory_is_bitwise_the_same_with_and_without(tmp_path, accumulate):
    ends = []
    for callbacks in ([], both()):
        torch.manual_seed(1)
        module = Stranger(attention_dropout=0.3)
        fit(module, callbacks, tmp_path, accumulate_grad_batches=accumulate, max_steps=5)
        ends.append((module.state_dict(), torch.get_rng_state(), [m.training for m in module.modules()]))
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])
    assert torch.equal(ends[0][1], ends[1][1])
    assert ends[0][2] == ends[1][2]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_values_equal_the_definitions_before_and_after(tmp_path, kind):
    module = Stranger(kind)
    first = {p.name: by_definition(module.net, p) for p in PROBES}
    logger = Recorder(tmp_path)
    fit(module, both(log_per_probe=True), tmp_path, logger=logger)
    last = {p.name: by_definition(module.net, p) for p in PROBES}
    for step, expected in ((0, first), (6, last)):
        seen = logger.seen[step]
        for name, values in expected.items():
            keys = [f"order/{name}/{k}" for k in ("p_correct", "p_competitor", "phi", "signal")]
            got = [*(seen[k] for k in keys), seen[f"synonyms/{name}/rank"]]
            assert got == pytest.approx(values, abs=2e-6)
            assert seen[f"order/{name}/phi"] == pytest.approx(seen[f"order/{name}/signal"] + seen[f"order/{name}/drag"])
        assert seen["order/phi"] == pytest.approx((seen["order/first/phi"] + seen["order/last/phi"]) / 2)
        assert seen["order/control/phi"] == seen["order/three/phi"]
        assert seen["order/train/phi"] == seen["order/first/phi"]
        assert seen["order/test/phi"] == seen["order/last/phi"]
    for before, after in zip(range(6), range(1, 7), strict=True):
        change = logger.seen[after]["order/first/phi"] - logger.seen[before]["order/first/phi"]
        parts = logger.seen[after]
        assert parts["order/first/readout"] + parts["order/first/geometry"] == pytest.approx(change, abs=1e-6)
        causes = parts["order/first/counterfactual_hidden"] + parts["order/first/counterfactual_embeddings"]
        assert causes == pytest.approx(change, abs=1e-6)


def test_aggregates_reach_monitors_and_single_probes_only_loggers(tmp_path):
    trainer = fit(Stranger(), both(), tmp_path)
    keys = set(trainer.callback_metrics)
    assert {"synonyms/flip", "synonyms/rank", "order/phi", "order/jump", "order/control/phi"} <= keys
    assert not any("first" in key for key in keys)


class Follower(Callback):
    monitor = "order/first/phi"


def test_single_probes_are_logged_where_something_follows_them_or_when_asked(tmp_path):
    def logged(callbacks):
        logger = Recorder(tmp_path)
        trainer = fit(Stranger(), callbacks, tmp_path, logger=logger, max_steps=2)
        return set(trainer.callback_metrics), {key for values in logger.seen.values() for key in values}

    def single(keys):
        return {key for key in keys if "/first/" in key or "/last/" in key}

    monitors, curves = logged(both())
    assert not single(monitors | curves), "six probes made 221 charts"
    monitors, curves = logged([*both(), Follower()])
    assert single(monitors) == single(curves) == {"order/first/phi"}
    bounded = BestCheckpoint("order/phi", {"synonyms/last/rank": 3.0})
    assert monitored_keys(Trainer(logger=False, callbacks=[bounded])) >= {"order/phi", "synonyms/last/rank"}
    monitors, curves = logged(both(log_per_probe=True))
    assert not single(monitors)
    assert {"order/first/phi", "synonyms/last/rank"} <= single(curves)


@pytest.mark.parametrize(
    ("n", "accumulate", "expected"), [(1, 2, [0, 1, 2, 3, 4, 5, 6]), (4, 1, [0, 4, 6]), (3, 2, [0, 3, 6])]
)
def test_readings_follow_optimizer_steps(tmp_path, n, accumulate, expected):
    callbacks = both(n)
    fit(Stranger(), callbacks, tmp_path, accumulate_grad_batches=accumulate)
    assert [c.steps for c in callbacks] == [expected, expected]
    assert all(h.step == expected for h in callbacks[1].histories.values())


def test_two_callbacks_share_one_forward_and_frozen_overlaps_are_computed_once(tmp_path, monkeypatch):
    calls = {"forward": 0, "geometry": 0}

    def counted(name, function):
        def run(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr("lightning_sft.callbacks.probe_reading.read_probes", counted("forward", forward.read_probes))
    from lightning_sft.probes import embedding_track

    monkeypatch.setattr(embedding_track, "answer_geometry", counted("geometry", embedding_track.answer_geometry))
    fit(Stranger(freeze_embeddings=True), both(), tmp_path)
    assert calls == {"forward": 7, "geometry": 1}
    fit(Stranger(), both(), tmp_path)
    assert calls == {"forward": 14, "geometry": 8}


def test_frozen_embeddings_make_the_geometry_part_exactly_zero(tmp_path):
    module, logger, order = Stranger(freeze_embeddings=True), Recorder(tmp_path), every_probe(1)
    before = module.net.get_input_embeddings().weight.clone()
    fit(module, [order], tmp_path, logger=logger)
    assert torch.equal(before, module.net.get_input_embeddings().weight)
    assert all(logger.seen[step]["order/first/geometry"] == 0.0 for step in range(1, 7))
    assert not any("counterfactual" in key for key in logger.seen[6])
    assert order.histories["first"].geometry_share[1:] == [0.0] * 6


class Plant(Stranger):
    """Does nothing until step 6, then by hand changes one thing."""

    def __init__(self, what, **options):
        super().__init__(lr=0.0, **options)
        self.what = what

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step != 6:
            return
        rows = self.net.get_input_embeddings().weight
        c = self.tokenizer("a", add_special_tokens=False).input_ids[0]
        with torch.no_grad():
            if self.what == "rows":
                rows[:50] = 3 * rows[c] + rows[:50]
            else:
                self.net.model.norm.weight.mul_(100)  # a sharper prediction, from rows that stay where they are


@pytest.mark.parametrize("frozen", [False, True])
def test_a_planted_geometric_transition_is_not_called_phantom(tmp_path, frozen):
    order = OrderParameterLogger(PROBES[:1], 1)
    fit(Plant("rows", freeze_embeddings=frozen), [order], tmp_path, max_steps=12)
    jumps = order.verdicts["first"].jumps
    assert [j.step for j in jumps] == [7]
    assert jumps[0].phantom is False
    assert max(jumps[0].geometry_share, jumps[0].counterfactual_share) > 0.5


@pytest.mark.parametrize("frozen", [False, True])
def test_a_readout_jump_under_still_embeddings_is_phantom(tmp_path, frozen):
    order = OrderParameterLogger(PROBES[:1], 1)
    fit(Plant("norm", freeze_embeddings=frozen), [order], tmp_path, max_steps=12)
    jumps = order.verdicts["first"].jumps
    assert [j.step for j in jumps] == [7]
    assert jumps[0].phantom is True
    assert jumps[0].geometry_share == 0.0


def test_without_a_counterfactual_nobody_knows_whether_moving_rows_made_a_jump(tmp_path):
    order = OrderParameterLogger(PROBES[:1], 1, counterfactual=False)
    fit(Plant("norm"), [order], tmp_path, max_steps=12)
    (jump,) = order.verdicts["first"].jumps
    assert (jump.step, jump.counterfactual_share, jump.phantom) == (7, None, None)


def test_histories_and_checkpoints_stay_bounded(tmp_path, monkeypatch):
    whole, bounded = both(n=1), both(n=1)
    fit(Stranger(), whole, tmp_path, max_steps=12)
    monkeypatch.setattr("lightning_sft.callbacks.probe_reading.MOST_READINGS", 6)
    fit(Stranger(), bounded, tmp_path, max_steps=12)
    for monitor, long in zip(bounded, whole, strict=True):
        assert len(long.steps) == 13
        assert len(monitor.steps) <= 6
        assert (monitor.steps[0], monitor.steps[-1]) == (0, 12)
        kept = [long.steps.index(step) for step in monitor.steps]
        if isinstance(monitor, SynonymRankMonitor):
            assert monitor.state_dict()["ranks"] == [long.ranks[i] for i in kept]
        else:
            assert monitor.histories["first"].phi == [long.histories["first"].phi[i] for i in kept]
            assert len(monitor.training_loss) == len(monitor.steps)
            assert monitor.verdicts["first"].outcome == long.verdicts["first"].outcome


class Save(Callback):
    """Saves a checkpoint after one optimizer step, as a checkpoint callback does: after the probes were read."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before")
def test_a_resumed_run_continues_the_history(tmp_path):
    whole = both(2)
    fit(Stranger(), [*whole, Save(4, tmp_path / "4.ckpt")], tmp_path, max_steps=8)
    resumed = both(2)
    fit(Stranger(), resumed, tmp_path, max_steps=8, ckpt_path=tmp_path / "4.ckpt")
    assert resumed[0].steps == [0, 2, 4, 6, 8]
    assert resumed[0].ranks == whole[0].ranks
    for name, history in whole[1].histories.items():
        assert vars(resumed[1].histories[name]) == vars(history)
    assert resumed[1].training_loss == whole[1].training_loss
    assert resumed[1].verdicts == whole[1].verdicts


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before")
def test_resuming_between_readings_leaves_the_unknown_split_open(tmp_path):
    fit(Stranger(), [*both(2), Save(3, tmp_path / "3.ckpt")], tmp_path)
    monitor, order = both(2)
    fit(Stranger(), [monitor, order], tmp_path, max_steps=6, ckpt_path=tmp_path / "3.ckpt")
    assert order.steps == monitor.steps == [0, 2, 3, 4, 6]
    shares = order.histories["first"].geometry_share
    assert [share is None for share in shares] == [True, False, True, False, False]


def test_another_set_of_probes_starts_its_history_anew(tmp_path):
    old = OrderParameterLogger(PROBES, 2)
    fit(Stranger(), [old], tmp_path)
    new = OrderParameterLogger(PROBES[:2], 2)
    with pytest.warns(UserWarning, match="starts anew"):
        new.load_state_dict(old.state_dict())
    assert new.steps == []


def test_one_callback_used_for_two_fits_forgets_the_first(tmp_path):
    callbacks = both()
    fit(Stranger(), callbacks, tmp_path, max_steps=6)
    fit(Stranger(), callbacks, tmp_path, max_steps=3)
    assert [c.steps for c in callbacks] == [[0, 1, 2, 3]] * 2
    assert len(callbacks[0].ranks) == 4
    assert all(len(h.phi) == 4 for h in callbacks[1].histories.values())


def test_names_tell_instances_apart(tmp_path):
    a, b = OrderParameterLogger(PROBES, 2, name="a"), OrderParameterLogger(PROBES, 2, name="b")
    assert a.state_key != b.state_key
    trainer = fit(Stranger(), [a, b], tmp_path, logger=CSVLogger(tmp_path))
    assert {"order/a/phi", "order/b/phi"} <= set(trainer.callback_metrics)
    folders = sorted(p.parent.name for p in (tmp_path / "lightning_logs").rglob("verdicts.json"))
    assert folders == ["order_parameter-a", "order_parameter-b"]


def test_untied_embeddings_are_reported_on_both_sides(tmp_path):
    module = Stranger(tie_word_embeddings=False)
    module.net.get_input_embeddings().requires_grad_(False)
    logger = Recorder(tmp_path)
    fit(module, [every_probe(1)], tmp_path, logger=logger)
    seen = logger.seen[6]
    assert seen["order/first/geometry"] == 0.0
    assert seen["order/first/output_geometry"] != 0.0
    assert seen["order/first/phi"] == pytest.approx(by_definition(module.net, PROBES[0])[2], abs=2e-6)
    assert "order/first/output_phi" not in _keys(tmp_path, tie_word_embeddings=True)
    assert "order/first/output_phi" not in _keys(tmp_path, matrix="output", tie_word_embeddings=False)


def _keys(folder, matrix="auto", **overrides):
    logger = Recorder(folder)
    fit(Stranger(**overrides), [every_probe(3, matrix=matrix)], folder, logger=logger)
    return set(logger.seen[6])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft, transformers 5
def test_adapters_inside_modules_work_and_prompt_adapters_are_refused(tmp_path):
    module = Stranger(freeze_embeddings=True, tie_word_embeddings=False)
    module.net = get_peft_model(
        module.net, LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    )
    logger = Recorder(tmp_path)
    fit(module, both(log_per_probe=True), tmp_path, logger=logger)
    assert logger.seen[6]["order/first/geometry"] != 0.0
    assert logger.seen[6]["order/first/output_geometry"] == 0.0
    module = Stranger()
    module.net = get_peft_model(module.net, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="PromptTuningConfig acts on the prompt"):
        fit(module, both(), tmp_path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_runs_are_read_in_fp32(tmp_path, precision):
    """The hidden state is bf16; logits, softmax and overlaps are those of its exact numbers, not rounded again."""
    module, logger = Stranger(), Recorder(tmp_path)
    fit(module, both(log_per_probe=True), tmp_path, precision=precision, logger=logger)
    net, probe = module.net.eval(), PROBES[0]
    ids = torch.tensor([toy_tokenizer()(probe.context).input_ids])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        hidden = net.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    p_correct, p_competitor, phi, *_ = from_hidden(net, probe, hidden)
    seen = logger.seen[6]
    # one position, padded or not, goes through other products: the hidden state may differ by its own rounding
    assert seen["order/first/p_correct"] == pytest.approx(p_correct, rel=2**-7)
    assert seen["order/first/p_competitor"] == pytest.approx(p_competitor, rel=2**-7)
    assert seen["order/first/phi"] == pytest.approx(phi, abs=2**-8)
    rounded = torch.tensor(seen["order/first/p_correct"]).bfloat16().item()
    assert seen["order/first/p_correct"] != rounded, "fp32 keeps more digits than bf16 has"


def test_purity_is_logged_when_asked_for(tmp_path):
    assert "order/first/purity" not in _keys(tmp_path)
    logger = Recorder(tmp_path)
    fit(Stranger(), [every_probe(3, with_purity=True)], tmp_path, logger=logger)
    assert 0 < logger.seen[6]["order/first/purity"] <= 1


def test_figures_go_to_tensorboard_and_nowhere_else(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = fit(Stranger(), both(log_per_probe=True), tmp_path, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(trainer.log_dir).Reload()
    assert set(events.Tags()["images"]) == {"order/curves", "synonyms/ranks"}
    assert len(events.Scalars("order/first/phi")) == 7
    fit(Stranger(), both(), tmp_path, logger=CSVLogger(tmp_path))
    assert not list((tmp_path / "lightning_logs").rglob("*.png"))


def test_the_verdicts_are_written_and_printed(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer = fit(Stranger(), both(), tmp_path, logger=CSVLogger(tmp_path))
    assert "reconstructed from the abstract" in caplog.text
    folder = tmp_path / "lightning_logs" / "version_0" / "order_parameter"
    assert str(folder.parent) == trainer.log_dir
    content = json.loads((folder / "verdicts.json").read_text())
    assert [v["probe"] for v in content["verdicts"]] == ["first", "last", "three"]
    assert content["readings"]["first"]["step"] == list(range(7))
    assert len(content["training_loss"]) == 7
    assert len((folder / "verdicts.csv").read_text().splitlines()) == 4
    assert "flipped at step" in (folder / "verdicts.txt").read_text()


def test_barebones_and_fast_dev_run_leave_nothing_behind(tmp_path):
    callbacks = both()
    fit(Stranger(), callbacks, tmp_path, barebones=True, logger=None, enable_checkpointing=None, log_every_n_steps=None)
    assert [c.steps for c in callbacks] == [[], []]
    fit(Stranger(), both(), tmp_path, fast_dev_run=2)
    assert not list(tmp_path.rglob("verdicts.*"))


def test_a_model_without_tokenizer_gets_one_explicitly(tmp_path):
    module = Stranger()
    tokenizer = module.tokenizer
    del module.tokenizer
    with pytest.raises(UserError, match="tokenizer"):
        fit(module, [SynonymRankMonitor(PROBES, 1)], tmp_path)
    monitor = SynonymRankMonitor(PROBES, 1, tokenizer=tokenizer, model=module.net)
    fit(module, [monitor], tmp_path)
    assert len(monitor.ranks) == 7


def test_steps_below_one_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        SynonymRankMonitor(PROBES, 0)
