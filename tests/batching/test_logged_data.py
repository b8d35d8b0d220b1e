from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from shiqrun.batching.data_module import LoggedData
from shiqrun.batching.fingerprints import fingerprint
from shiqrun.batching.logged_data import DataSettings, both_splits, examples_of, is_held_out, load
from shiqrun.batching.reward_offsets import offset_center, reward_offsets
from shiqrun.batching.selection import SEEN
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from tests.support.helpers import example, tokenizer


class Listed:
    """A data set in a list."""

    chat_template, parts = None, {}

    def __init__(self, train, val=None, lost=0):
        self.given = {"train": train} | ({} if val is None else {"val": val})
        self.splits = tuple(self.given)
        self.dropped = Counter()
        self.lost = lost

    def load(self, split):
        self.dropped.clear()
        if self.lost:
            self.dropped["odd"] += self.lost
        yield from self.given[split]


def settings(**options):
    return DataSettings(
        **(
            {"limit": None, "max_length": None, "val_fraction": 0.1, "completions": "all", "train_on": "assistant"}
            | options
        )
    )


def prompts(count, rewards=(1.0, 3.0), start=0):
    return [
        example("fine", "bad", prompt=(f"how {n}",), prompt_id=f"id{n}", rewards=rewards, source=f"file:{n}")
        for n in range(start, start + count)
    ]


def read(source, *, context=None, **options):
    return load(source, tokenizer(), settings(**options), context=context)


def ids(rows):
    return [t.prompt_id for t in rows.trajectories]


def test_held_out_share_is_near_the_fraction_and_grows_with_it():
    names = [f"prompt {n}" for n in range(4000)]
    tenth = {n for n in names if is_held_out(n, 0.1)}
    assert 320 < len(tenth) < 480  # four standard deviations around 400
    assert tenth < {n for n in names if is_held_out(n, 0.3)}
    assert not any(is_held_out(n, 0.0) for n in names)


def test_a_prompt_keeps_its_side_whatever_else_is_in_the_file():
    whole = set(ids(read(Listed(prompts(60))).val))
    part = set(ids(read(Listed(prompts(60)[::2])).val))
    assert part
    assert part == whole & {f"id{n}" for n in range(0, 60, 2)}


def test_splits_share_no_prompt_and_keep_groups_together():
    encoded = read(Listed(prompts(60)), val_fraction=0.3)
    train, val = ids(encoded.train), ids(encoded.val)
    assert not set(train) & set(val)
    assert set(Counter(train).values()) == set(Counter(val).values()) == {2}
    assert len(set(train) | set(val)) == 60


def test_a_data_set_with_its_own_validation_split_holds_nothing_out():
    encoded = read(Listed(prompts(20), val=prompts(3, start=50)))
    assert (len(encoded.train), len(encoded.val)) == (40, 6)


def test_a_validation_prompt_that_is_trained_on_is_left_out_and_counted():
    encoded = read(Listed(prompts(20), val=prompts(5, start=17)))
    assert set(ids(encoded.val)) == {"id20", "id21"}
    assert encoded.dropped == {SEEN: 6}  # three prompts of two completions


def test_prompts_are_told_apart_by_their_messages_not_by_their_ids():
    names = [f"{n}" for n in range(60)]
    same = [example("fine", prompt=("always",), prompt_id=name) for name in names]
    encoded = read(Listed(same), val_fraction=0.3)
    assert len(encoded.val) == 0
    assert encoded.dropped == {SEEN: sum(is_held_out(name, 0.3) for name in names)}
    assert encoded.prompts == {prompt_name(same[0].messages)}


def test_the_names_of_the_training_prompts_are_those_of_all_rows_also_of_dropped_ones():
    """So that every method and reward model of one data set leaves out the same prompts."""
    given = [*prompts(3), example("fine " * 50, prompt=("too long",), prompt_id="x"), example("", prompt=("empty",))]
    encoded = read(Listed(given, val=[example("fine", prompt=("too long",))]), max_length=30)
    assert encoded.prompts == {prompt_name(e.messages) for e in given}
    assert len(encoded.val) == 0
    assert encoded.dropped[SEEN] == 1


def test_a_prompt_left_alone_where_completions_are_compared_is_known_as_one_of_training():
    given = [*prompts(3), example("fine", prompt=("lonely",), prompt_id="x")]
    encoded = load(Listed(given), tokenizer(), settings(val_fraction=0.0), context=None, compared_by="dpo")
    assert len(encoded.train) == 6
    assert encoded.prompts == {prompt_name(e.messages) for e in given}


@pytest.mark.parametrize("options", [{}, {"limit": 4}, {"completions": "best"}, {"val_fraction": 0.0}])
def test_both_splits_are_those_that_are_trained_on_and_held_out_in_the_order_of_the_file(options):
    source, asked = Listed(prompts(60), lost=2), settings(**({"val_fraction": 0.3} | options))
    dropped = Counter()
    given = list(both_splits(source, asked, dropped))
    for split in ("train", "val"):
        assert [e for s, e in given if s == split] == list(examples_of(source, split, asked))
    order = [int(e.prompt_id.removeprefix("id")) for _, e in given]
    assert order == sorted(order)
    assert dropped == {"odd": 2}


def test_both_splits_read_no_further_than_the_limit():
    def endless():
        yield from prompts(4)
        raise AssertionError("read on")

    given = list(both_splits(Listed(endless()), settings(limit=3, val_fraction=0.0), Counter()))
    assert [e.prompt_id for _, e in given] == ["id0", "id1", "id2"]


def test_both_splits_of_a_data_set_with_its_own_validation_split():
    source, dropped = Listed(prompts(3), val=prompts(2, start=50), lost=2), Counter()
    given = [(split, e.prompt_id) for split, e in both_splits(source, settings(limit=2), dropped)]
    assert given == [("train", "id0"), ("train", "id1"), ("val", "id50"), ("val", "id51")]
    assert dropped == {"odd": 4}


def test_limit_bounds_the_examples_read_and_the_held_out_share_keeps_its_meaning():
    held, first = Listed(prompts(60)), settings(limit=40, val_fraction=0.3)
    train, val = ([e.prompt_id for e in examples_of(held, split, first)] for split in ("train", "val"))
    assert {*train, *val} == {f"id{n}" for n in range(40)}
    assert val == [f"id{n}" for n in range(40) if is_held_out(f"id{n}", 0.3)]
    encoded = read(held, limit=40, val_fraction=0.3)
    assert len(encoded.train) + len(encoded.val) == 80  # two completions each


def test_limit_bounds_each_split_of_a_data_set_that_has_both():
    source = Listed(prompts(60), val=prompts(30))
    assert [len(list(examples_of(source, split, settings(limit=7)))) for split in ("train", "val")] == [7, 7]


def test_what_the_loader_dropped_and_what_encoding_dropped_are_counted_once():
    given = [*prompts(20), example("", prompt_id="x"), example("fine " * 50, prompt_id="y")]
    encoded = read(Listed(given, lost=3), val_fraction=0.3, max_length=30)
    assert encoded.dropped == {"odd": 3, "empty completion": 1, "longer than max_length (30 tokens)": 1}


def test_what_the_loader_dropped_of_its_own_validation_split_is_counted_too():
    assert read(Listed(prompts(4), val=prompts(2, start=50), lost=3)).dropped == {"odd": 6}


def test_a_data_set_of_which_nothing_is_left_is_an_error_with_counts():
    given = [example("fine", prompt_id=f"{n}") for n in range(20)] + [example(" ", prompt_id="0")]
    with pytest.raises(InputError, match=r"no training trajectory is left: 20 longer .*\(3 tokens\).*, 1 empty comp"):
        read(Listed(given), max_length=3, val_fraction=0.0)
    with pytest.raises(InputError, match="the data set is empty"):
        read(Listed([]))
    with pytest.raises(InputError, match="all 2 are held out for validation"):
        read(Listed([e for e in prompts(60) if is_held_out(e.prompt_id, 0.1)][:1]))


def test_the_models_context_is_the_default_of_max_length():
    given = [example("fine", prompt_id="a"), example("fine " * 50, prompt_id="b")]
    assert len(read(Listed(given), val_fraction=0.0).train) == 2
    encoded = read(Listed(given), val_fraction=0.0, context=30)
    assert encoded.dropped == {"longer than max_length (30 tokens)": 1}


def test_max_length_above_the_context_is_an_error():
    with pytest.raises(InputError, match=r"data.max_length=65 .* context of 64"):
        read(Listed(prompts(3)), max_length=65, context=64)
    assert read(Listed(prompts(3)), max_length=64, context=64)


def test_a_tokenizer_without_pad_token_pads_with_what_masks_hide():
    made = tokenizer(pad=None)
    encoded = load(Listed(prompts(30)), made, settings(), context=None)
    batch = encoded.train.collate([0, 1])
    assert encoded.train.pad == made.eos_token_id
    assert batch.input_ids[~batch.attention_mask].eq(made.eos_token_id).all()
    assert (batch.input_ids[batch.attention_mask] == made.eos_token_id).sum() == 2


def test_fingerprint_changes_with_any_token_reward_or_group():
    def print_of(given):
        return read(Listed(given), val_fraction=0.0).fingerprint

    base = print_of(prompts(3))
    assert print_of(prompts(3)) == base
    regrouped = [
        example(said, prompt=(f"how {n}",), prompt_id=f"{n}{said}", rewards=(reward,))
        for n in range(3)
        for said, reward in (("fine", 1.0), ("bad", 3.0))
    ]
    assert len({base, print_of(prompts(3, rewards=(1.0, 2.0))), print_of(prompts(2)), print_of(regrouped)}) == 4
    encoded = read(Listed(prompts(3)), val_fraction=0.0)
    assert fingerprint(encoded.train, encoded.val) == base


def test_offset_none_takes_nothing():
    rows = read(Listed(prompts(30))).train
    assert offset_center(rows, "none") == 0
    assert not reward_offsets(rows, "none", 0.0).any()


def test_offset_mean_is_the_training_splits_mean_return_in_both_splits():
    train, val = prompts(4, rewards=(1.0, 4.0)), prompts(2, rewards=(10.0, 20.0), start=50)
    encoded = read(Listed(train, val=val))
    assert offset_center(encoded.train, "mean") == 2.5
    assert reward_offsets(encoded.train, "mean", 2.5).tolist() == [2.5] * 8
    assert reward_offsets(encoded.val, "mean", 2.5).tolist() == [2.5] * 4


def test_offset_group_mean_is_the_mean_over_the_prompts_completions():
    given = [*prompts(2), example("a", "b", "c", prompt_id="z", rewards=(0.0, 0.0, 9.0))]
    encoded = read(Listed(given, val=prompts(1, rewards=(5.0, 7.0), start=50)))
    assert offset_center(encoded.train, "group_mean") == 0
    taken = reward_offsets(encoded.train, "group_mean", 0.0)
    assert taken.tolist() == [2, 2, 2, 2, 3, 3, 3]  # of all seven: 17 / 7
    assert reward_offsets(encoded.val, "group_mean", 0.0).tolist() == [6, 6]
    batch = encoded.train.with_column("offset", taken).collate([4, 5, 6])
    assert batch.rewards.sum(-1).tolist() == [-3, -3, 6]


def test_offset_number_is_itself():
    rows = read(Listed(prompts(4), val=prompts(2, start=50))).train
    assert offset_center(rows, -1.5) == -1.5
    assert set(reward_offsets(rows, -1.5, -1.5)) == {np.float32(-1.5)}


def test_sources_name_the_rows_of_a_micro_batch():
    encoded = read(Listed(prompts(30)))
    data = LoggedData(encoded, batch_size=4, micro_batch_tokens=10**6, seed=0)
    loader = iter(data.train_dataloader())
    for step in range(3):
        (batch,) = next(loader)
        named = data.sources(step, 0)
        by_source = {t.source: t for t in encoded.train.trajectories}
        assert len(named) == len(batch.input_ids)
        for name, line, mask in zip(named, batch.input_ids, batch.attention_mask, strict=True):
            prompt = by_source[name].prompt_id.removeprefix("id")
            assert f"how {prompt}\n" in tokenizer().decode(line[mask])


# ------------------------------------------------------------------ data.completions=best
def best(*examples):
    given = list(examples_of(Listed(examples), "train", settings(completions="best", val_fraction=0.0)))
    return [([c[0]["content"] for c in e.completions], e.rewards) for e in given]


def test_of_each_example_the_completion_with_the_largest_return_is_taken():
    scored = example("a", "b", "c", rewards=[1.0, 5.0, 2.0])
    by_token = example("a", "b", rewards=[[9.0, -9.0], [0.5, 0.25]])
    alone = example("a", rewards=[-3.0])
    assert best(scored, by_token, alone) == [(["b"], [5.0]), (["b"], [[0.5, 0.25]]), (["a"], [-3.0])]


def test_of_equal_returns_the_first_completion_is_taken():
    assert best(example("a", "b", "c", rewards=[1.0, 2.0, 2.0])) == [(["b"], [2.0])]


def test_everything_else_of_the_example_stays():
    given = example("a", "b", rewards=[1.0, 2.0], prompt_id="p7", source="file:9")
    (made,) = examples_of(Listed([given]), "train", settings(completions="best", val_fraction=0.0))
    assert (made.messages, made.prompt_id, made.source, made.answer) == (given.messages, "p7", "file:9", None)
    assert given.completions[0][0]["content"] == "a", "the example itself is not changed"


def test_the_best_of_completions_without_rewards_is_refused_with_its_row():
    with pytest.raises(InputError, match=r"file:9: no rewards to choose by; data.completions=best needs them"):
        best(example("a", "b", source="file:9"))


def test_an_example_without_completions_has_no_best_and_gives_no_row():
    unsolved = [example(prompt_id="hard", rewards=rewards) for rewards in (None, [])]
    assert best(*unsolved) == [([], None), ([], [])]
    assert len(read(Listed([*unsolved, *prompts(2)]), completions="best", val_fraction=0.0).train) == 2


def test_the_best_halves_the_trajectories_of_pairs():
    every, some = (read(Listed(prompts(8)), completions=c, val_fraction=0.0) for c in ("all", "best"))
    assert (len(every.train), len(some.train)) == (16, 8)
    assert set(some.train.returns) == {3.0}


def test_of_equal_completions_the_first_is_kept_and_the_others_are_counted():
    def once(*said, name, rewards):
        return example(*said, prompt=("how",), prompt_id=name, rewards=rewards, source=name)

    given = [once("fine", "bad", "fine", name="a", rewards=(1.0, 2.0, 3.0)), once("fine", name="a", rewards=(4.0,))]
    given += prompts(1)
    every = read(Listed(given), val_fraction=0)
    kept = read(Listed(given), val_fraction=0, distinct=True)
    assert len(every.train) == 6
    assert [float(r) for r in kept.train.returns] == [1.0, 2.0, 1.0, 3.0]
    assert kept.dropped["the same as another completion of its prompt"] == 2
    assert not every.dropped


def test_equal_answers_to_other_prompts_and_in_other_pairs_are_not_the_same():
    pairs = [replace(e, alone=True) for e in (prompts(1) + prompts(1))]
    assert len(read(Listed(pairs), val_fraction=0, distinct=True).train) == 4
    assert len(read(Listed(prompts(3)), val_fraction=0, distinct=True).train) == 6
