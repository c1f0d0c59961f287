"""Servers that do not start: what is said of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import daemons
from bench.daemons import DidNotStart, Server
from bench.processes import Tree


def test_a_server_that_ended_is_told_with_its_last_words(tmp_path: Path) -> None:
    server, log = Server("http://127.0.0.1:9", Tree()), tmp_path / "log"

    with daemons.ended(server.tree):
        server.tree.start([sys.executable, "-c", "raise SystemExit('no model')"], log=log, env={})
        with pytest.raises(DidNotStart, match="ended: no model"):
            daemons.await_server(server, lambda: "no answer", log)


def test_a_server_that_never_answers_is_told_with_what_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "PATIENCE_S", 0.0)
    server, log = Server("http://127.0.0.1:9", Tree()), tmp_path / "log"

    with daemons.ended(server.tree):
        server.tree.start([sys.executable, "-c", "import time; time.sleep(600)"], log=log, env={})
        with pytest.raises(DidNotStart, match="answered 404 after 0 s"):
            daemons.await_server(server, lambda: "answered 404", log)


def test_a_deploy_that_is_refused_is_told_in_the_platforms_words(tmp_path: Path) -> None:
    with pytest.raises(DidNotStart, match=r"^(?!Error).*function\.toml"):
        daemons.deploy("http://127.0.0.1:9", tmp_path, "nothing", limits__timeout_s=5)


def test_nobody_listens_where_a_free_port_is() -> None:
    url = f"http://127.0.0.1:{daemons.free_port()}"

    assert daemons.post(url, b"{}", "application/json") == (0, b"")
    assert daemons.get(f"{url}/healthz") == (0, b"")
