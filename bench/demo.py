"""`make demo`: the platform on this machine, real models, a minute of Azure-shaped load, a report.

Starts `faasd up` on a free port, deploys examples, makes a trace, replays it, and ends everything
it started. What it builds is kept below .demo, so a second run is quicker.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "functions" / "examples"
WITH_TORCH = ("embed-minilm", "classify-image")
LIGHT = ("file-type", "digits")


def main() -> int:
    """The exit code of the first step that failed, or 0."""
    options = parse()
    work = ROOT / ".demo"
    work.mkdir(exist_ok=True)
    examples = [*(WITH_TORCH if importlib.util.find_spec("torch") else ()), *LIGHT]
    if len(examples) == len(LIGHT):
        print("torch is not installed: the demo leaves out", ", ".join(WITH_TORCH))
    platform, url = start_platform(work)
    try:
        return run(url, work, examples, options.duration, options.rate)
    finally:
        platform.send_signal(signal.SIGTERM)
        platform.wait(30)
        print("Stopped the platform; nothing it started is left running.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=int, default=60, help="seconds of load")
    parser.add_argument("--rate", type=float, default=8.0, help="invocations a second")
    return parser.parse_args()


def start_platform(work: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`faasd up` and its address. Its log goes to .demo/faasd.log."""
    log = work / "faasd.log"
    command = [sys.executable, "-m", "faasd", "up", "--port", "0", "--data", str(work / "data")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "FAASD_WORKER_TEMPLATE_KEEP_ALIVE_S": "8"},
        )
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if '"controller.listening"' in line:
                url = str(json.loads(line)["url"])
                print(f"faasd up listens on {url}; its log is {log.relative_to(ROOT)}")
                return process, url
    sys.exit(f"faasd up did not start:\n{log.read_text()}")


def run(url: str, work: Path, examples: list[str], duration: int, rate: float) -> int:
    """Deploy, try each function once, replay."""
    faasd = [sys.executable, "-m", "faasd", "--url", url]
    loadgen = [sys.executable, "-m", "loadgen"]
    trace, report = work / "trace.csv", work / "report"
    shutil.rmtree(report, ignore_errors=True)
    # Short keep-alives, so that a minute shows functions come and go.
    scaling = ["--set", "scaling.keep_alive=4"]
    steps = [[*faasd, "deploy", str(EXAMPLES / name), *scaling] for name in examples]
    steps += [
        [*faasd, "invoke", "-v", name, *example_arguments(name)]
        for name in examples
        if example_arguments(name)
    ]
    steps += [
        [
            *loadgen, "synth", "--out", str(trace), "--shape", "azure", "--seed", "1",
            "--functions", str(2 * len(examples)), "--duration", str(duration),
            "--rate", str(rate),
        ],
        [*loadgen, "replay", str(trace), "--url", url, "--report", str(report)],
        [*faasd, "status"],
    ]  # fmt: skip
    for step in steps:
        print("\n$", *shown(step), flush=True)
        quiet = "invoke" in step
        done = subprocess.run(
            step, check=False, stdout=subprocess.PIPE if quiet else None, text=True
        )
        if quiet:
            print(done.stdout[:160] + ("..." if len(done.stdout) > 160 else ""))
        if done.returncode:
            return done.returncode
    print(f"\nThe report: {report / 'report.html'}")
    return 0


def shown(step: list[str]) -> list[str]:
    """A step as a reader would type it from the top of the checkout."""
    return [part.removeprefix(f"{ROOT}/") for part in step[2:]]


def example_arguments(name: str) -> list[str]:
    """Arguments of `faasd invoke` that try the function, where its example is text."""
    import tomllib

    example = tomllib.loads((EXAMPLES / name / "function.toml").read_text()).get("example", {})
    return ["-d", example["body"]] if "body" in example else []


if __name__ == "__main__":
    sys.exit(main())
