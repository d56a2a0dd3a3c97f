"""`lightning chat` on toys: what it answers is what the models answer, and it asks as the run asked."""

import io
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.chat.conversation import ask, converse
from lightning_sft.chat.speakers import Prompting, Speaker, find_speakers
from lightning_sft.cli.chat import generation_options, parser
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.models.finished import find_finished
from lightning_sft.models.generation import generate
from lightning_sft.models.positions import PositionLimit
from tests.running import run, run_folder, toy_arguments, write_rows

LORA = '{"class_path": "peft.LoraConfig", "init_args": {"target_modules": "all-linear", "r": 4}}'
ASKED = "say 5"
GREEDY = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def runs(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which a run lies each: of all weights, and of an adapter."""
    made = {}
    for name, adapter in (("full", None), ("lora", LORA)):
        folder = made[name] = tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            given = {"model__adapter": adapter, "data__system": "Count.", "trainer__max_steps": 4}
            given |= {"model__optimizer": "AdamW", "model__optimizer.lr": 0.05}
            run("fit", toy_arguments(toy_folder, write_rows(folder / "rows.jsonl"), **given))
    return made


def checkpoint_of(folder: Path) -> Path:
    return run_folder(folder / "lightning_logs") / "checkpoints/last.ckpt"


def plain_answer(model: Any, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return generate(model, tokenizer, [ids], max_new_tokens=8)[0]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_base_and_tuned_answer_what_they_are_asked(
    name: str,
    runs: dict[str, Path],
    toy_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs[name])
    main(["chat", str(checkpoint_of(Path()).parents[1]), "--ckpt_path=last", f"--prompt={ASKED}", "--max-new-tokens=8"])
    out, err = capsys.readouterr()
    asked = [{"role": "system", "content": "Count."}, {"role": "user", "content": ASKED}]
    base = AutoModelForCausalLM.from_pretrained(toy_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(toy_folder)
    tuned = find_finished(checkpoint_of(runs[name])).load().causal_lm
    expected = [plain_answer(model, tokenizer, asked) for model in (base, tuned)]
    assert expected[0] != expected[1]
    assert out == f"[base]\n{expected[0]}\n\n[tuned]\n{expected[1]}\n\n"
    said = [line for line in err.splitlines() if "[cut at" not in line]
    assert said[-2:] == [f"base: {toy_folder}", f"tuned: {checkpoint_of(Path())}, step 4"]


def test_a_model_folder_answers_alone(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(toy_folder), AutoTokenizer.from_pretrained(toy_folder)
    main(["chat", f"--model={toy_folder}", "--prompt", ASKED, "--max_new_tokens=8"])
    expected = plain_answer(model.eval(), tokenizer, [{"role": "user", "content": ASKED}])
    printed = capsys.readouterr()
    assert printed.out == f"{expected}\n"
    assert "tuned: [cut at 8 tokens: --max_new_tokens takes more]" in printed.err
    main(["chat", f"--model={toy_folder}", f"--before={toy_folder}", "--prompt", ASKED, "--max_new_tokens=8"])
    assert capsys.readouterr().out == f"[base]\n{expected}\n\n[tuned]\n{expected}\n\n"


def test_the_command_that_an_export_of_an_adapter_offers_runs(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["export", f"--ckpt_path={checkpoint_of(runs['lora'])}", f"--output={tmp_path / 'exported'}"])
    offered = f"lightning chat --model {tmp_path / 'exported'}"
    assert offered in capsys.readouterr().out
    main([*offered.split()[1:], f"--prompt={ASKED}", "--max_new_tokens=8"])
    assert "[tuned]" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["chat", f"--model={runs['lora']}", f"--prompt={ASKED}"])
    assert "no config.json and no adapter_config.json" in capsys.readouterr().err


def speaker(toy_folder: Path, **prompting: Any) -> Speaker:
    return find_speakers(find_finished(toy_folder), None, Prompting(**prompting))[0]


def test_a_conversation_is_remembered_until_it_begins_anew(toy_folder: Path) -> None:
    one = speaker(toy_folder)
    said = iter(["say 1", "", "/help", "say 2", "/reset", "say 3"])
    output = io.StringIO()

    def read(shown: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    asked = []
    prompt = one.prompt
    one.prompt = lambda text: asked.append(prompt(text)) or asked[-1]  # type: ignore[method-assign,func-returns-value]
    converse([one], GREEDY, output, read)
    first = [{"role": "user", "content": "say 1"}]
    answer = plain_answer(one.model.causal_lm, one.model.tokenizer, first)
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "say 2"}]
    third = [{"role": "user", "content": "say 3"}]
    template = one.model.tokenizer.apply_chat_template
    expected = [template(m, add_generation_prompt=True, return_dict=False) for m in (first, second, third)]
    assert asked == expected
    assert output.getvalue().startswith(f"{answer}\n/reset begins a new conversation")
    assert [m["content"] for m in one.messages][::2] == ["say 3"]


def test_ctrl_c_forgets_the_message_and_a_second_one_ends(toy_folder: Path) -> None:
    both = [speaker(toy_folder), speaker(toy_folder)]
    output, said = io.StringIO(), iter(["say 1", "say 2"])

    def read(shown: str) -> str:
        for text in said:
            return text
        raise KeyboardInterrupt

    answer = both[1].answer

    def interrupted(text: str, *rest: Any) -> str:
        if text == "say 2":
            raise KeyboardInterrupt
        return answer(text, *rest)

    both[1].answer = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        converse(both, GREEDY, output, read)
    assert "(stopped; this message is forgotten)" in output.getvalue()
    assert [[m["content"] for m in one.messages][::2] for one in both] == [["say 1"], ["say 1"]]


def test_ctrl_c_ends_with_its_status(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(shown: str = "") -> str:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("Ctrl-C did nothing")

    monkeypatch.setattr("builtins.input", ends)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        main(["chat", f"--model={toy_folder}"])
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) == before


def test_a_conversation_that_grows_too_long_says_so(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, output = speaker(toy_folder), io.StringIO()
    hard = PositionLimit(8, is_hard=True)
    monkeypatch.setattr("lightning_sft.models.generation.row_limit", lambda model, length: hard)
    said = iter(["say 1"])
    converse([one], GREEDY, output, lambda shown: next(said, "/exit"))
    assert "but LlamaForCausalLM has 8 positions" in output.getvalue()
    assert "/reset begins a new conversation" in output.getvalue()
    assert one.messages == []


def test_without_a_chat_template_text_is_continued(toy_folder: Path) -> None:
    one = speaker(toy_folder, apply_chat_template="never")
    tokenizer = one.model.tokenizer
    output = io.StringIO()
    ask([one], "word word", GREEDY, output)
    assert (
        output.getvalue()
        == generate(one.model.causal_lm, tokenizer, [one.prompt("word word")], max_new_tokens=8)[0] + "\n"
    )
    assert one.prompt("word word") == tokenizer("word word").input_ids, "nothing of what was said before"


def test_samples_depend_on_their_seed_alone(toy_folder: Path) -> None:
    one = speaker(toy_folder)

    def sampled(*given: str) -> str:
        output = io.StringIO()
        one.forget()
        ask([one], ASKED, generation_options(parser().parse_args(["--max_new_tokens=12", *given])), output)
        return output.getvalue()

    state = torch.random.get_rng_state()
    assert sampled("--temperature=1.5", "--seed=1") == sampled("--temperature=1.5", "--seed=1")
    assert len({sampled("--do_sample", f"--seed={seed}") for seed in range(4)}) > 1
    assert sampled("--top_k=1") == sampled(), "the likeliest token alone"
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs a model: a run's folder, --ckpt_path best, or --model NAME"),
        (["--ckpt_path=last", "--model=x"], "both given"),
        (["--model=x", "--temperature=0"], "without it answers are greedy"),
        (["--model=x", "--top_p=1.5"], "--top_p is 1.5. Allowed: above 0, up to 1"),
        (["--model=x", "--max_new_tokens=0"], "Allowed: 1 or more"),
        (["--model=x", "--temprature=1"], "no option --temprature; did you mean --temperature?"),
        (["--ckpt_path=last"], "no run with a checkpoint was found"),
    ],
)
def test_bad_input_is_named(given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["chat", *given])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_message_that_the_template_refuses_is_no_crash(toy_folder: Path) -> None:
    one = speaker(toy_folder)
    one.model.tokenizer.chat_template = "{{ raise_exception('no') }}"
    refusing = Speaker("tuned", one.model, Prompting())
    with pytest.raises(UserError, match="chat template"):
        refusing.prompt("hello")
