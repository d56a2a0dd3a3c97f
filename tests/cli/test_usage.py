"""Every verb answers alike: with nothing, with an unknown option, with --help; and before torch is imported."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sft.cli.audit import _plain
from lightning_sft.cli.entry import main
from lightning_sft.cli.front.about import ABOUT
from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.words import WORDS, in_settings, tidy
from lightning_sft.cli.verbs import EXAMPLES, LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.errors import UserError

VERBS = [*LIGHTNING_VERBS, *OWN_VERBS]
#: verbs that need nothing
ALONE = ("demo", "init", "configs", "env")
#: a call that no model is needed to refuse -> words of the answer
REFUSED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "rows of a batch": (["estimate", "--model=a/b", "--batch_size=0"], ("data.batch_size is 0. Allowed: 1 or more",)),
    "a rate below 0": (["fit", "--model=a/b", "--lr=-1"], ("model.optimizer.lr is -1. Allowed: 0 or more",)),
    "steps below none": (["fit", "--model=a/b", "--max_steps=-5"], ("trainer.max_steps is -5", "-1 is no limit")),
    "an option of a verb": (["audit", "--after=a/b", "--rows=0"], ("--rows is 0. Allowed: 1 or more",)),
    "rows of an audit": (["audit", "--after=a/b", "--data=gone.json"], ("--data.test", "no file gone.json")),
    "one arm": (["compare", "--model=a/b"], ("needs two or more arms", '--objectives "NLL,PowerFamily(1)"')),
    "one replicate": (["compare", "--model=a/b", "--arm=a", "--replicates=1"], ("--replicates is 1", "2 or more")),
    "a sampler": (["chat", "--model=a/b", "--top_k=0"], ("--top_k is 0. Allowed: 1 or more",)),
    "a word for a number": (["chat", "--model=a/b", "--top_k=many"], ("--top_k is 'many'", "a whole number")),
    "a dtype": (["chat", "--model=a/b", "--dtype=bf16"], ("'bf16'", "'bfloat16'", "float32")),
    "a typo": (["chat", "--promt=hi"], ("no option --promt", "--prompt", "Options: ")),
    "no value": (["chat", "--model=a/b", "--prompt"], ("--prompt has no value", "answer this and end")),
    "a folder of a model": (["chat", "--model=./gone"], ("no model folder './gone'",)),
    "a typo of export": (["export", "run", "--merg"], ("'run' stands by itself and does not exist",)),
    "an option of export": (["export", "--ckpt_path=last", "--merg"], ("no option --merg", "--merge")),
    "two of three": (["mine-probes", "--model=a/b"], ("needs --data", "--output")),
    "a threshold": (
        ["mine-probes", "--model=a/b", "--data=x", "--output=y", "--min-probability=2"],
        ("--min_probability is 2.0. Allowed: from 0 to 1",),
    ),
    "no storage": (["sweep", "status"], ("needs --storage",)),
    "no word of sweep": (["sweep", "stauts"], ("'stauts'", "'status'", "worker")),
}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ALONE])
def test_a_verb_with_nothing_says_what_it_needs(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: `lightning {verb}` needs ")
    for word in ("What it does: ", f"For example:  {EXAMPLES[verb]}\n", f"All options:  lightning {verb} --help"):
        assert word in said


@pytest.mark.parametrize("asked", ["--help", "-h", "help"])
@pytest.mark.parametrize("verb", ["fit", "report", "advise"])
def test_help_before_a_verb_is_that_of_the_verb(asked: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for arguments in ([verb, "--help"], [asked, verb]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code in (0, None)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith(f"usage: lightning {verb} ")


def test_help_by_itself_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["help"])
    assert "\nverbs:\n  fit " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "meant"),
    [("train", "fit"), ("Finetune", "fit"), ("eval", "validate"), ("generate", "predict"), ("version", "--version")],
)
def test_verbs_of_other_tools_lead_to_ours(verb: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "sft.yaml"])
    assert f"There is no verb {verb!r}; did you mean {meant!r}? Verbs: " in capsys.readouterr().err


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_answered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = REFUSED[name]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for word in words:
        assert word in said


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_in_one_style(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb in ("env", "completion"):
        return  # nothing but a line
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith(f"usage: lightning {verb} ")
    assert lines[1] == f"  {LIGHTNING_VERBS.get(verb) or OWN_VERBS[verb].help}"
    assert f"lightning {verb} " in "\n".join(lines[1:]) or EXAMPLES[verb] in said
    with pytest.raises(SystemExit):
        main([verb, "--help", "all"])
    every = capsys.readouterr().out
    assert every.startswith(f"usage: lightning {verb} ")
    assert "``" not in said + every
    assert ":class:" not in said + every


def test_a_class_shows_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for given, words in (
        (["--model.adapter.help", "lora"], ("--model.adapter.lora_alpha", "peft.LoraConfig", "[8]")),
        (["--objective.help", "PowerFamily"], ("--model.objective.alpha", "arguments:")),
        (["--objective.help"], ("objectives:", "NLL, ", "as my_module.MyClass")),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["fit", *given])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: ")
        for word in words:
            assert word in said
    with pytest.raises(SystemExit):
        main(["fit", "--adapter.help", "loar"])
    assert "did you mean 'lora'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_a_verb_has_no_mistake(verb: str) -> None:
    """Files and folders in it are those of a user, so they are not looked for."""
    own = OWN_VERBS.get(verb)
    words = [
        w for w in shlex.split(EXAMPLES[verb])[2:] if not w.endswith(".yaml") and not w.startswith("lightning_logs")
    ]
    if verb in LIGHTNING_VERBS or (own is not None and own.settings):
        takes = verb != "init"  # which has no options of its own in the list
        model = [] if "--model" in words else ["--model=a/b"]
        assert check(verb if takes else "fit", in_settings(verb, tidy([*model, *words], takes_files=True))) == []


def test_nothing_of_it_loads_torch() -> None:
    calls = [[verb] for verb in VERBS if verb not in ("demo", "init")] + [[verb, "--help"] for verb in VERBS]
    calls += [arguments for arguments, _ in REFUSED.values()]
    code = f"""
import json, sys
from lightning_sft.cli.entry import main
loaded = []
for arguments in json.loads({json.dumps(json.dumps(calls))}):
    if arguments == ["env"]:
        continue
    try:
        main(arguments)
    except SystemExit:
        pass
    if not loaded and {{"torch", "lightning", "transformers"}} & set(sys.modules):
        loaded = arguments
print("loaded by", loaded)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("loaded by []"), ran.stdout[-300:]


@pytest.mark.parametrize("verb", listing().verbs)
def test_every_option_says_what_holds_without_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    blocks = [" ".join(block.split()) for block in re.split(r"^  (?=--)", said, flags=re.M)[1:]]
    for name, option in listing().verbs[verb].items():
        if not option.required and option.takes != ("flag",) and not name.endswith("+"):
            (told,) = (block for block in blocks if re.match(rf"(--[\w-]+, )*--{name}[, ]", block))
            assert re.search(r"Default(?: with sampling)?: |must be given", told), told
            assert told.count("Default") <= 1, told
    assert "+" not in " ".join(re.findall(r"^  (--.*)$", said, re.M))


def test_an_option_with_two_names_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    said = capsys.readouterr().out
    assert said.count("folder in which comparisons are kept") == 1
    assert "  --output, --folder OUTPUT\n" in said
    options = re.findall(r"^  --(\w+)", said, re.M)
    assert options.index("objectives") < options.index("replicates") < options.index("beat")  # by use, not by name


@pytest.mark.parametrize("verb", ABOUT)
def test_further_examples_are_of_their_verb(verb: str) -> None:
    assert OWN_VERBS[verb].settings
    for example in ABOUT[verb].examples:
        assert example.startswith(f"lightning {verb}")
        assert example != EXAMPLES[verb]
        arguments = shlex.split(example)[2:]
        names = {word.removeprefix("--") for word in arguments if word.startswith("--")}
        also = {name.split()[0] for name, _ in ABOUT[verb].also}
        assert names <= {*listing().verbs.get(verb, {}), *listing().settings, *WORDS, "model", "objective.alpha", *also}


def test_columns_of_an_audit_are_those_of_its_rows(toy_folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": "x", "b": "y"}\n')
    begun = ["--after", str(toy_folder), "--data", str(rows)]
    for option in ("--data.columns", "--data.test.columns"):
        assert check("audit", in_settings("audit", [*begun, option, "{prompt: a, completion: b}"])) == []
        assert _plain([*begun, option, "{prompt: a}"])[-2:] == ["--data.test.columns", "{prompt: a}"]
    with pytest.raises(UserError, match=r"data.train is not set. The rows of an audit's --data FILE are data.test"):
        check("audit", in_settings("audit", [*begun, "--train.columns", "{prompt: a, completion: b}"]))
    with pytest.raises(UserError, match=r"data.val.columns is given, and no rows that it is of: data.val is not set.$"):
        check("fit", ["--model", str(toy_folder), "--train", str(rows), "--data.val.columns", "{prompt: a}"])
