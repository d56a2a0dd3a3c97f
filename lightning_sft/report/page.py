"""The page: one HTML file that opens anywhere, with nothing to be fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path

from lightning_sft.files import finite, write_text
from lightning_sft.report.charts import CONFIG
from lightning_sft.report.differences import differences, settings_of
from lightning_sft.report.run import Run
from lightning_sft.report.sections import sections
from lightning_sft.report.sentences import in_short

TEMPLATE = Path(__file__).with_name("page.html.j2")


@cache
def drawing_script() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, out of the package vl-convert-python.

    It goes into the page, so that nothing is fetched when it is opened.
    """
    import vl_convert

    newest = vl_convert.get_vegalite_versions()[-1]
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=newest)
    return script.replace("</script", "<\\/script")


def render(runs: Sequence[Run]) -> str:
    """Return the page about some runs.

    Args:
        runs: at least one; with several, their curves share charts and their settings are compared.
    """
    import jinja2

    found = sections(runs)
    drawn = [chart for section in found for part in section.parts for chart in part.charts]
    numbers = {id(chart): i for i, chart in enumerate(drawn)}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    specs = [{**chart.spec, "config": CONFIG, "title": None} for chart in drawn]
    return template.render(
        title=" and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs",
        runs=runs,
        short={run.name: in_short(run) for run in runs},
        sections=found,
        number=lambda chart: numbers[id(chart)],
        settings={run.name: settings_of(run) for run in runs},
        differences=differences(runs) if len(runs) > 1 else [],
        specs=json.dumps(finite(specs), ensure_ascii=False).replace("<", "\\u003c"),
        script=drawing_script(),
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        version=metadata.version("lightning-sft"),
    )


def write_report(runs: Sequence[Run], output: Path) -> Path:
    """Write the page; returns its path.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(output, render(runs))
    return output
