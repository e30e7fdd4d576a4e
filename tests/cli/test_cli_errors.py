"""Errors are told as they are, whatever is in them."""

import sys

import pytest

from plait.cli import main as program
from plait.spec.errors import EngineFailure, UserError


@pytest.mark.parametrize(("error", "status"), [(EngineFailure, 1), (UserError, 2)])
def test_a_sentence_with_brackets_is_told_whole(monkeypatch, capsys, error, status):
    said = "rank 1: [/build/gloo/pair.cc:539] Connection closed by peer [127.0.0.1]:4411"

    def fails() -> None:
        raise error(said)

    monkeypatch.setattr(program, "app", fails)
    monkeypatch.setattr(sys, "argv", ["plait"])
    with pytest.raises(SystemExit) as left:
        program.main()
    assert left.value.code == status
    assert said in " ".join(capsys.readouterr().err.split())
