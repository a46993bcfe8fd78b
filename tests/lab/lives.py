"""Files of results whose makers are killed, and started again, until they are whole.

    python lives.py '[{"what": "sweep", "folder": "...", "lives": [[]]}]'

Each life is a process with a group of its own, forked from this one, which has read
the modules and done nothing yet.  It ends by itself, or by what is listed of it:

- ``{"line": 5, "part": 0.3, "who": "group"}``: SIGKILL to all of its group when three
  tenths of the fifth line that it writes are written; ``"main"``: to itself alone;
- ``{"line": 5, "who": "worker"}``: to one of its workers, which it survives;
- ``{"bytes": 4000, "wait": 0.02}``: to its group from outside, when the files have
  grown by so many bytes and so many seconds have passed.

In place of lives, ``"kills": 20`` draws them until so many were killed, and adds one
that ends by itself.  After each, a line of JSON says how it ended, who of its group was
still there a minute later, how many lines the files have, and how many of them half a
line more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing.forkserver
import multiprocessing.util
import os
import random
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "book")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)  # the server of forks looks there

import records as book  # noqa: E402
import torch._dynamo  # noqa: E402  # by every first training, which takes long

from survey_code.data.synthetic import make_clicks  # noqa: E402
from survey_code.lab import Contest, Entrant, Trial, results, sweep, tuning  # noqa: E402
from survey_code.lab.records import Workers, record  # noqa: E402
from survey_code.training import TrainingSettings  # noqa: E402

SEEDS = (1, 2)
DATA = make_clicks(rows=(600, 200, 200), field_sizes=(100, 30))
TRIAL = Trial(
    "dcnv2", 8,
    TrainingSettings(epochs=1, batch_size=300, patience=1, schedule="plateau",
                     learning_rate=0.01, drops=0),
    {"hidden": (4,), "cross_layers": 1},
)  # fmt: skip
CONTEST = Contest(
    "tiny", DATA, TRIAL,
    (
        Entrant("full", "full"),
        *(
            Entrant(f"rowwise, {bits} bits", "rowwise", (("bits", bits),), once=True,
                    rates_of="full")
            for bits in (8, 4)
        ),
        Entrant("uniform", "uniform", ratios=(2.0, 8.0), like="full"),
        Entrant("hashing", "hashing", like="full"),
    ),
    (2.0, 400.0), SEEDS, tuned_on=(0,),
)  # fmt: skip
ASKED = (("hashing", 4), ("full", 1), ("uniform", 2), ("rowwise", 2))
# The same as they are and larger, for many kills.
SIZES = {
    False: (8, SEEDS, CONTEST),
    True: (16, range(1, 12), dataclasses.replace(CONTEST, seeds=(1, 2, 3, 4, 5),
                                                 tuned_on=(0, 10))),
}  # fmt: skip


def live(what: str, folder: Path, jobs: int, large: bool) -> None:
    """Make what the files of a folder lack."""
    torch.set_num_threads(1)
    if jobs > 1:
        multiprocessing.set_forkserver_preload([Path(__file__).stem])
        multiprocessing.forkserver.ensure_running()
    tuning.TRIALS_EACH, seeds, contest = SIZES[large]
    out = folder / "runs.jsonl"
    if what == "sweep":
        keys = ("full", "hashing", "uniform")
        sweep(keys, DATA, [2, 1000], seeds, out=out, trial=TRIAL)
    elif what == "list":
        asked = [book.ask(k, DATA, r, seed, TRIAL) for k, r in ASKED for seed in seeds]
        list(record(asked, out, jobs=jobs))
    else:
        book.RESULTS = folder / "book"  # where these are joined
        list(book.contend(contest, folder, Workers(jobs=jobs, timed=False)))
        book.RESULTS.mkdir(exist_ok=True)
        book.join(contest, folder)


class Fatal(io.BufferedRandom):
    """A file to which a line is written in part, which kills the writer."""

    def __init__(self, path: Path, part: float, who: str) -> None:
        super().__init__(io.FileIO(path, "a+"))
        self.part, self.who = part, who

    def write(self, line) -> int:
        super().write(line[: round(self.part * len(line))])
        self.flush()
        kill = os.killpg if self.who == "group" else os.kill
        kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed, and still here")


def open_until(ends: dict[int, dict], written: list[Path], path, mode):
    """Open a file of results to write the next line to it, the last one perhaps."""
    written += [path] * (mode == "a+b")
    end = ends.get(len(written)) if mode == "a+b" else None
    if end is None:
        return open(path, mode)
    if end["who"] == "worker":
        multiprocessing.active_children()[0].kill()
        return open(path, mode)
    return Fatal(path, end["part"], end["who"])


def count_bytes(folder: Path) -> int:
    """Of the files of results that runs are added to."""
    return sum(file.stat().st_size for file in folder.glob("*.jsonl"))


def list_group(group: int) -> list[int]:
    """The processes of a group that have not ended, where the system lists them."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member, *_ = place.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(member) == group and state not in "ZX":
            found.append(int(place.parent.name))
    return found


def watch(process: int, folder: Path, ends: list[dict]) -> int:
    """Wait for the end of a life, or bring it about: its status."""
    for end in ends:
        if "bytes" in end:
            wanted = count_bytes(folder) + end["bytes"]
            while count_bytes(folder) < wanted:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    return status
                time.sleep(0.001)
            time.sleep(end["wait"])
            os.killpg(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1]


def begin(ends: list[dict], **given) -> int:
    """Fork a life: its process."""
    process = os.fork()
    if process:
        with contextlib.suppress(PermissionError):  # it has its group already
            os.setpgid(process, process)
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        lines = {end["line"]: end for end in ends if "line" in end}
        results.open = partial(open_until, lines, [])
        live(**given)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        multiprocessing.util._exit_function()
        os._exit(code)


def follow(ends: list[dict], folder: Path, **given) -> int:
    """See a life to its end: what it ended with."""
    process = begin(ends, folder=folder, **given)
    code = os.waitstatus_to_exitcode(watch(process, folder, ends))
    until = time.monotonic() + 60
    while (left := list_group(process)) and time.monotonic() < until:
        time.sleep(0.02)
    for one in left:
        os.kill(one, signal.SIGKILL)
    texts = [file.read_bytes() for file in folder.glob("*.jsonl")]
    said = {
        "folder": folder.name, "ends": ends, "code": code, "left": left,
        "lines": sum(text.count(b"\n") for text in texts),
        "torn": sum(not text.endswith(b"\n") for text in texts),
    }  # fmt: skip
    print(json.dumps(said), flush=True)
    return code


def draw(rng: random.Random, jobs: int) -> list[dict]:
    """How a life is to end."""
    line = {"line": rng.randint(2, 4), "part": rng.random()}
    ends = [
        {"bytes": rng.randint(1, 5000), "wait": rng.uniform(0, 0.05)},
        {"bytes": 0, "wait": rng.uniform(0, 0.3)},
        {**line, "who": rng.choice(["group", "main"])},
    ]
    worker = {"line": 1, "who": "worker"}
    return [rng.choice(ends), *([worker] if jobs > 1 and rng.random() < 0.3 else [])]


def main(stories: list[dict]) -> None:
    """One life after another."""
    for story in stories:
        told = {"jobs": 1, "large": False, **story, "folder": Path(story["folder"])}
        kills, rng = told.pop("kills", 0), random.Random(told["what"])
        for ends in told.pop("lives", []):
            follow(ends, **told)
        if kills:
            while kills:
                kills -= follow(draw(rng, told["jobs"]), **told) < 0
            follow([], **told)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)  # nothing is left to be done, which takes torch a second
