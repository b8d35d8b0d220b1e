"""The data set `textworld_express` holds text games with a reward for every action: cook, sort, search, compute.

prompt    what to do, and what the player sees
turn      the policy says an action in words, `take knife`; the game answers with what comes of it
reward    what the action changes in the score of the game: a won game has 1 in all, a lost one -1
logged    trajectories by the actions that solve the game, by half of them and then at random, and at random

Training, validation and test games have seeds of their own, as TextWorldExpress divides them. A policy is trained on
the first, and `data.split` says which of the others it plays.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from shiqrun.data.text_games import Count, Played, Seeds, TextGames
from shiqrun.environments.text_games.environment import GameRules, Rewards
from shiqrun.environments.text_games.java import require_games
from shiqrun.environments.text_games.logged_play import Players
from shiqrun.environments.textworld_express import MAKER

Kind = Literal["cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder"]


class TextWorldExpress(TextGames):
    """A `TextWorldExpress` data set yields text games by their seeds, each with logged trajectories.

    Args:
        games: kinds of games.
        params: size of each kind, by the names of TextWorldExpress; a kind left out has its default size.
        train_seeds: games of each kind to train on: their number, or their seeds.
        eval_seeds: games of each kind that a policy is evaluated on: their number, or their seeds.
        split: what "val" stands for: the validation games, or the test games.
        gold, half, random: logged trajectories of each game, see `Players`.
        rewards, max_steps, show_valid_actions, step_seconds: see `GameRules`.
        data_seed: of the actions at random.

    Raises:
        InputError: the games or Java are not installed, or no trajectory is asked for.
    """

    def __init__(
        self,
        *,
        games: Annotated[list[Kind], MinLen(1)],
        params: dict[str, dict[str, int]],
        train_seeds: Seeds,
        eval_seeds: Seeds,
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
        require_games(MAKER.data, "textworld_express", "textworld-express")
        super().__init__(
            maker=MAKER,
            games={game: params.get(game, {}) for game in games},
            seeds={"train": ("train_seeds", train_seeds), "eval": ("eval_seeds", eval_seeds)},
            split=split,
            players=Players(gold, half, random, data_seed),
            rules=GameRules(rewards, max_steps, show_valid_actions, step_seconds),
        )
