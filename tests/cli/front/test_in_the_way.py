"""What an earlier call wrote is not written over: the answer is the command that writes beside it."""

import shlex
from pathlib import Path

import pytest

from lightning_sft.cli.front.in_the_way import require_free_output, say_in_the_way
from lightning_sft.errors import OutputExistsError
from lightning_sft.places import free


@pytest.mark.parametrize("verb", ["audit", "export", "init", "mine-probes", "predict", "score"])
def test_what_lies_where_output_points_is_named_with_a_command_to_paste(verb: str) -> None:
    for name, beside in (("a b.jsonl", "a b-2.jsonl"), ("model", "model-2")):
        typed = ["RUN", "--output", name, "--data.predict=x y.jsonl"]
        require_free_output(verb, typed)
        Path(name).touch()
        with pytest.raises(OutputExistsError) as raised:
            require_free_output(verb, typed)
        said, _, command = say_in_the_way(raised.value, verb, typed).partition("\n  ")
        assert said == f"{name!r} exists, and nothing is overwritten. Beside it:"
        program, again, *given = shlex.split(command)
        assert (program, again) == ("lightning", verb)
        assert given == ["RUN", "--data.predict=x y.jsonl", "--output", beside]
        require_free_output(verb, given)


def test_a_place_in_ones_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.parquet").touch()
    with pytest.raises(OutputExistsError) as raised:
        require_free_output("score", ["--output", "~/rows.parquet"])
    assert say_in_the_way(raised.value, "score", []).endswith(f" --output {tmp_path}/rows-2.parquet")


def test_words_after_an_output_are_kept_and_other_verbs_write_where_they_will() -> None:
    Path("x").touch()
    error = OutputExistsError("x")
    assert say_in_the_way(error, "score", ["--output=x", "mine.yaml", "--top", "3"]).endswith(
        "\n  lightning score mine.yaml --top 3 --output x-2"
    )
    require_free_output("report", ["RUN", "--output", "x"])
    require_free_output("fit", ["--output=x"])


def test_the_first_free_name_is_taken() -> None:
    assert free(Path("probes.yaml")) == Path("probes.yaml")
    for name in ("probes.yaml", "probes-2.yaml"):
        Path(name).touch()
    Path("probes-3.yaml").symlink_to("nowhere")
    assert free(Path("probes.yaml")) == Path("probes-4.yaml")
    Path("model-1.5").mkdir()
    assert free(Path("model-1.5")) == Path("model-1.5-2")
