"""The engine of `rollout=vllm` samples by a vLLM server when a step needs trajectories, and checks its numbers.

It is the local engine with another worker: what is sampled, stored and leased when is the same.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from shiqrun.errors import TrainingError
from shiqrun.models.adapter import has_adapter
from shiqrun.models.policy import Policy
from shiqrun.rewards.reward import Reward
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.settings import VllmRollouts
from shiqrun.rollout.store.queue import Buffer
from shiqrun.rollout.trajectory import SampledTrajectory
from shiqrun.rollout.vllm.connect import connect
from shiqrun.rollout.vllm.server_process import ServerProcess
from shiqrun.rollout.vllm.start import server_of, start_server, wait_for_server
from shiqrun.rollout.vllm.weights import Publisher, WeightsFolder
from shiqrun.rollout.vllm.worker import ServedWorker
from shiqrun.sampling.gap import EngineScores, Gap, measure_gap
from shiqrun.sampling.prompts import Prompt, padding_id, stop_tokens

WEIGHTS, LOG = "rollout_weights", "rollout_server.log"
"""In the run directory: the folder through which weights travel, and the output of a server that the run starts."""


class VllmEngine(LocalEngine):
    """A vLLM engine samples by a server with the weights that it was sent.

    The first trajectories by new weights are scored by the policy too, before any of them is stored: the gap of both
    scores tells another model, another tokenizer or old weights from rounding.

    Args:
        policy: that is trained.
        tokenizer: of the policy.
        prompts: of the training split.
        reward: scores completions.
        settings: of sampling.
        run_dir: of the run.
        buffer: stores trajectories.
        seed, max_steps: of the run.
        model: directory or Hub id of the model that training starts from; None where it has none.
        tokens: of one forward pass.

    Raises:
        InputError: the server is not there, or cannot sample for this run.
    """

    worker: ServedWorker

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        reward: Reward,
        settings: VllmRollouts,
        *,
        run_dir: Path,
        buffer: Buffer,
        seed: int,
        max_steps: int,
        model: str | None,
        tokens: int,
    ) -> None:
        self.policy, self.tokens, self.max_gap = policy, tokens, settings.max_gap
        self.pad = padding_id(tokenizer)
        self.gaps: list[Gap] = []
        self._measured = -1  # version of the weights whose gap was measured last
        tag = f"shiqrun-{hashlib.blake2b(str(run_dir.absolute()).encode(), digest_size=4).hexdigest()}"
        place = run_dir / WEIGHTS if settings.weights_dir is None else Path(settings.weights_dir) / tag
        self.folder = WeightsFolder(place, policy, settings.weight_dtype)
        self.process: ServerProcess | None = None
        server = server_of(settings)
        try:
            if settings.command is not None:
                model = model or self.folder.save_start(tokenizer)
                self.process = start_server(server, settings, model, run_dir / LOG)
            wait_for_server(server, settings, self.process)
            stop, adapter = stop_tokens(tokenizer, policy.causal_lm), has_adapter(policy.model)
            served = connect(server, settings, tokenizer, prompts, stop=stop, adapter=adapter)
            own, number = (policy, tokenizer, prompts, reward, settings), buffer.counts()["accepted"]
            worker = ServedWorker(Publisher(served, self.folder, tag), self.process, *own, seed=seed, number=number)
        except BaseException:
            self._close_server()
            buffer.close()
            raise
        every, staleness = settings.model_update_interval, settings.max_staleness
        super().__init__(worker, buffer, every=every, max_staleness=staleness, max_steps=max_steps)

    def _sample(self, n: int, step: int) -> list[SampledTrajectory]:
        """Sample n trajectories; measure the gap of the first by new weights, while the policy has the same.

        Raises:
            TrainingError: the gap is too large.
        """
        made = super()._sample(n, step)
        if self.worker.version == step - 1 != self._measured:
            self._measured = step - 1
            said = [EngineScores(t.input_ids, t.start, t.policy_logp) for t in made]
            self._expect_small(measure_gap(self.policy, said, pad=self.pad, tokens=self.tokens))
        return made

    def _expect_small(self, gap: Gap) -> None:
        self.gaps.append(gap)
        if not gap.mean <= self.max_gap:
            raise TrainingError(
                f"the vLLM server's log-probabilities differ from the policy's by {gap.mean:.3g} nats a token, more "
                f"than rollout.max_gap={self.max_gap:g}: it has another model or other weights, or computes more "
                "coarsely. Nothing of this was trained on; look at the server, and go on with resume=RUN_DIR"
            )

    def metrics(self) -> dict[str, float]:
        """Return the gap that was measured last, beside what a local engine logs."""
        found = super().metrics()
        if self.gaps:
            mean, largest, kl = self.gaps[-1]
            found |= {"gap": mean, "gap_max": largest, "gap_kl": kl}
        return found

    def stats(self) -> dict[str, float]:
        """Return what a local engine tells, and the gaps: the mean of all that were measured, and the largest."""
        found = super().stats()
        if self.gaps:
            found |= {
                "gap": sum(g.mean for g in self.gaps) / len(self.gaps),
                "gap_max": max(g.largest for g in self.gaps),
                "gap_kl": sum(g.kl for g in self.gaps) / len(self.gaps),
            }
        return found

    def close(self) -> None:
        """Close the buffer, end the server where this run has started it, and delete the weights' folder."""
        super().close()
        self._close_server()

    def _close_server(self) -> None:
        if self.process is not None:
            self.process.close()
        self.folder.close()
