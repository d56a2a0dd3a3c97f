"""The page's commands, on a toy with a planted failure: fit, read the verdict, fit again, and once more for longer."""

from pathlib import Path

import pytest

from lightning_sft.cli.entry import main
from tests.audit.pairs import tuned_folder, write_rows
from tests.docs.pages import ROOT, blocks
from tests.running import QUIET
from tests.toys import save_toy

PAGE = ROOT / "docs/how_to/audit.md"


def test_the_loop_of_the_page_cures_the_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(Path("old.jsonl"), shift=0)
    tuned_folder(save_toy(tmp_path / "random"), Path("old.jsonl"), Path("my-model"), steps=120, lr=3e-3)
    write_rows(Path("train.jsonl"), shift=1, count=32)
    for block in blocks("yaml", pages=[PAGE]):
        if block.marker:
            Path(block.marker.removeprefix("file=")).write_text(block.text)
    (loop,) = [block for block in blocks("sh", pages=[PAGE]) if block.marker == "loop"]
    said = []
    for line in loop.text.splitlines():
        program, *arguments = line.split()
        assert program == "lightning"
        main([*arguments, *(QUIET if arguments[0] == "fit" else ["--guard=none", "--device=cpu"])])
        said.append(" ".join((caplog.text + capsys.readouterr().out).split()))
        caplog.clear()
    first, read, again, longer = said
    shown = [" ".join(block.text.split()) for block in blocks("text", pages=[PAGE])]
    assert shown[0] in first
    assert shown[1] in again
    assert shown[2] in longer
    assert "Silent failure: of 44 trained tokens" in read
    page = Path("audit/audit.md").read_text()
    assert "- Silent failure: of 44 trained tokens" in page
    assert "RunnerUpMargin" in page
    # the same places, found by the run itself and by the audit of what it left
    places = [
        {line.partition('"context_ids"')[2] for line in Path(file).read_text().splitlines()}
        for file in ("lightning_logs/first/silent.jsonl", "audit/contexts.jsonl")
    ]
    assert places[0] == places[1] != set()
