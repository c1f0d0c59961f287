"""faasd beside other Python model servers, and beside what one would write by hand.

Each server is started alone, on loopback, waited for until a real request succeeds, left alone for
two seconds (its memory is read then), warmed for one, and loaded by wrk: one thread, closed loop,
at each number of connections. The servers take turns, in several rounds; figures are medians. CPU
is user and system time of all processes of the server, over the requests of the run.

One worker process each, one thread for torch. The peers are installed on demand, each into a
virtual environment of its own; one that cannot be is reported with the reason.

    python -m bench.peers [--rounds 3] [--seconds 6] [--peers faasd,mosec] [--cases echo]
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import wrk
from bench.daemons import DidNotStart, Server, leave_on_sigterm, scratch
from bench.measure import result
from bench.peers import contenders, environments, report
from bench.peers.cases import CASES, Case
from bench.peers.contenders import PEERS, PLATFORMS
from bench.peers.environments import NotInstalled
from bench.peers.figures import Measured, Results

SETTLE_S = 2.0
WARM_S = 1.0


class Comparison:
    """One run of the benchmark: what was asked for, what it takes, what was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.results = Results()
        self.versions: dict[str, dict[str, str]] = {}
        self._options = options
        self._pythons: dict[str, Path] = {}

    def prepare(self) -> None:
        """The environments of all that are asked for; for those without one, the reason."""
        if "faasd-docker" in self._options.peers and (reason := contenders.why_no_docker()):
            self._refuse("faasd-docker", self._options.cases, f"no Docker engine: {reason}")
        for name in self._options.peers:
            if name in PEERS:
                self._prepare(name)

    def _prepare(self, name: str) -> None:
        """The rest is measured still where torch, which only some cases need, cannot be had."""
        peer = PEERS[name]
        cases = [case for case in self._options.cases if case in peer.cases]
        with_torch = [case for case in cases if case.startswith("mlp")]
        if cases:
            tell(f"preparing {name}")
            self._install(name, cases, [peer.packages])
        if with_torch and name in self._pythons:
            torch = shlex.split(self._options.torch)
            if torch:
                self._install(name, with_torch, [peer.packages, torch])
            else:
                self._refuse(name, with_torch, "it was asked to do without torch")

    def _install(
        self, name: str, cases: Sequence[str], requirements: Sequence[Sequence[str]]
    ) -> None:
        try:
            python = environments.prepare(self._options.envs, PEERS[name].environment, requirements)
        except NotInstalled as error:
            self._refuse(name, cases, str(error))
            return
        self._pythons[name] = python
        self.versions[name] = environments.versions(python, _distributions(requirements))

    def _refuse(self, name: str, cases: Sequence[str], reason: str) -> None:
        for case in cases:
            self.results.refuse(case, name, reason)

    def run(self) -> None:
        for number in range(1, self._options.rounds + 1):
            for case in self._options.cases:
                for name in self._options.peers:
                    takes_part = name in PLATFORMS or case in PEERS[name].cases
                    if takes_part and not self.results.refused(case, name):
                        tell(f"round {number}: {case}: {name}")
                        self._measure(name, CASES[case])

    def _measure(self, name: str, case: Case) -> None:
        try:
            with scratch() as folder, self._serve(name, case, folder) as server:
                self._load(name, case, server)
        except DidNotStart as error:
            self.results.refuse(case.name, name, str(error))

    def _serve(
        self, name: str, case: Case, folder: Path
    ) -> contextlib.AbstractContextManager[Server]:
        if name in PLATFORMS:
            return contenders.serve_faasd(name, case, folder)
        return contenders.serve_peer(PEERS[name], case, self._pythons[name], folder)

    def _load(self, name: str, case: Case, server: Server) -> None:
        time.sleep(SETTLE_S)
        idle_mb = server.tree.pss_mb()
        drive(server, case, max(self._options.connections), WARM_S)
        for connections in self._options.connections:
            before_s = server.tree.cpu_s()
            load = drive(server, case, connections, self._options.seconds)
            used_s = server.tree.cpu_s() - before_s
            run = Measured(
                rate=load.rate,
                p50_ms=load.p50_ms,
                p99_ms=load.p99_ms,
                cpu_us=used_s / max(load.requests, 1) * 1e6,
                pss_mb=idle_mb,
                errors=load.errors,
            )
            self.results.add(case.name, name, connections, run)


def drive(server: Server, case: Case, connections: int, seconds: float) -> wrk.Load:
    return wrk.run(
        server.url,
        connections=connections,
        seconds=seconds,
        body=case.body,
        content_type=case.content_type,
    )


def tell(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def _distributions(requirements: Sequence[Sequence[str]]) -> list[str]:
    """The names of what was asked for, without versions, extras and options."""
    named = [word for words in requirements for word in words if "==" in word]
    return [word.partition("==")[0].partition("[")[0] for word in named]


def names(known: Sequence[str]) -> Any:
    """For an option: a list of these, by commas."""

    def parse(text: str) -> list[str]:
        given = [one.strip() for one in text.split(",") if one.strip()]
        unknown = [one for one in given if one not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown) or 'nothing'} is not among {', '.join(known)}"
            )
        return given

    return parse


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--connections", type=numbers, default=[1, 64])
    parser.add_argument("--peers", type=names(contenders.ALL), default=list(contenders.ALL))
    parser.add_argument("--cases", type=names(list(CASES)), default=list(CASES))
    parser.add_argument("--envs", type=Path, default=Path(".bench-peers"))
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is asked for as torch")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    options = parser.parse_args()
    wrk.require()
    leave_on_sigterm()
    comparison = Comparison(options)
    comparison.prepare()
    comparison.run()
    results = comparison.results
    asked = report.Asked(options.cases, options.peers, options.connections)
    print(report.tables(results, asked, marked=False))
    if options.markdown:
        how = f"{options.rounds} rounds in turn, {options.seconds:g} s for each figure"
        command = shlex.join(["python", "-m", "bench.peers", *sys.argv[1:]])
        page = report.page(results, asked, comparison.versions, command=command, how=how)
        options.markdown.write_text(page)
    result(
        bench="peers",
        rounds=options.rounds,
        seconds=options.seconds,
        cpu=report.cpu_model(),
        **report.summary(results),
    )


if __name__ == "__main__":
    main()
