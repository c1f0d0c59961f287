"""What policies of preloading do to waits for libraries and models, and what that takes.

simulated   1,000 functions in virtual time, InstaInfer's setting: which share of calls to hot, medium and
            rare functions finds everything loaded, on nodes of 16 GB, in both models of memory

python -m bench.preloading [--parts simulated] [--nodes 4,6] [--hours 4]
"""

from __future__ import annotations

import argparse

from bench.measure import result
from bench.preloading import simulated

PARTS = {"simulated": simulated.measure}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="by commas")
    simulated.add_options(parser)
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    figures = {part: PARTS[part](options) for part in chosen}
    result(bench="preloading", **figures)


if __name__ == "__main__":
    main()
