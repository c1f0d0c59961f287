"""The comparison's account: medians, ratios, and servers that could not be measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.measure import ROOT
from bench.peers import environments, figures, report
from bench.peers.__main__ import names, numbers
from bench.peers.cases import CASES, Case
from bench.peers.contenders import PEERS
from bench.peers.environments import NotInstalled
from bench.peers.figures import Measured, Results
from bench.peers.report import Asked

ECHO = CASES["echo"]


def run(cpu_us: float, *, rate: float = 100.0, errors: int = 0) -> Measured:
    return Measured(rate=rate, p50_ms=1.0, p99_ms=2.0, cpu_us=cpu_us, pss_mb=40.0, errors=errors)


def results(**cpu_us: list[float]) -> Results:
    found = Results()
    for server, runs in cpu_us.items():
        for one in runs:
            found.add("echo", server, 1, run(one))
    return found


def test_figures_are_medians_and_errors_are_summed() -> None:
    found = figures.medians([run(10, errors=1), run(300, errors=0), run(20, errors=2)])

    assert (found.cpu_us, found.errors) == (20, 3)


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    found = results(faasd=[100, 900, 210], mosec=[50, 300, 70])

    assert found.ratio("echo", "faasd", "mosec", 1) == 3


def test_a_round_that_only_one_of_them_has_is_left_out_of_the_ratio() -> None:
    found = results(faasd=[100, 900], mosec=[50])

    assert found.ratio("echo", "faasd", "mosec", 1) == 2


def test_without_the_other_there_is_no_ratio() -> None:
    found = results(faasd=[100])

    assert found.ratio("echo", "faasd", "mosec", 1) is None
    assert figures.ratio_lines(found, ECHO, ["faasd"], [1]) == []


def test_a_server_that_could_not_be_measured_has_its_row_and_its_reason() -> None:
    found = results(faasd=[100])
    found.refuse("echo", "ray", "pip could not\n install it")
    asked = Asked(["echo"], ["faasd", "ray"], [1])

    text = report.tables(found, asked, marked=False)

    assert [row[0] for row in figures.rows(found, ECHO, [1])] == ["faasd", "ray"]
    assert "ray: not measured: pip could not install it" in text
    assert report.summary(found)["not_measured"] == {"echo ray": "pip could not\n install it"}


def test_bytes_a_second_are_told_where_they_are_the_point() -> None:
    found = Results()
    found.add("body-1mb", "faasd", 64, run(1.0, rate=240))
    case = CASES["body-1mb"]

    [row] = figures.rows(found, case, [64])

    assert dict(zip(figures.header(case), row, strict=True))["MB/s each way"] == "240"


def test_the_page_has_every_case_and_the_versions() -> None:
    found = results(faasd=[100], mosec=[50])
    asked = Asked(["echo", "mlp"], ["faasd", "mosec"], [1])

    page = report.page(found, asked, {"mosec": {"mosec": "0.9.8"}}, command="x", how="1 round")

    assert "- mosec: mosec 0.9.8" in page
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## echo", "## mlp"]
    assert "faasd / mosec: 2.00 at 1" in page


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_an_answer_is_told_from_what_servers_say_before_they_are_ready(case: Case) -> None:
    answers = {"echo": ECHO.body, "body-1mb": case.body, "mlp": json.dumps([[0.5] * 10]).encode()}
    answer = answers[case.name.removesuffix("-batched")]

    assert case.is_answer(answer)
    assert not any(map(case.is_answer, (b"", b"Not Found", b"{}", b"null", b'{"outputs": []}')))


def test_every_peer_has_its_program_pinned_packages_and_known_cases() -> None:
    for peer in PEERS.values():
        assert (ROOT / "bench/peers/servers" / peer.program).is_file()
        assert all("==" in package for package in peer.packages)
        assert set(peer.cases) <= set(CASES)


def test_options_name_what_is_known() -> None:
    assert names(["a", "b"])("b, a") == ["b", "a"]
    assert numbers("1,64") == [1, 64]
    with pytest.raises(Exception, match="c is not among a, b"):
        names(["a", "b"])("a,c")


def test_an_environment_that_is_there_is_used_and_another_version_is_not(tmp_path: Path) -> None:
    place = tmp_path / "mosec"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / environments.RECORD).write_text(json.dumps(["mosec==1", "torch==2"]))

    assert environments.prepare(tmp_path, "mosec", [["mosec==1"]]) == place / "bin" / "python"
    with pytest.raises(NotInstalled, match="pip could not install --no-index mosec==2"):
        environments.prepare(tmp_path, "mosec", [["--no-index", "mosec==2"]])


def test_versions_are_those_of_the_interpreter_asked() -> None:
    found = environments.versions(Path(sys.executable), ["pytest"])

    assert found == {"pytest": pytest.__version__}
