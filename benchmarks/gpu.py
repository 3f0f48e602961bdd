"""Every preset on a GPU against the card's own matrix rate: `jigsaw-forecast bench` on all of them.

    python benchmarks/gpu.py [PRESET]... [--steps 10] [--device cuda]

Prints the card and one table: seconds per forecast step and per train step in bfloat16, as a share
of the measured rate of large products, and peak memory. A preset whose training does not fit the
card is timed in the forecast only, and the table says so.
"""

import argparse
import subprocess
import sys

import torch

PRESETS = ("wm-9m-5.625", "wm-70m-1.5", "wm-300m-0.25", "wm-1b-0.25", "wm-3.2b", "wm-3.2b-0.125")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--steps", default="10")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda":
        if not torch.cuda.is_available():
            print("error: missing a CUDA device; --device cpu runs the same at toy size")
            return 2
        print(torch.cuda.get_device_name(), f"torch {torch.__version__}")
    for preset in options.presets:
        command = [sys.executable, "-m", "jigsaw_forecast.cli.main", "bench", preset]
        command += ["--device", options.device, "--steps", options.steps]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "OutOfMemoryError" in done.stderr:
            print(f"{preset}: training does not fit this card")
            command.append("--no-training")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)
            return done.returncode
        print(done.stdout, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
