"""A Python whose libraries are loaded already: python server.py FOLDER

Loading PyTorch and the libraries of language models takes a process five seconds, and the tests start many. This one
loads them once and forks for whoever runs FOLDER/python. That asks at FOLDER/socket (client.py), and does for its
caller what ``python`` does, with the same arguments, environment, folder and streams. No module of this repository is
loaded here, so every process imports what it needs of them, in its own order.

A request is the length of a JSON object with three descriptors, then the object; the answer is the exit code, negative
for a signal. A process is killed when its connection ends before it. A connection that sends "stay" in place of a
length keeps the server alive: the server ends with the last of them, and removes FOLDER.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path

LIBRARIES = (
    "torch", "torch.distributed.run", "transformer_lens.model_bridge", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gemma2.modeling_gemma2", "datasets", "zarr", "numcodecs", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "pydantic", "rich.progress", "rich.table", "click", "ruamel.yaml", "tokenizers",
    "safetensors.torch", "fsspec", "networkx", "jaxtyping", "huggingface_hub",
)  # fmt: skip


class Server:
    """Forks for connections, answers them, and ends with the last that asked it to stay."""

    def __init__(self, listener: socket.socket, executable: str) -> None:
        self._executable = executable
        self._base_path = sys.path.copy()
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._staying: set[socket.socket] = set()
        self._started = False

    def serve(self) -> None:
        while self._staying or not self._started:
            for key, _ in self._selector.select():
                key.data()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        line, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
        if line == b"stay":
            self._started = True
            self._staying.add(connection)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._leave(connection))
            connection.sendall(b"here")
            return
        size = int.from_bytes(line, "little")
        request = b""
        while len(request) < size:
            request += connection.recv(size - len(request))
        child = os.fork()
        if not child:
            become(json.loads(request), descriptors, executable=self._executable, base_path=self._base_path)
        for descriptor in descriptors:
            os.close(descriptor)
        ended = os.pidfd_open(child)
        self._selector.register(ended, selectors.EVENT_READ, lambda: self._answer(child, ended, connection))
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._abandoned(child, connection))

    def _leave(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._staying.discard(connection)
        connection.close()

    def _abandoned(self, child: int, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        os.killpg(child, signal.SIGKILL)

    def _answer(self, child: int, ended: int, connection: socket.socket) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if connection in [key.fileobj for key in self._selector.get_map().values()]:
            self._selector.unregister(connection)
            connection.sendall(code.to_bytes(4, "little", signed=True))
        connection.close()


def become(request: dict, descriptors: list[int], *, executable: str, base_path: list[str]) -> None:
    """Be the process that was asked for, to its end."""
    os.setpgid(0, 0)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", 1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.executable = executable
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(":")), *base_path]
    code = 1
    try:
        code = exit_code(request["arguments"])
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        os._exit(code & 0xFF)


def exit_code(arguments: list[str]) -> int:
    try:
        run(arguments)
    except SystemExit as left:
        if isinstance(left.code, int | None):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(arguments: list[str]) -> None:
    """What ``python`` does with ``-c CODE``, ``-m MODULE`` or a script, and the arguments after it."""
    kind, *others = arguments
    sys.modules["__main__"] = main = type(sys)("__main__")
    if kind == "-c":
        sys.argv[:] = ["-c", *others[1:]]
        sys.path.insert(0, "")
        exec(compile(others[0], "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        sys.argv[:] = ["-m", *others[1:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(others[0])
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    folder = Path(sys.argv[1])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    executable = folder / "python"
    client = Path(__file__).resolve().with_name("client.py")
    words = [sys.executable, "-IS", str(client), sys.executable, str(folder / "socket")]
    executable.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    executable.chmod(0o700)
    if os.fork():
        os._exit(0)  # who started it goes on: requests wait at the socket
    try:
        os.setsid()
        gc.disable()
        for library in LIBRARIES:
            import_module(library)
        gc.enable()
        gc.freeze()  # a collection in a fork would copy all of it
        Server(listener, str(executable)).serve()
    finally:
        shutil.rmtree(folder)


main()
