"""Ranks that read their rows of a pretrained model train what one process does that loads all of it."""

import pytest

from shiqrun.cli import main
from tests.evaluation.runs import make_base, words
from tests.support.command_line import (
    checkpoint,
    finished,
    largest_difference,
    metrics,
    started_anew,
    summary,
    timeless,
)

pytestmark = [pytest.mark.usefixtures("at_home"), pytest.mark.slow]
RANKS = ("hardware=fsdp", "hardware.devices=2", "hardware.accelerator=cpu")
KINDS = {
    "cached": (),
    "frozen": ("algo.reference=frozen",),
    "adapter": ("model.lora_r=4", "algo.reference=adapter"),
    "adapter_and_frozen": ("model.lora_r=4", "algo.reference=frozen"),
    "value_network": ("algo=dro_v", "algo.value=network"),
    "prompt_values": ("algo=spo", "values.samples=2", "values.max_new_tokens=6"),
    "bf16": ("hardware.weights=bf16",),
}


@pytest.fixture(scope="module")
def base(home):
    make_base(home)
    return home


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_read_their_rows_and_give_the_numbers_of_one_process(base, kind):
    more = (*KINDS[kind], "trainer.max_steps=4", "eval.every=2")
    assert main(words(base, f"one_{kind}", *more)) == 0
    code, out = finished(started_anew(*words(base, f"two_{kind}", *more, *RANKS)))
    assert code == 0, out
    one, two = base / f"one_{kind}", base / f"two_{kind}"
    assert "each of 2 processes reads its rows of the weights" in (two / "run.log").read_text()
    assert summary(one)["fingerprint/model"] == summary(two)["fingerprint/model"]
    assert checkpoint(one)["state_dict"].keys() == checkpoint(two)["state_dict"].keys()
    if kind == "bf16":  # the noise of rounding belongs to a rank's rows
        return
    assert largest_difference(one, two) < 3e-5  # of updates of 3e-3, which AdamW makes of gradients near zero, too
    for a, b in zip(timeless(metrics(one)), timeless(metrics(two)), strict=True):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)  # completions in batches of other shapes
