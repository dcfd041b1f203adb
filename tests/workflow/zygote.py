"""Jobs of the workflow without their start: a process that has imported everything forks for each.

A job of the tiny atlas computes for a second and imports for four. `command(folder)` starts such a
process and gives a file for BASH_ENV that makes of the shell's `atlasmap` a question to it; what a
job is given (arguments, folder, environment, files) and what it gives back are as they would be.
"""

import array
import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

LOADED = ("matplotlib.backends.backend_agg", "scanpy", "umap", "atlasmap.commands.main",
          "atlasmap.evaluation.embedding_scores", "atlasmap.labels.atlas",
          "atlasmap.models.compiled")  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # what libraries read when they are loaded
CLIENT = """
import array, json, os, signal, socket, sys
told = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
files = array.array("i", [0, 1, 2])
line.sendmsg([len(told).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
line.sendall(told)
code = int(line.recv(16) or b"1")
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def job(files: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the command, in a process of its own; never returns."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["atlasmap", *words]
    from atlasmap.commands.main import main

    code = 1
    try:
        main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(line: socket.socket) -> None:
    """Fork for what a client asks, and tell it how that ended."""
    head, ancillary, *_ = line.recvmsg(8, socket.CMSG_SPACE(12))
    files = array.array("i")
    files.frombytes(ancillary[0][2])
    size, told = int.from_bytes(head, "big"), b""
    while len(told) < size:
        told += line.recv(size - len(told))
    child = os.fork()
    if not child:
        job(list(files), *json.loads(told))
    for file in files:
        os.close(file)
    line.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def serve(path: str) -> None:
    """Answer clients until killed, each in a process of its own."""
    for name in LOADED:
        importlib.import_module(name)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(8)
    while True:
        line, _ = server.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            answer(line)
            os._exit(0)
        line.close()


@cache
def command() -> str:
    """The file for BASH_ENV."""
    folder = Path(tempfile.mkdtemp(prefix="zygote-"))
    path, client, shell = folder / "socket", folder / "client.py", folder / "shell"
    environment = os.environ | ENVIRONMENT
    server = subprocess.Popen([sys.executable, __file__, str(path)], env=environment)
    atexit.register(server.kill)
    client.write_text(CLIENT)
    shell.write_text(f'atlasmap() {{ {sys.executable} -I -S {client} {path} "$@"; }}\n')
    while not path.exists():
        if server.poll() is not None:
            raise RuntimeError("the process that forks for jobs did not start")
        os.sched_yield()
    return str(shell)


if __name__ == "__main__":
    serve(sys.argv[1])
