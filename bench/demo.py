"""`make demo`: the platform on this machine, real models, a minute of Azure-shaped load, a report.

Starts `faasd up` on a free port, deploys examples, makes a trace, replays it, and ends everything
it started. What it builds is kept below .demo, so a second run is quicker.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
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
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
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
    steps = [[*faasd, "deploy", str(EXAMPLES / name)] for name in examples]
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
        print("\n$", " ".join(["faasd" if part == "faasd" else part for part in shown(step)]))
        code = subprocess.run(step, check=False).returncode
        if code:
            return code
    print(f"\nThe report: {report / 'report.html'}")
    return 0


def shown(step: list[str]) -> list[str]:
    """A step as a reader would type it."""
    return [part if len(part) < 60 else Path(part).name[:60] for part in step[2:]]


def example_arguments(name: str) -> list[str]:
    """Arguments of `faasd invoke` that try the function, where its example is text."""
    import tomllib

    example = tomllib.loads((EXAMPLES / name / "function.toml").read_text()).get("example", {})
    return ["-d", example["body"]] if "body" in example else []


if __name__ == "__main__":
    sys.exit(main())
