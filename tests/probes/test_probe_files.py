from pathlib import Path

import pytest

from lightning_sft.errors import UserError
from lightning_sft.probes import Probe, library, load_probes, save_probes

PROBES = (
    Probe("She felt a deep sense of", "shame", "guilt", pos="noun", split="train"),
    Probe("They asked for", "aid", "help", name="aid", kind="control"),
    Probe("答えは「", "は", "い", leading_space=False),
)


@pytest.mark.parametrize("ending", ["yaml", "yml", "jsonl"])
def test_files_read_back_what_was_saved(tmp_path, ending):
    path = save_probes(PROBES, tmp_path / "new" / f"probes.{ending}")
    assert load_probes(str(path)) == load_probes(PROBES)


def test_probes_come_from_mappings_too_and_get_names():
    entry = {"context": "She felt", "correct": "glad", "competitor": "happy"}
    probes = load_probes([entry, entry, Probe("He felt", "glad", "happy", name="glad-happy-2")])
    assert [p.name for p in probes] == ["glad-happy", "glad-happy-3", "glad-happy-2"]


def test_the_library_has_train_and_test_contexts_that_never_meet():
    everything = library()
    assert load_probes("library") == everything
    train, test = library("train"), load_probes("library:test")
    assert len(train) + len(test) == len(everything)
    assert not {p.context for p in train} & {p.context for p in test}
    pairs = [{(p.correct, p.competitor, p.pos) for p in part if p.kind == "synonym"} for part in (train, test)]
    assert pairs[0] == pairs[1]
    assert len({p.context for p in everything if p.kind == "synonym"}) >= 24
    assert sum(p.kind == "control" for p in everything) >= 6
    assert {p.pos for p in everything} == {"noun", "verb", "adjective", "adverb"}
    words = {}
    for probe in everything:
        words.setdefault((probe.correct, probe.competitor), set()).add(probe.pos)
    assert any(len(classes) > 1 for classes in words.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": " shame"}, "without white space"),
        ({"competitor": ""}, "without white space"),
        ({"competitor": "shame"}, "competes with itself"),
        ({"context": "She felt "}, "ends in white space"),
        ({"context": "  "}, "no context"),
        ({"name": "a/b"}, "Allowed in log keys"),
    ],
)
def test_a_probe_that_cannot_be_one_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Probe(**{"context": "She felt", "correct": "shame", "competitor": "guilt", **change})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "context: x", "must be a list"),
        ("a.yaml", "- [", "no YAML"),
        ("a.yaml", "- {context: x, correct: y}", r"lacks \['competitor'\]"),
        ("a.yaml", "- {context: x, correct: y, competitor: z, kid: control}", r"unknown fields \['kid'\]"),
        ("a.yaml", "- {context: x, correct: y, competitor: z, kind: other}", "Allowed: .'synonym', 'control'"),
        ("a.yaml", "- {context: x, correct: yes, competitor: z}", "Put it in quotes"),
        ("a.yaml", "- word", "must be a mapping"),
        ("a.yaml", "[]", "holds no probe"),
        ("a.jsonl", "{}\n{", "line 2 is no JSON|lacks"),
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.txt", "", "Allowed: .yaml"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_probes(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no probe file"):
        load_probes("nowhere.yaml")
    with pytest.raises(UserError, match="no split 'validation'"):
        load_probes("library:validation")
    with pytest.raises(UserError, match="Allowed endings"):
        save_probes(PROBES, tmp_path / "probes.csv")
    with pytest.raises(UserError, match="More than one probe is named 'aid'"):
        load_probes([PROBES[1], PROBES[1]])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("silent.jsonl", "", "is empty: in that run no right word stayed behind another one"),
        ("own.jsonl", "\n", "holds no probe"),
        ("own.yaml", "", "holds no probe"),
        ("own.yaml", "[]", "holds no probe"),
    ],
)
def test_a_file_without_a_probe_says_what_it_means_and_what_to_give(tmp_path: Path, name: str, text: str, says: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=says) as told:
        load_probes(path)
    assert "lightning mine-probes" in str(told.value)
    assert "docs/near_synonyms.md" in str(told.value)
