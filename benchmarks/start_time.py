"""How long a user waits for `--help`: python benchmarks/start_time.py.

The bound is 0.5 s for each on an idle machine.
"""

import subprocess
import sys
import time

NUM_REPEATS = 7
MAIN = [sys.executable, "-m", "jigsaw_forecast.cli.main"]
CASES = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import jigsaw_forecast": [sys.executable, "-c", "import jigsaw_forecast"],
    "jigsaw-forecast --version": [*MAIN, "--version"],
    "jigsaw-forecast --help": [*MAIN, "--help"],
    "jigsaw-forecast run --help": [*MAIN, "run", "--help"],
}


def measure(command: list[str]) -> list[float]:
    """Wall-clock seconds of each repeat, sorted."""
    seconds = []
    for _ in range(NUM_REPEATS):
        start_s = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start_s)
    return sorted(seconds)


def main() -> None:
    """Prints the best and the middle of the repeats."""
    for name, command in CASES.items():
        seconds = measure(command)
        print(f"{name:28} best {seconds[0]:.2f} s, median {seconds[NUM_REPEATS // 2]:.2f} s")


if __name__ == "__main__":
    main()
