"""What a message says to a text game, and a fixed walk through rooms; no game is installed for these."""

from collections.abc import Sequence

import pytest

from shiqrun.environments.text_games.environment import as_action
from shiqrun.environments.text_games.states import GameState
from shiqrun.environments.textworld_express.walk import FixedWalk, SolvedGame, solution

HERE = GameState("", ["move north", "take Knife"], 0.0, won=False, lost=False)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("move north", "move north"),
        ("  Move \t NORTH.\n", "move north"),
        ("\n\n---\ntake knife\nthen run", "take Knife"),
        ("sing loudly", "sing loudly"),
        ("", ""),
        (" \n\t", ""),
        ("?!...", ""),
        ("\ud800\udfff", ""),
        ("\ud800 move north", "move north"),
    ],
)
def test_an_action_is_the_first_line_with_words(text, action):
    assert as_action(text, HERE) == action


def test_a_very_long_message_is_cut():
    assert len(as_action("x" * 10**6, HERE)) == 500


WAYS = {"hall": {"north": "closet", "east": "cellar"}, "closet": {"south": "hall"}, "cellar": {"west": "hall"}}


class Rooms(SolvedGame):
    """A hall with gold, a dead end in the north, and behind a door in the east a cellar with a chest."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.room, self.door, self.lid, self.gold = "hall", False, False, "hall"
        self.state = self.look()

    def look(self):
        valid = [f"move {way}" for way in WAYS[self.room]]
        if self.room != "closet":
            valid.append(f"open door to {'east' if self.room == 'hall' else 'west'}")
        if self.room == "cellar":
            valid.append("open chest")
        if self.gold == self.room:
            valid.append("take gold")
        if self.gold == "hand" and self.room == "cellar" and self.lid:
            valid.append("put gold in chest")
        won = self.gold == "chest"
        return GameState(f"You are in the {self.room}.", sorted(valid), float(won), won, lost=False)

    def step(self, action: str) -> GameState:
        assert action in self.state.actions
        match action.split():
            case ["move", way] if WAYS[self.room][way] != "cellar" or self.door:
                self.room = WAYS[self.room][way]
            case ["open", "door", *_]:
                self.door = True
            case ["open", _]:
                self.lid = True
            case ["take", _]:
                self.gold = "hand"
            case ["put", *_]:
                self.gold = "chest"
        self.state = self.look()
        return self.state

    def own_solution(self) -> list[str]:
        self.begin()
        return [
            "move north",
            "move south",
            "take gold",
            "open door to east",
            "move east",
            "open chest",
            "put gold in chest",
        ]


SHORT = ["take gold", "move north", "move south", "open door to east", "move east", "open chest", "put gold in chest"]


def test_a_fixed_walk_does_every_deed_where_it_can_be_done_and_opens_doors():
    assert FixedWalk(Rooms(), {"take gold", "open chest", "put gold in chest"}).actions() == SHORT
    assert solution("coin", Rooms()) == SHORT, "its deeds, not its walk"
    assert solution("cookingworld", Rooms()) == Rooms().own_solution(), "this game does not wander"


def test_a_walk_that_cannot_succeed_ends():
    taken: Sequence[str] = FixedWalk(Rooms(), {"take gold"}).actions()
    assert 400 <= len(taken) <= 403
