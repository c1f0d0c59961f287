"""`faasd invoke`: bodies in, results out, each way of invoking."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faasd.cli.invoke import guess_type
from faasd.cli.main import main
from tests.unit.faasd.contract_server import ContractServer, serving

Run = Callable[..., int]


@pytest.fixture
def server() -> Iterator[ContractServer]:
    with serving(ContractServer()) as running:
        yield running


@pytest.fixture
def run(server: ContractServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("FAASD_URL", server.url)
    monkeypatch.delenv("FAASD_API_KEY", raising=False)
    return lambda *argv: main(["invoke", *argv])


def given_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}', "application/json"),
        (b"3", "application/json"),
        (b"great", "text/plain; charset=utf-8"),
        (b"", "text/plain; charset=utf-8"),
        (b"\xff\x00", "application/octet-stream"),
        (b"[" * 100_000, "text/plain; charset=utf-8"),
    ],
)
def test_the_type_is_found_from_the_content(content: bytes, expected: str) -> None:
    assert guess_type(content) == expected


def test_json_text_is_sent_as_json(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("echo", "-d", '{"text": "great"}') == 0

    assert server.headers["Content-Type"] == "application/json"
    assert capsys.readouterr().out == '{"text": "great"}\n'


def test_other_text_is_sent_as_text(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("echo", "-d", "grüße") == 0

    assert server.headers["Content-Type"].startswith("text/plain")
    assert capsys.readouterr().out == "grüße\n"


def test_a_file_is_sent_by_its_extension_and_comes_back_to_the_byte(
    run: Run, server: ContractServer, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\n")

    assert run("echo", "-d", f"@{tmp_path}/cat.png") == 0

    assert server.headers["Content-Type"] == "image/png"
    assert capsysbinary.readouterr().out == b"\x89PNG\n"


def test_a_file_of_unknown_extension_is_bytes(
    run: Run, server: ContractServer, tmp_path: Path
) -> None:
    (tmp_path / "x.unheard-of").write_bytes(b"x")

    assert run("echo", "-d", f"@{tmp_path}/x.unheard-of") == 0

    assert server.headers["Content-Type"] == "application/octet-stream"


def test_a_dash_sends_what_comes_on_stdin(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_stdin(monkeypatch, b"[1, 2]")

    assert run("echo", "-d", "-") == 0

    assert capsys.readouterr().out == "[1, 2]\n"


def test_a_named_content_type_goes_before_any_guess(run: Run, server: ContractServer) -> None:
    assert run("echo", "-d", "1,2", "--content-type", "text/csv") == 0

    assert server.headers["Content-Type"] == "text/csv"


def test_a_file_that_is_not_there_fails_with_its_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("echo", "-d", f"@{tmp_path}/none") == 1

    assert "none' cannot be read: No such file" in capsys.readouterr().err


def test_deadline_and_idempotency_key_are_sent(run: Run, server: ContractServer) -> None:
    assert run("echo", "--deadline-ms", "250", "--idempotency-key", "once") == 0

    assert server.headers["Faasd-Deadline-Ms"] == "250"
    assert server.headers["Idempotency-Key"] == "once"


def test_verbose_says_on_stderr_what_it_cost(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", "-d", "1", "-v") == 0

    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "warm start on node-1, revision r1" in err
    assert "exec 3.2 ms" in err


def test_the_result_goes_to_a_file_to_the_byte(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("echo", "-d", "great", "-o", str(tmp_path / "out")) == 0

    assert (tmp_path / "out").read_bytes() == b"great"
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written_fails_with_its_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("echo", "-o", str(tmp_path)) == 1

    assert "cannot be written" in capsys.readouterr().err


def test_json_output_has_value_and_costs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", "-d", '{"a": 1}', "--json") == 0

    result = json.loads(capsys.readouterr().out)
    assert result["value"] == {"a": 1}
    assert (result["status"], result["start"], result["timings"]["exec"]) == (200, "warm", 3.2)


def test_json_output_of_bytes_is_base64(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_stdin(monkeypatch, b"\xff\x00")

    assert run("echo", "-d", "-", "--json") == 0

    assert json.loads(capsys.readouterr().out)["base64"] == "/wA="


def test_an_error_of_the_users_code_shows_its_traceback(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fails") == 1

    err = capsys.readouterr().err
    assert 'File "handler.py", line 2' in err
    assert "Error: KeyError: 'text'" in err


def test_a_failing_status_of_the_functions_own_prints_the_body_and_fails(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("teapot") == 1

    out, err = capsys.readouterr()
    assert out == "short and stout\n"
    assert "status 418" in err


def test_async_prints_the_id(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", "--async") == 0

    assert capsys.readouterr().out == "i-1\n"


def test_async_with_wait_prints_the_result(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", "--async", "--wait") == 0

    assert capsys.readouterr().out == '{"score": 1}\n'


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tokens", b'{"n": 1}\n{"n": 2}\n'), ("text", "grüße".encode()), ("raw", b"\x00\x01\x02")],
)
def test_stream_prints_items_as_they_are(
    run: Run, capsysbinary: pytest.CaptureFixture[bytes], name: str, expected: bytes
) -> None:
    assert run(name, "--stream") == 0

    assert capsysbinary.readouterr().out == expected


def test_stream_with_json_prints_a_value_a_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("raw", "--stream", "--json") == 0

    lines = capsys.readouterr().out.splitlines()
    parts = [base64.b64decode(json.loads(line)["base64"]) for line in lines]
    assert b"".join(parts) == b"\x00\x01\x02"


def test_stream_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    assert run("raw", "--stream", "-o", str(tmp_path / "out")) == 0

    assert (tmp_path / "out").read_bytes() == b"\x00\x01\x02"


@pytest.mark.parametrize("ways", [("--wait",), ("--stream", "--async"), ("--stream", "-v")])
def test_ways_that_exclude_each_other_are_wrong_usage(run: Run, ways: tuple[str, ...]) -> None:
    assert run("echo", *ways) == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("-d", '{"a": 1}'), '{\r\n  "a": 1\r\n}\r\n'),
        (("-d", "hi", "--content-type", "image/png"), "2 bytes of image/png; -o FILE keeps them"),
    ],
)
def test_a_terminal_gets_pretty_json_and_no_bytes(
    server: ContractServer, argv: tuple[str, ...], expected: str
) -> None:
    leader, follower = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "faasd", "invoke", "echo", *argv],
        env={**os.environ, "FAASD_URL": server.url},
        stdout=follower,
        stderr=follower,
        check=True,
    )
    os.close(follower)

    assert expected in os.read(leader, 65536).decode()
    os.close(leader)
