"""``lightning demo``: the shipped demo from any folder, by the same configuration as ``make demo``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from lightning_sft.errors import UserError
from lightning_sft.places import DEMO_EXTRA, MODEL_PACKAGES, is_installed, near, shipped_folder

#: package that the demo needs -> the command that installs it
NEEDED = {"reasoning_gym": DEMO_EXTRA, **MODEL_PACKAGES}


def main(arguments: Sequence[str]) -> None:
    """Fine-tune the demo's model on the demo's task: ``lightning demo [--KEY VALUE ...]``.

    Args:
        arguments: settings of ``fit`` that differ from the demo's.

    Raises:
        UserError: a package of the demo is not installed; says how to install it.
    """
    from lightning_sft.cli.entry import main as lightning

    missing = [name for name in NEEDED if not is_installed(name)]
    if missing:
        lines = "\n".join(f"  {NEEDED[name]}" for name in missing)
        raise UserError(f"The demo needs {' and '.join(missing)}, not installed here. Install with:\n{lines}")
    config = shipped_folder() / "demo.yaml"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        shown = shlex.join(["lightning", "fit", "configs/demo.yaml", *arguments])
        print(f"{shown}\n  (`lightning configs copy demo` puts that file here)", flush=True)
    lightning(["fit", f"--config={near(config)}", *arguments])
