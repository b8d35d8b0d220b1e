"""The data set `scienceworld` holds tasks of school science as text games: boil, grow, measure, mix, wire up, classify.

prompt    what to do, and what the player sees
turn      the policy says an action in words, `open door to kitchen`; the world answers with what comes of it
reward    what the action changes in the task's score: a solved task has 1 in all, one that is lost -1
logged    trajectories by the actions that solve the task, by half of them and then at random, and at random

The variations of a task (which substance, which room) are for training, validation or tests, as ScienceWorld divides
them. A policy is trained on the first, and `data.split` says which of the others it plays.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from shiqrun.data.text_games import Count, Played, Seeds, TextGames
from shiqrun.environments.scienceworld import MAKER
from shiqrun.environments.text_games.environment import GameRules, Rewards
from shiqrun.environments.text_games.java import require_games
from shiqrun.environments.text_games.logged_play import Players

Task = Literal[
    "boil",
    "change-the-state-of-matter-of",
    "chemistry-mix",
    "chemistry-mix-paint-secondary-color",
    "chemistry-mix-paint-tertiary-color",
    "find-animal",
    "find-living-thing",
    "find-non-living-thing",
    "find-plant",
    "freeze",
    "grow-fruit",
    "grow-plant",
    "identify-life-stages-1",
    "identify-life-stages-2",
    "inclined-plane-determine-angle",
    "inclined-plane-friction-named-surfaces",
    "inclined-plane-friction-unnamed-surfaces",
    "lifespan-longest-lived",
    "lifespan-longest-lived-then-shortest-lived",
    "lifespan-shortest-lived",
    "measure-melting-point-known-substance",
    "measure-melting-point-unknown-substance",
    "melt",
    "mendelian-genetics-known-plant",
    "mendelian-genetics-unknown-plant",
    "power-component",
    "power-component-renewable-vs-nonrenewable-energy",
    "test-conductivity",
    "test-conductivity-of-unknown-substances",
    "use-thermometer",
]
Simplification = Literal[
    "easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction"
]


class ScienceWorld(TextGames):
    """A `ScienceWorld` data set yields tasks of school science by their variations, each with logged trajectories.

    Args:
        tasks: kinds of tasks.
        simplifications: of the world, by the names of ScienceWorld; easy is all of them.
        train_variations: variations of each task to train on: their number, or their numbers.
        eval_variations: variations of each task that a policy is evaluated on: their number, or their numbers.
        split: what "val" stands for: the validation variations, or those of the test.
        gold, half, random: logged trajectories of each variation, see `Players`.
        rewards, max_steps, show_valid_actions, step_seconds: see `GameRules`.
        data_seed: of the actions at random.

    Raises:
        InputError: the tasks or Java are not installed, or no trajectory is asked for.
    """

    def __init__(
        self,
        *,
        tasks: Annotated[list[Task], MinLen(1)],
        simplifications: list[Simplification],
        train_variations: Seeds,
        eval_variations: Seeds,
        split: Played,
        gold: Count,
        half: Count,
        random: Count,
        rewards: Rewards,
        max_steps: Annotated[int, Ge(1)],
        show_valid_actions: bool,
        step_seconds: Annotated[float, Gt(0)],
        data_seed: Count,
    ) -> None:
        require_games(MAKER.data, "scienceworld", "scienceworld")
        super().__init__(
            maker=MAKER,
            games={task: dict.fromkeys(simplifications, 1) for task in tasks},
            seeds={"train": ("train_variations", train_variations), "eval": ("eval_variations", eval_variations)},
            split=split,
            players=Players(gold, half, random, data_seed),
            rules=GameRules(rewards, max_steps, show_valid_actions, step_seconds),
            noun="variation",
        )
