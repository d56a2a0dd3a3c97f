"""The wheel carries configs/ inside the package: beside it, as in a checkout, they would land among other packages."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package."""

    def run(self) -> None:
        """Build; an editable install reads the checkout's own folder."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "lightning_sft/configs"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, with files that are no more
            shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
