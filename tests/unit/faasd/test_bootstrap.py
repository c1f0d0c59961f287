"""`faasd keys bootstrap`: the first key, made or taken from the environment."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from faasd.cli.main import main

CHOSEN = "5b1f0c6e7a9d4832b5f60c1e7a9d4832"


def bootstrap(folder: Path) -> int:
    return main(["keys", "bootstrap", "--data", str(folder)])


def keys(folder: Path) -> list[tuple[str, str]]:
    database = sqlite3.connect(folder / "faasd.db")
    try:
        return database.execute("SELECT name, role FROM keys ORDER BY created_at").fetchall()
    finally:
        database.close()


def test_a_key_is_made_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap(tmp_path) == 0

    assert capsys.readouterr().out.startswith("fsd_")
    assert keys(tmp_path) == [("bootstrap", "admin")]


def test_the_key_of_the_environment_is_taken_once_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAASD_ADMIN_KEY", CHOSEN)

    assert bootstrap(tmp_path) == 0
    assert bootstrap(tmp_path) == 0

    printed = capsys.readouterr()
    assert CHOSEN not in printed.out + printed.err
    assert keys(tmp_path) == [("FAASD_ADMIN_KEY", "admin")]


def test_a_key_of_the_environment_that_could_be_guessed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAASD_ADMIN_KEY", "admin")

    assert bootstrap(tmp_path) == 1

    printed = capsys.readouterr().err
    assert "FAASD_ADMIN_KEY: use 32 to 200 letters" in printed
    assert "openssl rand -hex 32" in printed
    assert keys(tmp_path) == []
