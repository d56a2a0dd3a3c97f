"""Print the lower bound of every dependency as a pin, torch apart: a run of the tests under them proves the bounds.

python .ci/lowest.py > lowest.txt && pip install -e ".[demo,test]" -c lowest.txt
"""

import re
from pathlib import Path

import tomllib

EXTRAS = ("demo", "test")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in (*project["dependencies"], *(r for extra in EXTRAS for r in extras[extra])):
    if bound := re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", requirement):
        name, version = bound.groups()
        if name != "torch":  # an old torch has no wheels for new Pythons, and is the largest download by far
            print(f"{name}=={version}")
