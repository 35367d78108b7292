"""What is shipped, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders() -> set[str]:
    found = {"observatory.callbacks", "observatory.experiments"}
    for file in (ROOT / "observatory").rglob("__init__.py"):
        found.add(".".join(file.parent.relative_to(ROOT).parts))
    return found


def test_every_folder_is_shipped():
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_version_is_said_once():
    import observatory

    assert observatory.__version__ == PYPROJECT["project"]["version"]
    assert f"version: {observatory.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {observatory.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_public_names_can_be_imported():
    import observatory

    assert all(getattr(observatory, name) is not None for name in observatory.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = observatory.nothing


def test_second_copies_of_the_callbacks_are_refused():
    code = "import sys; sys.path.insert(0, '.'); import callbacks"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "import observatory.callbacks instead" in done.stderr


IMPORT_COST = """
import sys, time
before = set(sys.modules)
started = time.perf_counter()
import observatory
from observatory.attach import from_environment
assert from_environment() == []
seconds = time.perf_counter() - started
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert not new & {"torch", "lightning", "numpy", "matplotlib", "jsonargparse", "yaml"}, new
print(seconds)
"""


def test_import_and_idle_entry_point_load_nothing_heavy():
    import os

    environment = {k: v for k, v in os.environ.items() if k != "OBSERVATORY"}
    command = [sys.executable, "-c", IMPORT_COST]
    seconds = [
        float(
            subprocess.run(
                command, cwd="/", env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.05  # the bound of 1 ms with warm files is measured by benchmarks/importing.py


@pytest.mark.slow
def test_wheel_holds_observatory_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"observatory"}
    assert "observatory/experiments/digits.yaml" in names
    assert "observatory/callbacks/callback.py" in names
    assert "observatory/py.typed" in names
