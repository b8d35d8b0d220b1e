"""A server that speaks what a client needs of vLLM's HTTP API, and samples by our decoder from weights on the disk.

It starts from a model directory, loads other weights from a path, knows adapters by name, and keeps what it was asked
(`requests`). `python -m tests.support.vllm_server --help` is the same in a process of its own.
"""

import argparse
import json
import socket
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shiqrun.batching.encode import EncodedTrajectory
from shiqrun.batching.rows import Rows
from shiqrun.models.policy import Policy
from shiqrun.sampling.generate import sample_completions

VERSION = "0.32.0"
KNOWN = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "stop"}
"""What a plain server takes."""


class Served:
    """What the server has: a model, its adapters, and how it was started."""

    def __init__(
        self,
        model,
        *,
        dev=True,
        lora=False,
        key=None,
        mode="raw_logprobs",
        room=None,
        name=None,
        dtype="float32",
        plain=False,
    ):
        self.path, self.dev, self.lora, self.key, self.mode = str(model), dev, lora, key, mode
        self.plain = plain  # of OpenAI's API what everybody has, and nothing else
        self.name, self.dtype = name or str(model), getattr(torch, dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.base = self._read(model)
        self.room = room or self.base.config.max_position_embeddings
        self.adapters, self.requests, self.lock = {}, [], threading.Lock()
        self.birth = time.time()
        self.broken = None  # (status, words) that completions are answered with

    def _read(self, path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype).eval()

    def reload(self, path):
        """As vLLM: into the model that is there, which keeps its config."""
        weights = self._read(path).state_dict()
        self.base.load_state_dict(weights)

    def add(self, name, path):
        from peft import PeftModel

        self.adapters[name] = PeftModel.from_pretrained(self._read(self.path), path).eval()
        self.adapters[name].root = path

    def policy(self, name):
        return Policy(self.adapters.get(name, self.base)).eval()

    def models(self):
        found = [{"id": self.name, "root": self.path, "parent": None, "max_model_len": self.room}]
        return found + [{"id": n, "root": m.root, "parent": self.name} for n, m in self.adapters.items()]

    def complete(self, asked):
        prompt, count = asked["prompt"], asked.get("n", 1)
        if len(prompt) + asked["max_tokens"] > self.room:
            raise Answer(400, f"max_tokens={asked['max_tokens']} and the prompt exceed max_model_len={self.room}")
        if not 0 <= asked["temperature"] <= 2:
            raise Answer(400, f"temperature must be in [0, 2], got {asked['temperature']}.")
        if self.plain and (unknown := asked.keys() - KNOWN):
            raise Answer(400, f"Unrecognized request argument supplied: {min(unknown)}")
        policy = self.policy(asked["model"])
        ids = np.array(prompt, np.int64)
        if asked.get("prompt_logprobs") is not None:
            return [self._scored(policy, ids)]
        made = sample_completions(
            policy,
            [ids] * count,
            [[asked["seed"], k] for k in range(count)],
            stop=self._stops(asked),
            pad=0,
            max_new_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            top_p=asked["top_p"],
            batch_size=count,
            description="",
            describe=True,
        )
        if self.plain:
            texts = [self.tokenizer.decode(c.tokens[:-1] if c.ended else c.tokens) for c in made]
            ends = ["stop" if c.ended else "length" for c in made]
            return [
                {"index": k, "text": t, "finish_reason": e} for k, (t, e) in enumerate(zip(texts, ends, strict=True))
            ]
        assert (asked["return_tokens_as_token_ids"], asked["ignore_eos"], asked["logprobs"]) == (True, True, 0)
        return [self._choice(k, c) for k, c in enumerate(made)]

    def _stops(self, asked):
        if "stop_token_ids" in asked:
            return asked["stop_token_ids"]
        return [self.tokenizer.convert_tokens_to_ids(word) for word in asked["stop"]]

    def _choice(self, index, c):
        logp = c.logp if self.mode == "processed_logprobs" else c.policy_logp
        text = self.tokenizer.decode(c.tokens[:-1] if c.ended else c.tokens)
        said = {"tokens": [f"token_id:{t}" for t in c.tokens], "token_logprobs": [float(x) for x in logp]}
        return {"index": index, "text": text, "logprobs": said, "finish_reason": "stop" if c.ended else "length"}

    def _scored(self, policy, ids):
        index = np.arange(1, len(ids), dtype=np.int32)
        row = EncodedTrajectory(ids.astype(np.int32), index, None, "p", 0, 0, "x", "p")
        with torch.no_grad():
            scores = policy(Rows([row], 0).collate([0])).logp[0].tolist()
        said = [None, *({str(t): {"logprob": x}} for t, x in zip(ids[1:].tolist(), scores, strict=True))]
        return {"index": 0, "text": "", "prompt_logprobs": said, "finish_reason": "length"}


class Answer(Exception):
    """An answer that is no success."""

    def __init__(self, status, words):
        super().__init__(words)
        self.status = status


def routes(served):
    """What is answered where, as vLLM answers with these switches."""

    def rpc(asked):
        if "method" not in asked:
            raise Answer(400, "Missing 'method' in request body")
        assert asked["method"] == "reload_weights"
        try:
            served.reload(asked["kwargs"]["weights_path"])
        except Exception as error:
            raise Answer(500, f"Call to collective_rpc method failed: Worker failed with error '{error}'") from error
        return {"results": [None]}

    def add(asked):
        if "lora_name" not in asked:
            raise Answer(400, "lora_name: Field required")
        if asked["lora_name"] in served.adapters:
            raise Answer(400, f"The lora adapter '{asked['lora_name']}' has already been loaded.")
        served.add(asked["lora_name"], asked["lora_path"])
        return f"Success: LoRA adapter '{asked['lora_name']}' added successfully."

    def drop(asked):
        del served.adapters[asked["lora_name"]]
        return "Success"

    def complete(asked):
        if served.broken:
            raise Answer(*served.broken)
        if asked["model"] not in {m["id"] for m in served.models()}:
            raise Answer(404, f"The model `{asked['model']}` does not exist.")
        return {"object": "text_completion", "model": asked["model"], "choices": served.complete(asked)}

    def tokenize(asked):
        return {
            "tokens": served.tokenizer(asked["prompt"], add_special_tokens=asked["add_special_tokens"])["input_ids"]
        }

    found = {
        "/health": lambda _: "",
        "/metrics": lambda _: f"# HELP of prometheus\nprocess_start_time_seconds {served.birth}\n",
        "/version": lambda _: {"version": VERSION},
        "/v1/models": lambda _: {"object": "list", "data": served.models()},
        "/v1/completions": complete,
        "/tokenize": tokenize,
    }
    if served.dev:
        found |= {"/collective_rpc": rpc, "/reset_prefix_cache": lambda _: {"success": True}}
    if served.lora:
        found |= {"/v1/load_lora_adapter": add, "/v1/unload_lora_adapter": drop}
    return found


def handler(served):
    """The handler class of an HTTP server."""
    known = served.known = routes(served)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            length = int(self.headers.get("Content-Length") or 0)
            asked = json.loads(self.rfile.read(length) or b"{}")
            served.requests.append((self.path, asked))
            try:
                if (
                    served.key
                    and self.path.startswith("/v1")
                    and self.headers["Authorization"] != f"Bearer {served.key}"
                ):
                    raise Answer(401, "Unauthorized")
                if self.path not in known:
                    raise Answer(404, "Not Found")
                watched = self.path in ("/health", "/metrics")  # which vLLM answers while it samples, too
                with nullcontext() if watched else served.lock:
                    self.say(200, known[self.path](asked))
            except Answer as answer:
                self.say(answer.status, {"error": {"message": str(answer), "code": answer.status}})

        def say(self, status, content):
            text = content if isinstance(content, str) else json.dumps(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    return Handler


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *own):
        super().__init__(*own)
        self.connections = []

    def process_request(self, request, address):
        self.connections.append(request)
        super().process_request(request, address)

    def handle_error(self, *_):
        """A client that goes away is no news."""


@contextmanager
def serving(model, port=0, **options):
    """The server in threads of this process; yields what it has, with its `url`."""
    served = Served(model, **options)
    http = Quiet(("127.0.0.1", port), handler(served))
    served.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()

    def stop():
        """As if it died: it takes no connection, and closes those that it has."""
        http.shutdown()
        http.server_close()
        for connection in http.connections:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    served.stop = stop
    try:
        yield served
    finally:
        stop()


def main():
    """Serve until the process is ended."""
    words = argparse.ArgumentParser()
    words.add_argument("--model", type=Path, required=True)
    words.add_argument("--port", type=int, required=True)
    words.add_argument("--enable-lora", action="store_true")
    words.add_argument("--logprobs-mode", default="raw_logprobs")
    given = words.parse_args()
    torch.set_num_threads(1)
    served = Served(given.model, lora=given.enable_lora, mode=given.logprobs_mode)
    print(f"serving {given.model} at {given.port}", flush=True)
    Quiet(("127.0.0.1", given.port), handler(served)).serve_forever()


if __name__ == "__main__":
    main()
