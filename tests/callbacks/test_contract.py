"""No callback is left out of the tests that all of them inherit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from everything import ELSEWHERE, TOGETHER, every_instrument, watching_callbacks

from observatory.cli import main

HERE = Path(__file__).parent
NAMED = re.findall(
    r"^class Test(\w+)\(CallbackContract\)", "".join(f.read_text() for f in HERE.glob("test_*.py")), re.M
)


@pytest.mark.parametrize("name", sorted(set(watching_callbacks())))
def test_every_callback_keeps_the_contract(name):
    assert name in NAMED, f"add class Test{name}(CallbackContract) with make = {name} to tests/callbacks"


def test_every_callback_is_public_listed_and_in_the_runs_with_all_of_them(capsys):
    written = set()
    for file in (HERE.parent.parent / "callbacks").glob("*.py"):
        written |= set(re.findall(r"^class (\w+)\(ObservingCallback\)", file.read_text(), re.M))
    assert written == set(watching_callbacks())
    assert {type(callback).__name__ for callback in every_instrument()} | TOGETHER | ELSEWHERE == written
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", listed, re.M) for name in written)
