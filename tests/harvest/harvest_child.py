"""A warm process that forks harvests and kills them; run by test_processes.py, told what to do by lines of JSON.

A request: {"arguments": of the command line, "seconds": after which the harvest is killed, or null}
The answer: {"exit": code or -signal, "seconds": how long it ran, "output": what it wrote to standard error}
"""

import json
import os
import signal
import sys
import tempfile
import time

import transformer_lens.model_bridge  # noqa: F401  slow to import: here, once

import harvest.run  # noqa: F401
import nestcoder.commands.stage_commands  # noqa: F401
from nestcoder.__main__ import main


def child(arguments, output):
    os.dup2(output.fileno(), 2)
    os.dup2(output.fileno(), 1)
    code = 1
    try:
        main(arguments)
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os._exit(code)


def run(arguments, seconds):
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        process = os.fork()
        if not process:
            child(arguments, output)
        while seconds is not None and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() - started >= seconds:
                os.kill(process, signal.SIGKILL)
                break
            time.sleep(0.002)
        status = os.waitpid(process, 0)[1]
        took = time.monotonic() - started
        output.seek(0)
        text = output.read().decode(errors="replace")
    return {"exit": os.waitstatus_to_exitcode(status), "seconds": took, "output": text}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(run(request["arguments"], request["seconds"])), flush=True)
