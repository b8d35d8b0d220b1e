"""The sandbox runs programs that a model wrote, confined by the Linux kernel, with the standard library alone.

In the trainer's process:
    pool        threads, each with a worker
    worker      starts a zygote, sends it programs, reads outcomes, and replaces it when it is lost
    choice      finds a backend that works on this machine
    backends    the ways to confine a zygote: bubblewrap, Landlock with seccomp, resource limits alone
    probes      hostile programs that show whether a backend holds

In the sandbox:
    zygote      an interpreter that waits for requests and forks a supervisor for every program
    supervisor  forks the program, writes its input, enforces the limits of wall time and output
    threads     the limit of threads, by seccomp's user notification
    program     confines itself, runs the code of the request, and sends back the values of its calls
    kernel      resource limits, capabilities, Landlock and seccomp, called by ctypes
    syscalls    the system calls that a program may make, as a seccomp filter
    values      plain Python values as JSON; nothing but these and text leaves the sandbox

No expected output enters a program's process: the process that asked compares.
"""
