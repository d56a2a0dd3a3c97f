"""What an audit calls its models, and how its page writes an arrow."""

from lightning_sft.audit.render import to_html
from lightning_sft.audit.summary import short_name


def test_a_checkpoint_is_named_with_its_run() -> None:
    assert short_name("/home/me/lightning_logs/NLL_1/checkpoints/last.ckpt") == "NLL_1/checkpoints/last.ckpt"
    assert short_name("/home/me/models/mine/") == "models/mine"
    assert short_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_an_arrow_is_one_sign_on_the_page_and_stays_as_it_is_in_code() -> None:
    class Section:
        title = "x"
        blocks = ("0.1 -> 0.2 and `a -> b`",)

    page = to_html("t", [Section()])  # type: ignore[list-item]
    assert "0.1 &rarr; 0.2" in page
    assert "<code>a -&gt; b</code>" in page
