from collections import Counter

import pytest
import torch

from shiqrun.batching.encode import encode
from shiqrun.data.treasure import Treasure
from shiqrun.models.tiny import Tiny
from tests.support.helpers import CORPUS, assistant, example, tool

TEXTS = ["hello there, how are you?", "a\n\n  b\t“quoted” naïve 東京 😀", " spaces  around ", "fine, thank you"]


class Words:
    """A data set without a vocabulary of its own."""

    splits = ("train",)
    vocabulary = chat_template = None

    def __init__(self, texts):
        self.dropped = Counter()
        self.texts = texts

    def load(self, split):
        yield from (example([assistant(t), tool(t), assistant(t)], prompt=(t,), rewards=[1.0]) for t in self.texts)


def tiny(**options):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2}
    rest = {"max_position_embeddings": 64, "initializer_range": 0.1, "vocab_size": 300}
    return Tiny(**(sizes | rest | options))


def treasure(**options):
    size = {"size": 3, "horizon": 3, "treasures": 1, "maps": 4, "val_maps": 2, "per_map": 2}
    pay = {"step_cost": 0.1, "treasure_reward": 1.0, "goal_reward": 2.0, "rewards": "turns"}
    play = {"play": "mixed", "epsilon": 0.2, "illegal": 0.05, "fillers": 3, "data_seed": 0}
    return Treasure(**(size | pay | play | options))


def trained_on(texts, **options):
    source = Words(texts)
    return tiny(**options).tokenizer(source, source.load("train"))


def test_every_word_of_treasure_is_one_token_and_nothing_else_is():
    source = treasure()
    made = tiny().tokenizer(source, [])
    assert len(made) == len(source.vocabulary)
    assert [made.encode(word) for word in source.vocabulary] == [[i] for i in range(len(source.vocabulary))]
    assert (made.pad_token, made.bos_token, made.eos_token) == ("<pad>", "<bos>", "<eos>")


def test_actions_of_treasure_are_its_moves():
    source = treasure()
    made = tiny().tokenizer(source, [])
    given = list(source.load("train"))
    dropped = Counter()
    for t in encode(given, made, dropped, max_length=None):
        said = [m["content"] for m in given[t.example].completions[t.completion] if m["role"] == "assistant"]
        assert made.convert_ids_to_tokens(t.input_ids[t.action_index].tolist()) == said
        assert t.rewards.tolist() == pytest.approx(given[t.example].rewards[t.completion])
    assert not dropped


def test_byte_pairs_of_the_training_text_round_trip_any_text():
    made = trained_on(CORPUS)
    for text in [*TEXTS, *CORPUS]:
        assert made.decode(made.encode(text)) == text
    assert len(made) <= 300


def test_byte_pairs_come_from_the_training_text():
    text = "zebra zebra zebra"
    assert len(trained_on([text]).encode(text)) < len(trained_on(["fine " * 9]).encode(text))


def test_text_gets_the_plain_template_and_its_end_is_learned():
    made = trained_on(CORPUS)
    (trajectory,) = encode([example("fine")], made, Counter(), max_length=None)
    assert made.decode(trajectory.input_ids[trajectory.action_index]) == " fine<eos>"


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    made = trained_on(CORPUS)
    one, again, other = (tiny().build(made, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_building_leaves_the_global_random_state_alone():
    made = trained_on(CORPUS)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    tiny().build(made, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_has_a_logit_a_token_and_the_sizes_asked_for():
    made = trained_on(CORPUS)
    built = tiny(num_layers=3, initializer_range=0.3).build(made, 0)
    assert built.get_output_embeddings().weight.shape == (len(made), 16)
    assert len(built.model.layers) == 3
    assert built.get_output_embeddings().weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert built.dtype == torch.float32
    assert built.config.eos_token_id == made.eos_token_id
    assert tiny().context() == 64
