"""Programs that a model wrote, run where they can do no harm. Only the standard library.

    pool      threads, each with a worker
    worker    a zygote as the trainer sees it: asks, reads, replaces it when it is lost
    choice    which way to start a zygote works here
    backends  the ways to start one
    zygote    the process in the sandbox that is ready, and forks a supervisor for every program
    supervisor  forks the program, feeds it, keeps the wall and output limits; threads: how many it may make
    program   what a fork does: is confined, runs the program, hands back values
    kernel    rlimits, Landlock, seccomp, by ctypes; syscalls: the calls that a program may make
    values    plain Python values as JSON, the only thing that crosses besides text
    probes    hostile programs that show whether a backend holds

Nothing that says what is right enters a program's process: who asks compares.
"""
