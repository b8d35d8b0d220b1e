"""`python()` is a program that stands in for `sys.executable`, and starts in 0.1 s what takes the interpreter 8 s.

Sweeps start jobs, and Lightning starts ranks, by `sys.executable -m shiqrun ...`. The stand-in asks a server, which has
imported PyTorch and shiqrun, to fork a process that runs the same words in the same folder with the same streams and
variables; it passes signals on, and ends as that process does. The interpreter itself runs what is neither `-m MODULE`
nor `-c CODE`, and what has other values of variables that libraries read when they are imported.
"""

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.support.forks import CONTEXT

READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON", "OMP_NUM_THREADS", "MKL_", "LD_")
READ_LATER = ("PYTHONPATH", "PYTHONUNBUFFERED")


def _early(variables) -> dict[str, str]:
    return {k: v for k, v in variables.items() if k.startswith(READ_AT_IMPORT) and k not in READ_LATER}


AT_IMPORT = _early(os.environ)
CLIENT = """\
#!{interpreter} -IS
import json, os, signal, socket, struct, sys

words, process = sys.argv[1:], 0
signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
server = socket.socket(socket.AF_UNIX)
def run_interpreter():
    os.execv({interpreter!r}, [{interpreter!r}, *words])
def pass_on(number, frame):
    if process:
        os.kill(process, number)
def heard():
    return struct.unpack("q", server.recv(8, socket.MSG_WAITALL))[0]
if words[:1] not in (["-m"], ["-c"]):
    run_interpreter()
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
server.connect({address!r})
asked = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [struct.pack("q", len(asked))], [0, 1, 2])
server.sendall(asked)
process = heard()
for number in signals:
    signal.signal(number, pass_on if process else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
if not process:
    run_interpreter()
code = heard()
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def python() -> str:
    """Path of the program, whose server runs until this process ends; the interpreter's where this is no Linux."""
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = Path(tempfile.mkdtemp(prefix="stand-in-"))
    program, address = folder / "python", str(folder / "socket")
    program.write_text(CLIENT.format(interpreter=sys.executable, address=address))
    program.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    reader, writer = CONTEXT.Pipe(duplex=False)
    server = CONTEXT.Process(target=_serve, args=(listener, reader, str(program), AT_IMPORT))
    server.start()
    listener.close()
    reader.close()
    atexit.register(_end, server, writer, folder)  # runs before the modules that wait for all processes
    return str(program)


def _end(server, writer, folder) -> None:
    writer.close()
    server.join()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _serve(listener, alive, program, at_import) -> None:
    """Fork a process for each request, until the process that started the server ends."""
    events = selectors.DefaultSelector()
    for source in (listener, alive):
        events.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj is alive:
                return
            if key.fileobj is listener:
                _answer(listener.accept()[0], at_import, events, program)
            elif isinstance(key.fileobj, int):  # a process has ended
                process, asker = key.data
                events.unregister(key.fileobj)
                os.close(key.fileobj)
                with suppress(KeyError):
                    events.unregister(asker)
                with suppress(BrokenPipeError), asker:
                    asker.sendall(struct.pack("q", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
            elif key.fileobj.fileno() >= 0:  # the stand-in was killed before its process had ended
                events.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def _answer(asker, at_import, events, program) -> None:
    """Say the pid of a process that runs what is asked for, or 0 where the interpreter itself has to run it."""
    size, streams, _, _ = socket.recv_fds(asker, 8, 3)
    words, folder, variables = json.loads(asker.recv(*struct.unpack("q", size), socket.MSG_WAITALL))
    forks = _early(variables) == at_import
    process = os.fork() if forks else 0
    if forks and process == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        asker.close()
        _become(words, folder, variables, program)
    for stream in streams:
        os.close(stream)
    if forks:
        events.register(asker, selectors.EVENT_READ, process)
        events.register(os.pidfd_open(process), selectors.EVENT_READ, (process, asker))
    asker.sendall(struct.pack("q", process))


def _become(words, folder, variables, program) -> None:
    """Run words as a new interpreter would, and end this process."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
        sys.executable = program
        sys.path[:0] = [folder, *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
        sys.stdin = os.fdopen(0, closefd=False)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through="PYTHONUNBUFFERED" in variables, line_buffering=stream.isatty())
        code = _run(words)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _run(words) -> int:
    """Exit code of `-m MODULE ...` or `-c CODE ...`."""
    sys.argv = [words[0], *words[2:]]
    try:
        if words[0] == "-c":
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
