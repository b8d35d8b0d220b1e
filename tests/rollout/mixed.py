"""A run of made-up prompts whose steps come from several sources, without the training."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np

from shiqrun.batching.logged_data import EncodedData
from shiqrun.batching.reward_offsets import offset_center
from shiqrun.batching.rows import Rows
from shiqrun.rollout.local import LocalEngine
from shiqrun.rollout.mixing import OnlineData
from shiqrun.rollout.other_sources import annotated_rows
from shiqrun.rollout.several_ranks import TogetherEngine
from shiqrun.rollout.store.queue import Buffer
from shiqrun.training.annotate import RunFacts, annotate
from shiqrun.training.online import annotate_sampled
from shiqrun.util import ranks
from tests.rollout.sampled import TOKENIZER, policy, prompts, settings, weights, worker
from tests.support.helpers import encoded, example

BATCH, STEPS, EVERY = 12, 25, 10
EACH = [weights(policy(seed)) for seed in (0, 1, 2)]
VALUES = {f"p{n}": -n / 10 for n in range(1, 8)}


def logged(offset=0, *, together=False, letter="a", source="logged"):
    """Three completions of each of the seven prompts, with rewards that name the row."""
    asked = [
        example(
            *[f"{letter} {n} {k} fine" for k in range(3)],
            prompt=["a" * n + "?"],
            prompt_id=f"p{n}",
            rewards=[float(offset - 10 * n - k) for k in range(3)],
            source=f"{letter}:{n}",
        )
        for n in range(1, 8)
    ]
    made, _ = encoded(TOKENIZER, *asked)
    rows = Rows(made, pad=TOKENIZER.pad_token_id, together=together, source=source)
    return rows.with_column("prompt_value", np.array([VALUES[t.prompt_id] for t in made], np.float32))


def facts(rows, offset="none", anchor=None, packed=False):
    """What a run of these logged rows knows of any trajectory."""
    return RunFacts(
        packed=packed,
        device="cpu",
        anchor=anchor,
        reward_offset=offset,
        center=offset_center(rows, offset),
        beta=0.5,
        prompt_values=VALUES,
    )


class Training:
    """`OnlineData` over a real engine, and what a training loop does around it."""

    def __init__(
        self, directory, *, after=0, together=False, tokens=400, packed=False, even=False, reward=None, **options
    ):
        offset, anchor = options.pop("offset", "none"), options.pop("anchor", None)
        options = {"samples_per_prompt": 2} | options
        self.settings = settings(**options)
        buffer = Buffer(directory, after=after) if ranks.rank() == 0 else None
        number = ranks.broadcast_object(buffer.counts()["accepted"] if buffer else 0)
        acting = worker(asked=prompts(), number=number, reward=reward, **options)
        kept = {"max_staleness": self.settings.max_staleness, "max_steps": STEPS}
        self.local = LocalEngine(acting, buffer, every=EVERY, **kept) if buffer else None
        self.engine = self.local if ranks.world() == 1 else TogetherEngine(acting, self.local)
        self.facts = facts(logged(), offset, anchor, packed)
        train = annotate(logged(together=together), self.facts)
        if self.settings.sources.get("annotated"):
            targets = [np.full(n, np.nan, np.float32) for n in train.actions]
            for row in range(1, len(train), 2):
                targets[row][0] = -row
            train = train.with_column("value_target", targets)
        others = {"further": annotate(logged(1000, together=together, letter="b", source="further"), self.facts)}
        if self.settings.sources.get("annotated"):
            others["annotated"] = annotated_rows(train)
        self.train, both = train, EncodedData(train, logged(together=together, source="val"), Counter(), "x")
        plan = SimpleNamespace(link=None, top=0.0)
        self.data = OnlineData(
            both,
            engine=self.engine,
            settings=self.settings,
            others=others,
            annotate=partial(annotate_sampled, plan=plan, facts=self.facts),
            together=together,
            batch_size=BATCH,
            micro_batch_tokens=tokens,
            seed=5,
            max_steps=STEPS,
            even=even,
        )
        self.data.train_dataloader()
        self.after = after
        self.engine.publish(after // EVERY * EVERY, EACH[after // EVERY])

    def steps(self, last=STEPS):
        """(step from 0, its micro-batches, the names of their rows)."""
        for step in range(self.after, last):
            batches = self.data.batches_of(step)
            yield step, batches, [self.data.sources(step, k) for k in range(len(batches))]
            self.data.finish_step(step + 1)
            if (step + 1) % EVERY == 0:
                self.engine.publish(step + 1, EACH[(step + 1) // EVERY])

    def known(self):
        """All trajectories by uid."""
        return {t.uid: t for t in self.local.buffer._shards.read(lambda uid: True)}
