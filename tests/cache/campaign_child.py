"""A warm process that forks writers and ends them badly; run by test_campaigns.py, told what to do by lines of JSON.

A request: {"path", "toy": sizes, and one way to end: "at": [operation, "before" | "after" | "torn"], "seconds": s,
"bytes": largest file, "leave": free bytes that others leave once it has begun, or none; "cut": also lose what was not
flushed, as a power cut would; "drafts": keep rows at every batch; "mutant": a fault to plant}
The answer: {"exit": code or -signal, "operations": what the writer did, "output": an error's text}
"""

import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from cache import drafts
from cache.tools.verify import verify_cache
from common import disk
from common.errors import NestcoderError, UsageError

HERE = Path(__file__).parent


def load_toy():
    spec = importlib.util.spec_from_file_location("cache_conftest", HERE / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Toy


class Saboteur:
    """Counts operations of the disk and kills the process at one of them."""

    def __init__(self, request):
        self.count, self.names = 0, []
        self.number, self.when = request.get("at") or (-1, "")
        self.memory = Memory() if request.get("cut") else None
        self.leave = request.get("leave")

    def __call__(self, moment, operation, path):
        if moment == "before":
            self.count += 1
            self.names.append(operation)
        if self.memory:
            self.memory.saw(moment, operation, path)
        if self.leave is not None and operation == "write" and path.name[:3] == ".c." and "train" in path.parts:
            self.fill(path)
        if self.count - 1 != self.number or self.when not in {moment, "torn"}:
            return
        if self.when == "torn" and moment == "before" and operation in {"write", "append"}:
            self.tear()
        else:
            self.die()

    def fill(self, path):
        """Others fill the disk."""
        with path.parents[4].joinpath("filler").open("wb") as file:
            file.write(bytes(max(0, disk.free_bytes(path.parent) - self.leave)))
        self.leave = None

    def tear(self):
        def half(descriptor, pieces):
            data = b"".join(pieces)
            os.write(descriptor, data[: len(data) // 2])
            self.die()

        disk._write_all = half

    def die(self):
        if self.memory:
            self.memory.lose()
        os.kill(os.getpid(), signal.SIGKILL)


class Memory:
    """What a power cut would take: bytes not flushed since, names whose folder was not flushed since."""

    def __init__(self):
        self.names, self.flushed, self.seen = {}, {}, set()
        self._fsync = os.fsync
        disk.os.fsync = self.fsync

    def fsync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.flushed[path] = os.fstat(descriptor).st_size
        for name in [name for name in self.names if name.parent == path]:
            del self.names[name]

    def saw(self, moment, operation, path):
        if operation in {"write", "append", "truncate"}:
            self.seen.add(path)
        if moment == "after" and operation == "rename":
            aside = disk.aside_path(path, "part-00000")
            self.seen.discard(aside)
            self.seen.add(path)
            self.flushed[path] = self.flushed.pop(aside, 0)
            self.names[path] = True

    def lose(self):
        for path in self.seen:
            if path.exists() and path.stat().st_size > self.flushed.get(path, 0):
                os.truncate(path, self.flushed.get(path, 0))
        for path in self.names:
            path.unlink(missing_ok=True)


def plant(mutant):
    """A fault that a campaign must find."""
    if mutant == "shards are not flushed":
        fsync = disk.os.fsync

        def only_journal(descriptor):
            if "rows.zarr" not in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                fsync(descriptor)

        disk.os.fsync = only_journal
    if mutant == "what exists is not written again":

        def naive(files, *, tag):
            for path, pieces in files:
                disk.make_folder(path.parent)
                if not path.exists():
                    disk._flush_and_close(disk._write_aside(path, pieces))

        disk.write_files = naive


def work(request, answer):
    """In the child: check the files that are there, then write until the cache is complete."""
    path, saboteur = Path(request["path"]), Saboteur(request)
    plant(request.get("mutant"))
    if request.get("drafts"):
        drafts._SECONDS = 0.0
        drafts._SHARE = float("inf")
    output, code = "", 0
    if "bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["bytes"], resource.RLIM_INFINITY))
    try:
        check(path)
        with disk.watch(saboteur):
            TOY(**request["toy"]).write(path)
        verify_cache(path).require_sound()
    except NestcoderError as error:
        output, code = str(error), error.exit_code
    except BaseException:
        output, code = traceback.format_exc(), 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(answer, json.dumps({"operations": saboteur.names, "output": output}).encode())
    os._exit(code)


def check(path):
    """What a crash left must contain all that the journal promises."""
    try:
        verify_cache(path).require_sound()
    except UsageError:
        return


def run(request):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        work(request, writing)
    os.close(writing)
    if "seconds" in request:
        time.sleep(request["seconds"])
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"exit": status} | (json.loads(output) if output else {"operations": [], "output": ""})


if __name__ == "__main__":
    TOY = load_toy()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
