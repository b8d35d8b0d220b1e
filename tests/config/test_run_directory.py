"""What a run directory holds for a later command: configs of this version, and of versions before it."""

from omegaconf import OmegaConf

from shiqrun.config.run_directory import holds_unfinished, load

FORMER = {
    "trainer": {"learning_rate": None},
    "eval": {"max_prompts": None},
    "values": {"samples": 800, "max_new_tokens": 128},
    "seed": 1,
}
"""Of `shiqrun values` at commit 322129b, shortened."""


def saved(folder, values):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(values), folder / ".hydra/config.yaml")


def test_nodes_that_had_no_effect_in_a_former_version_are_dropped(tmp_path):
    saved(tmp_path, FORMER)
    assert load(tmp_path) == {"values": {"samples": 800, "max_new_tokens": 128}, "seed": 1}


def test_nodes_of_the_same_name_that_have_an_effect_stay(tmp_path):
    values = {"trainer": {"learning_rate": 0.1, "max_steps": 3}, "eval": {"max_prompts": 3, "every": 1}}
    saved(tmp_path, values)
    assert load(tmp_path) == values


def test_a_run_of_a_former_version_is_the_same_run(tmp_path):
    saved(tmp_path, FORMER)
    assert holds_unfinished(tmp_path, OmegaConf.create({key: FORMER[key] for key in ("values", "seed")}))
