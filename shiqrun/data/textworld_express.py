"""The data set `textworld_express` holds text games with a reward for every action: cook, sort, search, compute.

prompt    what to do, and what the player sees
turn      the policy says an action in words, `take knife`; the game answers with what comes of it
reward    what the action changes in the score of the game: a won game has 1 in all, a lost one -1
logged    trajectories by the actions that solve the game, by half of them and then at random, and at random

Training, validation and test games have seeds of their own, as TextWorldExpress divides them. A policy is trained on
the first, and `data.split` says which of the others it plays.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from shiqrun.data.drops import drop
from shiqrun.data.source import Source
from shiqrun.environments.textworld_express.environment import GameEnvironment, GameRules, Rewards
from shiqrun.environments.textworld_express.harness import GameName, GameServer, GameSession, GameStopped
from shiqrun.environments.textworld_express.java import require_games
from shiqrun.environments.textworld_express.logged_play import LoggedGame, Players, play_logged
from shiqrun.errors import InputError
from shiqrun.types import Example

Kind = Literal["cookingworld", "twc", "coin", "mapreader", "arithmetic", "sorting", "simonsays", "peckingorder"]
Count = Annotated[int, Ge(0)]
Seeds = Annotated[int, Ge(1)] | Annotated[list[Count], MinLen(1)]
"""A number of seeds, the first of the fold, or the seeds themselves."""


class TextWorldExpress(Source):
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
        split: Literal["val", "test"],
        gold: Count,
        half: Count,
        random: Count,
        rewards: Rewards,
        max_steps: Annotated[int, Ge(1)],
        show_valid_actions: bool,
        step_seconds: Annotated[float, Gt(0)],
        data_seed: Count,
    ) -> None:
        require_games()
        if not gold + half + random:
            raise InputError("data.gold, data.half and data.random are all 0: no trajectory would be logged; raise one")
        self.splits: tuple[str, ...] = ("train", "val", "test") if split == "val" else ("train", "val")
        self.games, self.params, self.split = list(dict.fromkeys(games)), params, split
        self.rules = GameRules(rewards, max_steps, show_valid_actions, step_seconds)
        self.players = Players(gold, half, random, data_seed)
        self._seeds = {"train_seeds": train_seeds, "eval_seeds": eval_seeds}
        self._logged: dict[GameName, LoggedGame] = {}

    def environment(self) -> GameEnvironment:
        """Return the environment that plays the games of `split`."""
        return GameEnvironment(self.rules, self.players.seed)

    def load(self, split: str) -> Iterator[Example]:
        """Yield one example per game; "val" stands for the games that `data.split` names.

        Raises:
            InputError: a seed is not of its fold, or a size is unknown to the games.
        """
        self.dropped.clear()
        with GameServer(self.rules.step_seconds) as server:
            for name in self._names(split, server):
                if name not in self._logged:
                    self._logged[name] = play_logged(server, name, self.rules, self.players)
                logged = self._logged[name]
                for why, detail in logged.stopped:
                    drop(self.dropped, why, str(name), detail)
                if logged.played:
                    yield self._example(name, logged)

    def tasks(self, split: str) -> Iterator[Example]:
        """Yield the games of a split, without trajectories; "val" stands for those that `data.split` names.

        Raises:
            InputError: a seed is not of its fold, or a size is unknown to the games.
        """
        with GameServer(self.rules.step_seconds) as server:
            for name in self._names(split, server):
                try:
                    opening = self.rules.opening(GameSession(server, name))
                except GameStopped as stopped:  # said again, and counted, when it is played
                    opening = [{"role": "user", "content": f"The game {name} cannot be begun: {stopped}."}]
                yield Example(opening, [], None, prompt_id=str(name), answer=name.facts(), source=_place(name))

    def expect_training(self) -> None:
        """Check that a run is evaluated on validation games while it trains."""
        if self.split != "val":
            raise InputError(
                f"data.split={self.split}: a run is evaluated on the validation games while it trains; leave it out, "
                f"and ask `shiqrun eval run=RUN_DIR data.split={self.split}` afterwards"
            )

    def about(self) -> dict[str, Any]:
        """Return the entries of `eval.json` that say which games a policy was evaluated on."""
        return {"data/split": self.split, "data/games": ", ".join(self.games)}

    def _names(self, split: str, server: GameServer) -> list[GameName]:
        """Return the games of a split, one of each kind after the other, so that `data.limit` takes of each."""
        key, fold = "train_seeds" if split == "train" else "eval_seeds", self.split if split == "val" else split
        seeds = {game: self._chosen(game, key, fold, server) for game in self.games}
        most = max(map(len, seeds.values()))
        rounds = [[(game, own[n]) for game, own in seeds.items() if n < len(own)] for n in range(most)]
        return [GameName(game, seed, fold, self.params.get(game, {})) for one in rounds for game, seed in one]

    def _chosen(self, game: str, key: str, fold: str, server: GameServer) -> Sequence[int]:
        """Return the seeds of a kind of game that a key names.

        Raises:
            InputError: there are not so many, or one is of another fold.
        """
        known = server.seeds(game, self.params.get(game, {}))
        own, asked = known[fold], self._seeds[key]
        if isinstance(asked, int):
            if asked > len(own):
                raise InputError(f"data.{key}={asked}: {game} has {len(own)} {fold} seeds")
            return own[:asked]
        for seed in asked:
            if seed not in own:
                others = [name for name, seeds in known.items() if seed in seeds]
                where = f"a {others[0]} seed" if others else "no seed"
                raise InputError(
                    f"data.{key}: {seed} is {where} of {game}; its {fold} seeds are {min(own)} to {max(own)}"
                )
        return list(dict.fromkeys(asked))

    def _example(self, name: GameName, logged: LoggedGame) -> Example:
        return Example(
            messages=logged.opening,
            completions=[messages for messages, _ in logged.played],
            rewards=[self.rules.paid(rewards) for _, rewards in logged.played],
            prompt_id=str(name),
            answer=name.facts(),
            source=_place(name),
        )


def _place(name: GameName) -> str:
    """Return where an example came from, for error messages."""
    return f"textworld_express:{name.fold}:{name}"
