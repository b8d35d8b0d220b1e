"""What a confined process of the tests runs: it adds up what it is asked, and misbehaves when told to."""

import os

from shiqrun.environments.confined import serve

total = 0


def answer(request):
    global total
    match request["do"]:
        case "loop":
            while True:
                pass
        case "grow":
            bytearray(4 << 30)
        case "print":
            print("{}", flush=True)
    total += request.get("number", 0)
    return {"total": total, "process": os.getpid()}


if __name__ == "__main__":
    serve(answer)
