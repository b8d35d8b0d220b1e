"""Weights travel to a vLLM server through a directory that both see: it is told the path and loads the files.

Of a policy with a LoRA adapter the adapter alone travels. Without one all weights do, in the dtype that was asked for.
"""

import copy
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shiqrun.errors import InputError, TrainingError
from shiqrun.models.adapter import has_adapter
from shiqrun.models.policy import Policy
from shiqrun.rollout.engine import Weights
from shiqrun.rollout.transfers import in_dtype
from shiqrun.sampling.served import ServedModel, served_names
from shiqrun.util.json_http import JsonServer, Refusal

log = logging.getLogger("shiqrun")
START = "start"
"""Folder, beside the weights, of a model that training starts from and that has no directory or Hub id of its own."""


class WeightsFolder:
    """A weights folder holds the newest weights of a policy as files that a server can load.

    Args:
        directory: of this run alone; what a former process left in it is deleted.
        policy: whose weights they are; its tensors are not read.
        dtype: name of the dtype of the weights in the files; None for their own.

    Raises:
        InputError: nothing can be written there.
    """

    def __init__(self, directory: Path, policy: Policy, dtype: Literal["fp32", "bf16"] | None) -> None:
        self.directory, self.policy, self.dtype = directory.absolute(), policy, dtype
        try:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"rollout.weights_dir: {self.directory} cannot be written ({error.strerror})") from error

    def write(self, version: int, weights: Weights) -> Path:
        """Write weights to a new directory, delete all former ones but the last, and return it."""
        versions = (path for path in self.directory.iterdir() if path.name != START)
        former = sorted(versions, key=lambda path: path.stat().st_mtime_ns)
        path = self.directory / str(version)
        for old in {*former[:-1], path} & {*former}:
            shutil.rmtree(old)
        save = save_adapter_weights if has_adapter(self.policy.model) else save_weights
        save(self.policy.model, in_dtype(weights, self.dtype), path)
        return path

    def save_start(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Save the model that training starts from, without its adapter, and return its directory."""
        model, path = self.policy.model, self.directory / START
        (copy.deepcopy(model).unload() if has_adapter(model) else model).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return str(path)

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.directory, ignore_errors=True)


def save_weights(model: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """Save these parameters of a model, with its config, as `save_pretrained` saves the model's own."""
    kept = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in kept}
    model.save_pretrained(path, state_dict={**buffers, **weights})


def save_adapter_weights(model: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """Save these parameters of a LoRA adapter, and its config, in the form of PEFT."""
    model.save_pretrained(path, state_dict=dict(weights), save_embedding_layers=False)  # without it, peft asks the Hub


def birth_of(server: JsonServer) -> str | None:
    """Return when a server's process began, in its own words; None where it does not say.

    Raises:
        Unreachable: it gives no answer.
    """
    try:
        lines = str(server.get("/metrics")).splitlines()
    except Refusal:
        return None
    return next((line for line in lines if line.startswith("process_start_time_seconds ")), None)


class Publisher:
    """A publisher sends weights to a vLLM server: it writes them to the folder, and has the server load them.

    Args:
        served: the model of the server; its name is that of the newest adapter, where the policy has one.
        folder: through which they travel.
        tag: begins the names of this run's adapters at the server.

    """

    def __init__(self, served: ServedModel, folder: WeightsFolder, tag: str) -> None:
        self.served, self.folder, self.tag = served, folder, tag
        self.adapter = has_adapter(folder.policy.model)
        self._current: Path | None = None
        self._birth: str | None = None  # of the server that has loaded it

    def publish(self, version: int, weights: Weights) -> int:
        """Send new weights, and return the size of their files in bytes.

        Raises:
            Unreachable: the server gave no answer.
            TrainingError: it cannot load them.
        """
        self._current = self.folder.write(version, weights)
        self.load_again()
        return sum(file.stat().st_size for file in self._current.rglob("*") if file.is_file())

    def load_again(self) -> None:
        """Have the server load the newest weights, which a server that was started anew does not have.

        Raises:
            Unreachable, TrainingError: as `publish`.
        """
        if self._current is None:
            return
        self._birth = birth_of(self.served.server)
        try:
            (self._load_adapter if self.adapter else self._load_weights)(self._current)
        except Refusal as refusal:
            raise TrainingError(
                f"{self.served.server.url}: the vLLM server cannot load the policy's weights from {self._current}: "
                f"{refusal}. Does it see this directory (rollout.weights_dir), and serve the policy's model? Start it "
                "again, because a failed update may leave it without weights"
            ) from refusal

    def load_if_restarted(self) -> None:
        """Have the server load the newest weights if it is another process than the one that has loaded them.

        Raises:
            Unreachable, TrainingError: as `publish`.
        """
        if birth_of(self.served.server) != self._birth:
            log.warning("the vLLM server was started anew; it gets the newest weights")
            self.load_again()

    def _load_weights(self, path: Path) -> None:
        server = self.served.server
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        answer = server.post("/reset_prefix_cache")
        if isinstance(answer, dict) and not answer.get("success", True):
            raise Refusal(200, "its cache of prefixes could not be emptied; does somebody else use this server?")

    def _load_adapter(self, path: Path) -> None:
        """Load an adapter under a name that no other has had, because caches know adapters by name; drop the former."""
        server, name = self.served.server, f"{self.tag}-{path.name}"
        former = [model["id"] for model in served_names(server) if str(model["id"]).startswith(f"{self.tag}-")]
        for there in former:
            server.post("/v1/unload_lora_adapter", {"lora_name": there})
        server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        self.served.name = name
