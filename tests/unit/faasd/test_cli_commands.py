"""Every command but invoke, run whole against a server that keeps to docs/api.md."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faasd import __version__
from faasd.cli.main import COMMANDS, Command, main
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
    return lambda *argv: main(argv)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "sentiment"
    root.mkdir()
    (root / "function.toml").write_text('name = "sentiment"\n')
    (root / "handler.py").write_text("def handle(event, context):\n    return event\n")
    return root


@contextlib.contextmanager
def start(server: ContractServer, *argv: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "FAASD_URL": server.url}
    command = [sys.executable, "-m", "faasd", *argv]
    with subprocess.Popen(command, env=environment, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def on_a_terminal(server: ContractServer, *argv: str) -> tuple[int, str]:
    leader, follower = pty.openpty()
    with start(server, *argv, stdout=follower, stderr=follower) as process:
        os.close(follower)
        output = b""
        try:
            while chunk := os.read(leader, 65536):
                output += chunk
        except OSError:
            pass  # What Linux says at the end of a terminal.
        os.close(leader)
    return process.returncode, output.decode()


def test_deploy_prints_the_address_on_stdout_and_the_steps_on_stderr(
    run: Run, server: ContractServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("deploy", str(folder)) == 0

    out, err = capsys.readouterr()
    assert out == f"{server.url}/invoke/sentiment\n"
    assert "template: python\n" in err
    assert "serves revision r1" in err


def test_deploy_takes_another_name(run: Run, server: ContractServer, folder: Path) -> None:
    assert run("deploy", str(folder), "--name", "mood") == 0

    assert "mood" in server.functions


def test_deploy_shows_the_traceback_of_the_users_code_and_the_remedy(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("deploy", str(folder), "--name", "broken") == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert 'File "handler.py", line 2' in err
    assert "Error: handler.py does not import." in err
    assert "deploy again" in err


def test_deploy_on_a_terminal_keeps_a_line_of_each_stage(
    server: ContractServer, folder: Path
) -> None:
    code, output = on_a_terminal(server, "deploy", str(folder))

    assert code == 0
    assert "pack: " in output
    assert "serves revision r1" in output


def test_deploy_with_json_prints_nothing_but_the_function(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("deploy", str(folder), "--json") == 0

    out, err = capsys.readouterr()
    assert json.loads(out)["revision"] == "r1"
    assert err == ""


def test_ls_prints_aligned_columns(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls") == 0

    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["NAME", "REVISION", "RUNTIME"]
    assert row.split()[:3] == ["echo", "r1", "python"]
    assert heading.index("REVISION") == row.index("r1")


def test_ls_with_json_answers_as_the_api_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "ls") == 0

    (function,) = json.loads(capsys.readouterr().out)["functions"]
    assert function["created_at"] == "2025-01-02T03:04:05.678Z"
    assert function["instances"] == {"starting": 0, "idle": 1, "busy": 2}


def test_ls_of_nothing_says_what_to_do(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.functions.clear()

    assert run("ls") == 0

    out, err = capsys.readouterr()
    assert out == ""
    assert "faasd deploy DIR" in err


def test_rm_removes(run: Run, server: ContractServer) -> None:
    assert run("rm", "echo") == 0

    assert server.functions == {}


def test_rm_of_what_is_not_there_fails_with_the_remedy(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rm", "nothing") == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Error: There is no function named 'nothing' in namespace 'default'.",
        "List the deployed functions with `faasd ls`.",
    ]


def test_with_json_an_error_is_the_problem_object_on_stderr(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("rm", "nothing", "--json") == 1

    out, err = capsys.readouterr()
    assert out == ""
    problem = json.loads(err)
    assert problem["code"] == "function_not_found"
    assert problem["request_id"] == "q1"


def test_revisions_marks_the_active_one(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.functions["echo"] = ["r1", "r2"]

    assert run("revisions", "echo") == 0

    _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("r1")
    assert not first.endswith("yes")
    assert second.startswith("r2")
    assert second.endswith("yes")


@pytest.mark.parametrize(("argv", "expected"), [((), "r2"), (("r1",), "r1")])
def test_rollback_goes_to_the_one_before_or_a_named_one(
    run: Run, server: ContractServer, argv: tuple[str, ...], expected: str
) -> None:
    server.functions["echo"] = ["r1", "r2", "r3"]

    assert run("rollback", "echo", *argv) == 0

    assert server.functions["echo"][-1] == expected


def test_logs_prints_a_line_each_and_no_markup(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("logs", "echo", "--tail", "2") == 0

    assert capsys.readouterr().out.splitlines() == [
        "2025-01-02 03:04:05.678 r1 i1   [line] 0",
        "2025-01-02 03:04:05.678 r1 i1   [line] 1",
    ]


def test_logs_with_json_prints_an_object_a_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("logs", "echo", "--tail", "2", "--json") == 0

    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["[line] 0", "[line] 1"]


def test_an_interrupt_ends_a_followed_log_quietly(server: ContractServer) -> None:
    argv = ("logs", "echo", "-f", "--tail", "1")
    with start(server, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"[line] 0" in process.stdout.readline()

        process.send_signal(signal.SIGINT)

        _, err = process.communicate()
    assert process.returncode == 130
    assert err == b""
    assert server.cancelled.wait(60)


def test_an_interrupt_cancels_an_invocation(server: ContractServer) -> None:
    with start(server, "invoke", "never", stderr=subprocess.PIPE) as process:
        assert server.waiting.wait(60)

        process.send_signal(signal.SIGINT)

        _, err = process.communicate()
    assert process.returncode == 130
    assert err == b""
    assert server.cancelled.wait(60)


def test_a_reader_that_leaves_early_is_no_defect(server: ContractServer) -> None:
    argv = ("logs", "echo", "--tail", "5000")
    with start(server, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None

        assert process.stderr.read() == b""

    assert process.returncode == 1


def test_status_shows_nodes_runtimes_and_functions(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status") == 0

    out, err = capsys.readouterr()
    assert err == f"{server.url} is ready.\n"
    rows = [line.split() for line in out.splitlines()]
    assert [
        *("node-1", "up", "2", "0", "2", "1", "512.5", "3000.0", "4096.0"),
        *("2", "bare,", "1", "claimed"),
    ] in rows
    assert ["none", "node-1", *"-" * 9, "no", "driver"] in rows
    assert ["python", "node-1", "up", "10.0", "json"] in rows
    assert ["default/echo", "r1", "node-1", "up", "0", "1", "2", "3", "4", "12.5"] in rows


def test_status_with_json_is_one_object(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--json") == 0

    status = json.loads(capsys.readouterr().out)
    assert status["ready"] is True
    assert status["workers"][0]["functions"][0]["function"] == "default/echo"


def test_invocations_lists_those_asked_for(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("invocations", "--status", "dead") == 0

    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[:4] == ["i-dead", "echo", "dead", "1"]
    assert row.endswith("KeyError: 'text'")


def test_what_others_wrote_cannot_break_the_columns(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.invocations["i-dead"]["attempts"][0]["error"]["detail"] = "a\nb\x1b[31mc"

    run("invocations", "--status", "dead")

    assert capsys.readouterr().out.splitlines()[1].endswith("a b [31mc")


def test_redrive_queues_again(run: Run, server: ContractServer) -> None:
    assert run("redrive", "i-dead") == 0

    assert server.invocations["i-dead"]["status"] == "queued"


def test_drain_drains(run: Run, server: ContractServer) -> None:
    assert run("drain", "node-1") == 0

    assert server.drained == ["node-1"]


def test_keys_are_made_listed_and_removed(
    run: Run, server: ContractServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--namespace", "team", "keys", "create", "ci", "--role", "deploy") == 0
    assert capsys.readouterr().out == "faasd_secret\n"
    assert run("keys", "ls") == 0
    assert "ci    deploy  team" in capsys.readouterr().out
    assert run("keys", "rm", "k0") == 0

    assert server.keys == {}


def test_key_and_namespace_are_sent(run: Run, server: ContractServer) -> None:
    assert run("ls", "--key", "abc", "--namespace", "team") == 0

    assert server.headers["Authorization"] == "Bearer abc"
    assert server.headers["Faasd-Namespace"] == "team"


def test_an_option_after_the_command_wins(run: Run, server: ContractServer) -> None:
    assert run("--namespace", "one", "ls", "--namespace", "two") == 0

    assert server.headers["Faasd-Namespace"] == "two"


def test_version_needs_no_controller(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version", "--url", "http://127.0.0.1:1") == 0

    assert capsys.readouterr().out == f"faasd {__version__}\n"


def test_where_nothing_answers_the_exit_code_is_three(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        assert run("ls", "--url", f"http://127.0.0.1:{port}") == 3

    err = capsys.readouterr().err
    assert f"http://127.0.0.1:{port} (connection refused)" in err
    assert "`faasd up`" in err


@pytest.mark.parametrize(
    "argv", [("lss",), ("rm",), ("ls", "--what"), ("logs", "a", "--tail", "-1")]
)
def test_wrong_usage_exits_with_two(run: Run, argv: tuple[str, ...]) -> None:
    assert run(*argv) == 2


@pytest.mark.parametrize("debug", [False, True])
def test_a_defect_is_one_sentence_and_a_traceback_only_on_demand(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    def fail(_: Any) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("faasd.cli.functions.print_json", fail)

    assert run("ls", "--json", *(["--debug"] if debug else [])) == 1

    err = capsys.readouterr().err
    assert "faasd failed where it must not (KeyError: 'surprise')" in err
    assert ("Traceback" in err) is debug


def test_help_names_every_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0

    out = capsys.readouterr().out
    assert all(command.words.split()[0] in out for command in COMMANDS)


@pytest.mark.parametrize("argv", [["version"], ["deploy", "--help"]])
def test_a_command_loads_neither_the_http_client_nor_the_daemons(argv: list[str]) -> None:
    program = (
        "import sys; from faasd.cli.main import main; "
        f"main({argv}); sys.exit(len(sys.modules.keys() & {{'aiohttp', 'controller', 'worker'}}))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert done.returncode == 0


def test_a_command_that_is_not_remote_keeps_its_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up(port: int = 8080) -> None:
        print(port)

    monkeypatch.setattr("faasd.cli.version.up", up, raising=False)

    assert main(["up", "--port", "9"], [Command("up", "faasd.cli.version:up", "x", False)]) == 0

    assert capsys.readouterr().out == "9\n"
