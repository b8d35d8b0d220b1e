"""Limits, verdicts and what becomes of workers."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shiqrun.errors import TrainingError
from shiqrun.sandbox.backends import Backend
from shiqrun.sandbox.pool import Pool
from shiqrun.sandbox.worker import Limits, Program, SandboxWorker
from tests.sandbox.here import REPOSITORY, usable

PATIENT = Limits(cpu=20, wall=60.0, memory=512 << 20, output=1 << 20)
SHORT = Limits(cpu=1, wall=1.0, memory=256 << 20, output=1 << 16)
MODULES = """array ast asyncio bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal enum
fractions functools gc hashlib heapq html io itertools json math operator os pickle queue random re secrets statistics
string struct sys textwrap threading time typing unicodedata uuid zlib"""


@pytest.fixture(params=["bwrap", "guard", "rlimits"])
def worker(request):
    with SandboxWorker(usable(request.param)) as made:
        yield made


def test_a_program_reads_and_prints(worker):
    outcome = worker.run(Program("print(sum(map(int, open(0).read().split())), input.__name__)", b"1 2\n3\n"), PATIENT)
    assert (outcome.verdict, outcome.output, outcome.values) == ("ok", b"6 input\n", b"")
    assert outcome.cpu > 0
    assert outcome.wall > 0


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("", "ok"),
        ("import sys; sys.exit()", "ok"),
        ("import sys; sys.exit(3)", "runtime_error"),
        ("import sys; sys.exit('no')", "runtime_error"),
        ("1 / 0", "runtime_error"),
        ("import os; os.abort()", "runtime_error"),
        ("import threading; threading.Thread(target=lambda: 1 / 0).start()", "ok"),
        ("x = (", "syntax_error"),
        ("while True: pass", "cpu_limit"),
        ("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "cpu_limit"),
        ("import time; time.sleep(9)", "timeout"),
        ("x = bytearray(1 << 30)", "memory_limit"),
        ("print('x' * (1 << 17))", "output_limit"),
    ],
)
def test_verdicts(worker, code, verdict):
    limits = SHORT if verdict == "timeout" else Limits(1, 60.0, 256 << 20, 1 << 16)
    assert worker.run(Program(code), limits).verdict == verdict
    assert worker.lost == 0


def test_what_is_written_to_errors_is_told_by_its_end(worker):
    outcome = worker.run(Program("import sys\nprint('x' * 99999, file=sys.stderr)\nint('y')"), PATIENT)
    assert outcome.errors.rstrip().endswith("ValueError: invalid literal for int() with base 10: 'y'")
    assert len(outcome.errors) <= 2000


def test_large_input_and_output_come_through(worker):
    given = os.urandom(5 << 20).hex().encode()
    limits = Limits(20, 60.0, 512 << 20, 11 << 20)
    outcome = worker.run(Program("import sys; sys.stdout.write(sys.stdin.read()[::-1])", given), limits)
    assert outcome.verdict == "ok"
    assert outcome.output == given[::-1]


def test_a_program_that_does_not_read_ends_all_the_same(worker):
    assert worker.run(Program("print(1)", bytes(10 << 20)), PATIENT).output == b"1\n"


def test_programs_share_nothing(worker):
    code = "import builtins, math\nprint(hasattr(builtins, 'left'), math.pi)\nbuiltins.left = math.pi = 3"
    assert {worker.run(Program(code), PATIENT).output for _ in range(3)} == {b"False 3.141592653589793\n"}


def test_every_worker_gives_a_program_the_same_chances():
    code = "import random, os; print(list({'a', 'b', 'c', 'd', 'e'}), random.random(), dict(os.environ))"
    outputs = set()
    for _ in range(3):
        with SandboxWorker(usable("guard")) as made:
            outputs.add(made.run(Program(code), PATIENT).output)
    assert len(outputs) == 1


def test_threads_and_deep_recursion_work_as_in_a_terminal(worker):
    code = """
import sys, threading, atexit
sys.setrecursionlimit(1 << 20)
threading.stack_size(1 << 26)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
atexit.register(lambda: print("end"))
threading.Thread(target=lambda: print(depth(50000))).start()
"""
    assert worker.run(Program(code), PATIENT).output == b"50000\nend\n"


def test_the_standard_library_can_be_imported(worker):
    outcome = worker.run(Program("\n".join(f"import {name}" for name in MODULES.split()) + "\nprint('all')"), PATIENT)
    assert (outcome.verdict, outcome.output) == ("ok", b"all\n"), outcome.errors


def test_functions_are_called_and_their_values_come_back(worker):
    code = "def f(x, *, y=0):\n  print('noise')\n  return {x: (y, [1 / x])}\nassert __name__ != '__main__'"
    calls = [(["list", 2], ["dict"]), (["list", 4], ["dict", ["y", ["tuple", 1]]]), (["list", 0], ["dict"])]
    outcome = worker.run(Program(code, b"", "f", calls), PATIENT)
    assert outcome.verdict == "ok"
    first, second = (
        '[true, ["dict", [2, ["tuple", 0, ["list", 0.5]]]]]',
        '[true, ["dict", [4, ["tuple", ["tuple", 1], ["list", 0.25]]]]]',
    )
    assert outcome.values.decode() == f'[{first}, {second}, [false, "ZeroDivisionError"]]'


def test_a_method_of_a_class_solution_is_called(worker):
    code = "class Solution:\n  def twice(self, x): return 2 * x"
    assert worker.run(Program(code, b"", "twice", [(["list", 4], ["dict"])]), PATIENT).values == b"[[true, 8]]"


def test_a_worker_that_is_killed_is_replaced(worker):
    assert worker.run(Program("print(1)"), PATIENT).verdict == "ok"
    os.killpg(worker._process.pid, signal.SIGKILL)
    assert worker.run(Program("print(1)"), PATIENT).verdict == "sandbox_lost"
    assert worker.run(Program("print(1)"), PATIENT).verdict == "ok"
    assert worker.lost == 1


def test_the_pool_tries_again_what_lost_its_worker():
    with Pool(usable("guard"), 1) as pool:

        def task(run, item):
            first = run(Program("print(1)"), PATIENT)
            os.killpg(pool._workers[0]._process.pid, signal.SIGKILL)
            return first.output + run(Program(f"print({item})"), PATIENT).output

        assert [*pool.map(task, range(3))] == [b"1\n0\n", b"1\n1\n", b"1\n2\n"]
        assert pool.lost == 3


def test_results_come_in_order_from_programs_side_by_side():
    with Pool(usable("guard"), 2) as pool:
        code = "import time; time.sleep({}); print({})"
        waits = [0.3, 0.0, 0.2, 0.0]
        programs = [Program(code.format(wait, i)) for i, wait in enumerate(waits)]
        found = [o.output for o in pool.map(lambda run, p: run(p, PATIENT), programs)]
        assert found == [b"0\n", b"1\n", b"2\n", b"3\n"]
        assert len({worker._process.pid for worker in pool._workers}) == 2


def test_an_error_in_one_task_is_raised_and_the_pool_can_be_closed():
    with Pool(usable("guard"), 2) as pool, pytest.raises(ZeroDivisionError):
        list(pool.map(lambda run, i: 1 / i, [1, 0, 2]))
    with pytest.raises((TrainingError, RuntimeError)):
        list(pool.map(lambda run, i: run(Program(""), PATIENT), [1]))


def test_a_backend_that_stops_to_start_is_an_error():
    broken = Backend("guard", "/bin/false")
    with Pool(broken, 1) as pool, pytest.raises(TrainingError, match="guard starts no program any more"):
        list(pool.map(lambda run, i: run(Program(""), PATIENT), [1]))


def gone(pid, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_closing_leaves_no_process(worker):
    worker.run(Program(""), PATIENT)
    pid = worker._process.pid
    worker.close()
    assert gone(pid)


def test_a_killed_worker_takes_its_program_along(worker):
    worker.run(Program(""), PATIENT)
    zygote = worker._process.pid
    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(worker.run, Program("import time; time.sleep(300)"), PATIENT)
        end = time.monotonic() + 30
        while not (found := descendants(zygote) - {zygote}) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)  # until it has been confined
        os.killpg(zygote, signal.SIGKILL)
        assert outcome.result().verdict == "sandbox_lost"
    assert found
    assert all(gone(pid) for pid in found)


def descendants(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = {int(word) for word in file.read().split()}
    return children.union(*map(descendants, children))


def test_a_killed_trainer_takes_its_workers_and_their_programs_along():
    usable("guard")
    script = (
        "import threading, time\n"
        "from shiqrun.sandbox.backends import Backend\n"
        "from shiqrun.sandbox.worker import *\n"
        "w = SandboxWorker(Backend('guard'))\n"
        "limits = Limits(60, 300.0, 1 << 29, 1 << 20)\n"
        "w.run(Program(''), limits)\n"
        "threading.Thread(target=w.run, args=(Program('import time; time.sleep(300)'), limits)).start()\n"
        "time.sleep(0.5)\n"
        "print(w._process.pid, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        zygote = int(trainer.stdout.readline())
        with open(f"/proc/{zygote}/task/{zygote}/children") as file:
            program = int(file.read())
        trainer.kill()
    assert gone(zygote)
    assert gone(program)
