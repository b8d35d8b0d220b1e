import inspect
import re
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from shiqrun.data.treasure import Treasure
from shiqrun.data.treasure_maps import MOVES, Maps, TreasureEpisode, draw
from shiqrun.errors import InputError
from shiqrun.models.tiny import Tiny

FORMER = {"train": "start r2 c0 goal r3 c1 treasure r1 c2", "val": "start r3 c1 goal r1 c1 treasure r2 c2"}
CONF = Path(__file__).parents[2] / "conf" / "data" / "treasure.yaml"


def treasure(**changes):
    settings = {k: v for k, v in OmegaConf.load(CONF).items() if k in inspect.signature(Treasure).parameters}
    return Treasure(**{**settings, **changes})


def corridor():
    """Start in the corner r0 c0, treasure to the right of it, goal below it: the best play takes both."""
    cells = {"start": [0], "goal": [2], "treasures": [[1]]}
    return Maps(2, 3, 0.1, 1.0, 2.0, **{k: np.array(v) for k, v in cells.items()})


def turns(source, split="train"):
    """(prompt, words said, answers, rewards) of every trajectory."""
    for example in source.load(split):
        for completion, rewards in zip(example.completions, example.rewards, strict=True):
            said = [m["content"] for m in completion if m["role"] == "assistant"]
            answers = [m["content"] for m in completion if m["role"] == "tool"]
            yield example.messages[0]["content"], said, answers, rewards


def test_it_is_a_closed_vocabulary():
    assert treasure().vocabulary is not None


def test_moves_are_the_assistant_tokens_and_text_begins_with_bos():
    source = treasure(maps=5, illegal=0.0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1, "initializer_range": 0.1}
    tokenizer = Tiny(**shape, max_position_embeddings=64, vocab_size=300).tokenizer(source, [])
    example = next(iter(source.load("train")))
    chat = [*example.messages, *example.completions[0]]
    ids = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    words = ["<bos>", *" ".join(m["content"] for m in chat).split()]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == " ".join(words)
    assert tokenizer.convert_ids_to_tokens(ids["input_ids"]) == words
    assert [bool(m) for m in ids["assistant_masks"]] == [word in MOVES for word in words]


def test_every_word_of_the_text_is_in_the_vocabulary():
    source = treasure(maps=200)
    known = set(source.vocabulary)
    for prompt, said, answers, _ in turns(source):
        assert known.issuperset(" ".join([prompt, *said, *answers]).split())


def test_the_same_seed_gives_the_same_trajectories():
    assert list(turns(treasure(maps=50))) == list(turns(treasure(maps=50)))


def test_another_seed_gives_other_maps():
    assert {p for p, *_ in turns(treasure(maps=50))} != {p for p, *_ in turns(treasure(maps=50, data_seed=1))}


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_maps_are_never_training_maps_and_none_repeats(seed):
    source = treasure(data_seed=seed)
    train, val, test = ([e.prompt_id for e in source.load(split)] for split in source.splits)
    assert len(set(train)) == len(train) == 2048
    assert len(set(val)) == len(val) == len(set(test)) == len(test) == 64
    assert len({*train, *val, *test}) == 2048 + 2 * 64


def test_held_out_maps_do_not_depend_on_training_maps_or_play():
    other = treasure(maps=10, play="random", illegal=0.0)
    assert [e.prompt_id for e in treasure().load("val")] == [e.prompt_id for e in other.load("val")]
    assert other.splits == ("train", "val", "test")


def test_maps_of_former_versions_are_the_same():
    """Before there were test maps the first of each split were these."""
    first = {split: next(iter(treasure().load(split))).prompt_id for split in ("train", "val")}
    assert first == FORMER


def test_all_maps_of_a_size_can_be_drawn_once():
    # 2x2, horizon 2: 4 starts, 3 goals, 2 cells left for the treasure.
    source = treasure(size=2, horizon=2, maps=23, val_maps=1)
    prompts = {e.prompt_id for split in source.splits for e in source.load(split)}
    places = [p for p in product(range(4), repeat=3) if len(set(p)) == 3]
    cells = [f"r{i // 2} c{i % 2}" for i in range(4)]
    assert prompts == {f"start {cells[s]} goal {cells[g]} treasure {cells[t]}" for s, g, t in places}


def test_several_treasures_are_different_cells_in_reading_order():
    maps = treasure(treasures=3).maps("train")
    everything = np.concatenate([maps.start[:, None], maps.goal[:, None], maps.treasures], 1)
    assert all(len(set(row)) == 5 for row in everything.tolist())
    assert (np.diff(maps.treasures) > 0).all()


def test_the_goal_is_never_further_than_the_horizon():
    maps = treasure(horizon=2, maps=500).maps("train")
    row, column = abs(maps.start // 4 - maps.goal // 4), abs(maps.start % 4 - maps.goal % 4)
    assert (row + column).max() == 2


def test_trajectories_follow_the_rules():
    """Replayed move by move, with the rules written out once more."""
    way = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}
    source = treasure(maps=300)
    for prompt, said, answers, rewards in turns(source):
        start, goal, item = ((int(row), int(column)) for row, column in re.findall(r"r(\d) c(\d)", prompt))
        place, found, ended, expected, replies = start, False, False, [], []
        for word in said:
            assert not ended
            if word not in way:
                expected, ended = [*expected, 0.0], True
                continue
            place = tuple(min(max(place[i] + way[word][i], 0), 3) for i in (0, 1))
            earned = -0.1 + 1.0 * (place == item and not found) + 2.0 * (place == goal)
            found, ended = found or place == item, place == goal
            expected, replies = [*expected, earned], [*replies, f"r{place[0]} c{place[1]}"]
        assert ended or len(said) == 4
        assert rewards == pytest.approx(expected)
        assert answers == replies[: len(said) - 1]


def test_assistant_and_tool_take_turns_and_the_assistant_ends():
    for example in treasure(maps=50).load("train"):
        for completion in example.completions:
            roles = [m["role"] for m in completion]
            assert roles[0] == roles[-1] == "assistant"
            assert all(a != b for a, b in pairwise(roles))


def test_completions_of_a_map_are_as_many_as_asked():
    examples = list(treasure(maps=20, per_map=6).load("train"))
    assert len(examples) == 20
    assert {len(e.completions) for e in examples} == {6}


def test_best_return_of_a_small_map_is_the_one_by_hand():
    # E takes the treasure (-.1 + 1), W goes back (-.1), S reaches the goal (-.1 + 2).
    first = corridor().tree().best()[0][0, 0]
    assert first[MOVES.index("E")] == pytest.approx(2.7)
    assert first[MOVES.index("S")] == pytest.approx(1.9)
    assert first[MOVES.index("N")] == pytest.approx(-0.1 + 1.9)  # stays; too late for both


def test_good_play_without_exploration_is_the_best_play():
    source = treasure(maps=100, play="good", epsilon=0.0)
    best = [first[0].max() for first in source.tree("train").best()[0]]
    returns = [[sum(r) for r in e.rewards] for e in source.load("train")]
    np.testing.assert_allclose(returns, np.repeat(best, 4).reshape(100, 4))


def test_mixed_play_is_half_good_and_half_random():
    returns = np.array([[sum(r) for r in e.rewards] for e in treasure(illegal=0.0).load("train")])
    good = np.array([[sum(r) for r in e.rewards] for e in treasure(play="good", illegal=0.0).load("train")])
    rand = np.array([[sum(r) for r in e.rewards] for e in treasure(play="random", illegal=0.0).load("train")])
    error = 4 * returns.std() / np.sqrt(returns.size / 2)
    assert abs(returns[:, :2].mean() - good.mean()) < error
    assert abs(returns[:, 2:].mean() - rand.mean()) < error
    assert good.mean() - rand.mean() > 2 * error


def test_share_of_illegal_moves_is_the_setting():
    said = [word for _, words, *_ in turns(treasure(play="random", illegal=0.05)) for word in words]
    share, error = np.mean([word not in MOVES for word in said]), np.sqrt(0.05 * 0.95 / len(said))
    assert abs(share - 0.05) < 4 * error


def test_every_word_that_is_no_move_occurs_as_an_illegal_move():
    source = treasure(play="random", illegal=0.2)
    said = {word for _, words, *_ in turns(source) for word in words}
    assert said == set(source.vocabulary)


def test_without_illegal_moves_only_moves_are_said():
    assert {w for _, words, *_ in turns(treasure(illegal=0.0)) for w in words} == set(MOVES)


def test_last_writes_the_same_return_at_the_last_turn_of_the_same_trajectories():
    by_turn, at_end = (turns(treasure(maps=300, rewards=where)) for where in ("turns", "last"))
    illegal = 0
    for (*played, rewards), (*same, moved) in zip(by_turn, at_end, strict=True):
        assert played == same
        assert moved == pytest.approx([0.0] * (len(rewards) - 1) + [sum(rewards)])
        illegal += len(rewards) > 1 and played[1][-1] not in MOVES
    assert illegal > 0  # an illegal last word, which earns nothing itself, is given the return too


def test_equal_returns_are_equal_numbers_when_written_last():
    returns = {r[-1] for *_, r in turns(treasure(rewards="last"))}
    assert len(returns) == len({round(r, 6) for r in returns})


def test_fillers_enlarge_the_vocabulary_and_nothing_else():
    plain, filled = treasure(illegal=0.0, maps=50), treasure(illegal=0.0, maps=50, fillers=7)
    assert filled.vocabulary == [*plain.vocabulary, *(f"x{i}" for i in range(7))]
    assert list(turns(plain)) == list(turns(filled))


def test_drawing_shows_places_steps_words_and_return():
    shown = draw(corridor(), TreasureEpisode(0, ["E", "W", "S"], [1, 0, 2], [0.9, -0.1, 1.9]))
    plain = shown
    for tag in ("[dim]", "[bold]", "[cyan]", "[yellow]", "[green]", "[/]"):
        plain = plain.replace(tag, "")
    assert plain.splitlines() == ["S2 $1", "G3 · ", "E W S  +2.7"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"size": 2, "treasures": 3}, ["data.treasures=3", "data.size=2", "data.treasures=2"]),
        ({"maps": 4000}, ["data.maps=4000", "3080", "data.per_map"]),
        ({"size": 2, "horizon": 2, "maps": 24, "val_maps": 1}, ["data.maps=24", "24."]),
    ],
)
def test_more_than_there_is_is_refused_with_the_setting_to_change(changes, names):
    with pytest.raises(InputError) as error:
        treasure(**changes)
    assert all(name in str(error.value) for name in names)
