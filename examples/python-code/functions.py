"""A small classification task of one's own: which package is this function from?

python examples/python-code/functions.py FOLDER

Writes FOLDER/train.csv and FOLDER/dev.csv, with the columns `code` and `package`. No file is in both. The packages are
those of yamls/data/python.yaml; their names are removed from the code, since they would give the answer away.
"""

from __future__ import annotations

import ast
import csv
import random
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ["torch", "transformers", "sympy", "numpy", "networkx", "deepspeed"]
EACH = 500  # functions of a package


def functions(package: str) -> Iterator[str]:
    """Yield one function of 200 to 2000 characters from each file of a package, in random order."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, package
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    chosen = random.Random(0)
    chosen.shuffle(files)
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse("\n".join(lines))
        except SyntaxError:  # for another version of Python
            continue
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]
        if usable := [code for code in found if 200 <= len(code) <= 2000]:
            code = re.sub(package, "package", chosen.choice(usable), flags=re.IGNORECASE)
            yield " ".join(code.split())  # as in the training text, white space is collapsed


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "dev": []}
    for package in PACKAGES:
        for number, code in zip(range(EACH), functions(package), strict=False):
            rows["dev" if number % 5 == 0 else "train"].append((code, package))
    for name, of_split in rows.items():
        random.Random(0).shuffle(of_split)
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("code", "package"), *of_split])
        print(f"{folder / f'{name}.csv'}: {len(of_split)} functions")


if __name__ == "__main__":
    main()
