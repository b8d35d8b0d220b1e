"""Stand-ins for the programs of SLURM on one machine: `python fake_slurm.py PROGRAM ARGUMENTS`.

`sbatch` runs the script of a job in the background, and again while it is requeued; `srun` starts the tasks of a step
with SLURM's variables, passes on signals, and ends all tasks when one fails; `scontrol requeue`, `scancel --signal` and
`sacct` read and write a folder that holds a file for each fact of a job. Nodes are names.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def options(words):
    """(options, the words behind them)."""
    found, rest = {}, list(words)
    while rest and rest[0].startswith("-"):
        name, _, value = rest.pop(0).lstrip("-").partition("=")
        found[name] = rest.pop(0) if name in ("output", "error") and not value else value
    return found, rest


def fact(job, name, value=None):
    """Reads or writes a fact of a job."""
    file = STATE / f"{job}.{name}"
    if value is not None:
        file.write_text(str(value))
    return file.read_text() if file.exists() else ""


def tasks_of(job_options):
    nodes = int(job_options.get("nodes", 1))
    return nodes, int(job_options.get("ntasks-per-node", 1))


def detach(out):
    """Lets go of the terminal and pipes of who submits the job, and writes to a file once its folder is there."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # who submits the job reads until the end
        os.dup2(nowhere, number)
    end = time.monotonic() + 20
    while not Path(out).absolute().parent.is_dir() and time.monotonic() < end:  # submitit makes it late
        time.sleep(0.05)
    with open(out, "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def sbatch(words):
    given, (script, *arguments) = options(words)
    text = Path(script).read_text()
    header = shlex.split(" ".join(re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)))
    asked = options(header)[0] | given
    job = 1 + max([int(p.name.split(".")[0]) for p in STATE.iterdir()], default=7000)
    fact(job, "state", "RUNNING")
    print(f"Submitted batch job {job}", flush=True)
    if os.fork():
        return 0
    kept = STATE / f"{job}.sh"  # SLURM keeps the script; submitit moves its own
    kept.write_text(text)
    array = asked.get("array")
    out = asked.get("output", f"slurm-{job}.out")
    detach(out.replace("%A", str(job)).replace("%j", str(job)).replace("%a", "0").replace("%t", "0"))
    nodes, each = tasks_of(asked)
    variables = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": f"node[1-{nodes}]" if nodes > 1 else "node1",
        "SLURM_NNODES": nodes,
        "SLURM_NTASKS": nodes * each,
        "SLURM_NTASKS_PER_NODE": each,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_NODEID": 0,
        "SLURM_JOB_NAME": asked.get("job-name", "job"),
        "MASTER_ADDR": "127.0.0.1",  # node1 is no name of a host
    }
    if array is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": 0}
    for start in range(5):
        again = {"SLURM_RESTART_COUNT": start} if start else {}
        env = os.environ | {k: str(v) for k, v in (variables | again).items()}
        code = subprocess.call(["bash", str(kept), *arguments], env=env)
        if not (STATE / f"{job}.requeue").exists():
            break
        (STATE / f"{job}.requeue").unlink()
    fact(job, "state", "COMPLETED" if code == 0 else "FAILED")
    os._exit(0)


def srun(words):
    given, command = options(words)
    job = os.environ["SLURM_JOB_ID"]
    nodes = int(given.get("nodes", os.environ["SLURM_NNODES"]))
    each = int(given.get("ntasks-per-node", os.environ["SLURM_NTASKS_PER_NODE"]))
    world = nodes * each
    tasks = []
    out = given.get("output", "")
    for rank in range(world):
        variables = {
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank % each,
            "SLURM_NODEID": rank // each,
            "SLURM_STEP_ID": 0,
            "SLURM_STEP_NUM_TASKS": world,
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        }
        log = None
        if out:
            name = out.replace("%A", job).replace("%j", job).replace("%a", "0").replace("%t", str(rank))
            log = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        env = os.environ | {k: str(v) for k, v in variables.items()}
        tasks.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
    fact(job, "srun", os.getpid())

    def pass_on(number, frame):
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, pass_on)
    while any(task.poll() is None for task in tasks):
        if any(task.returncode for task in tasks):  # --kill-on-bad-exit
            time.sleep(3)
            for task in tasks:
                if task.poll() is None:
                    task.kill()
        time.sleep(0.05)
    return max(abs(task.returncode) for task in tasks)


def scontrol(words):
    if words[0] == "show":  # hostnames
        print("127.0.0.1")
        return 0
    (STATE / f"{words[1].partition('_')[0]}.requeue").touch()
    return 0


def scancel(words):
    given, (job,) = options(words)
    os.kill(int(fact(job, "srun")), getattr(signal, f"SIG{given['signal']}"))
    return 0


def sacct(words):
    print("JobID|State|NodeList")
    for file in STATE.glob("*.state"):
        job = file.name.partition(".")[0]
        state = "PENDING" if (STATE / f"{job}.requeue").exists() else file.read_text()
        for name in (job, f"{job}_0"):
            print(f"{name}|{state}|node1")
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:]))
