"""Asks server.py to be Python with these arguments, or becomes Python itself: client.py PYTHON SOCKET ARGUMENT..."""

import json
import os
import socket
import sys
from pathlib import Path

COLD = frozenset(("TRITON_INTERPRET", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONWARNINGS"))
"""Variables that count when Python or a library is loaded, not later."""


def is_served(arguments: list[str]) -> bool:
    """Not with other options, and not what multiprocessing starts, which is given more descriptors."""
    if not arguments or COLD & os.environ.keys():
        return False
    kind = arguments[0]
    return "multiprocessing" not in arguments[1] if kind in ("-c", "-m") else not kind.startswith("-")


def ask(address: str, arguments: list[str]) -> int:
    request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "little")], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(4)
    if len(answer) < 4:
        sys.exit("The Python whose libraries are loaded has ended.")
    return int.from_bytes(answer, "little", signed=True)


python, address, *arguments = sys.argv[1:]
if not is_served(arguments):
    os.execv(python, [python, *arguments])
code = ask(address, arguments)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
