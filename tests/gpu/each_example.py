"""Every layout example on the GPU, each in a process of its own.

An illegal access ends all that a process can do on the GPU, so that one bad kernel
would fail every test after it.  From the checkout::

    PYTHONPATH=. python3 tests/gpu/each_example.py             # all of them
    PYTHONPATH=. python3 tests/gpu/each_example.py --memcheck  # watched, slower
    PYTHONPATH=. python3 tests/gpu/each_example.py "8 bits"    # one, in this process
"""

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from layout_examples import EXAMPLES

SHAPES = ((), (0,), (7,), (3, 0), (50, 40))


def compare(name):
    """The largest difference between what the GPU and NumPy read, by size."""
    from survey_code.kernels.cuda import load_cupy

    cupy = load_cupy()
    host = EXAMPLES[name]()
    device, worst, rows = host.to_gpu(), 0.0, host.num_embeddings
    # What is added up may be larger than what it comes to.
    size = max(1.0, float(np.abs(host.lookup(np.arange(rows))).max()))

    def differ(found, wanted):
        gap = np.abs(found.get() - wanted) / (size + np.abs(wanted))
        return max(worst, float(gap.max(initial=0)))

    rng = np.random.default_rng(1)
    for shape in SHAPES:
        for kind in (np.int32, np.int64):
            ids = rng.integers(rows, size=shape).astype(kind)
            worst = differ(device.lookup(cupy.asarray(ids)), host.lookup(ids))
    ids = rng.integers(rows, size=2000)
    offsets = np.sort(rng.integers(0, 2000, size=300))
    offsets[0] = 0
    for mode in ("sum", "mean", "max"):
        pooled = device.bag(cupy.asarray(ids), cupy.asarray(offsets), mode=mode)
        worst = differ(pooled, host.bag(ids, offsets, mode=mode))
    return worst


def run_alone(name, memcheck):
    """Exit status and output of one example in its own process."""
    watch = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
    command = [sys.executable, __file__, name]
    done = subprocess.run(
        (watch if memcheck else []) + command, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=EXAMPLES, metavar="NAME")
    parser.add_argument("--memcheck", action="store_true")
    parser.add_argument("--jobs", type=int, default=8)
    asked = parser.parse_args()
    if asked.name:
        worst = compare(asked.name)
        print(f"{worst:.1e}")
        return int(worst > 1e-4)
    if asked.memcheck and not shutil.which("compute-sanitizer"):
        parser.error("compute-sanitizer is not on the PATH")
    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = pool.map(lambda n: run_alone(n, asked.memcheck), EXAMPLES)
        failed = 0
        for name, (status, output) in zip(EXAMPLES, outcomes, strict=True):
            failed += status != 0
            last = output.strip().splitlines()[-1:] or [""]
            print("ok  " if status == 0 else "FAIL", name, *last, sep="  ", flush=True)
            if status:
                print(output[-1500:])
    print(f"{len(EXAMPLES) - failed} of {len(EXAMPLES)} examples agree")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
