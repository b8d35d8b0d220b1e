"""`TextGames` is the base of data sets of text games: logged trajectories and tasks by the seeds of games."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from shiqrun.data.drops import drop
from shiqrun.data.source import Source
from shiqrun.environments.text_games.environment import GameEnvironment, GameRules
from shiqrun.environments.text_games.harness import GameMaker, GameName, GameServer, GameSession, GameStopped
from shiqrun.environments.text_games.logged_play import LoggedGame, Players, play_logged
from shiqrun.errors import InputError
from shiqrun.types import Example

Count = Annotated[int, Ge(0)]
Seeds = Annotated[int, Ge(1)] | Annotated[list[Count], MinLen(1)]
"""A number of seeds, the first of the fold, or the seeds themselves."""
Played = Literal["val", "test"]


class TextGames(Source):
    """A `TextGames` data set yields text games by their seeds, each with logged trajectories.

    Args:
        maker: whose games are played.
        games: kinds of games, with the parameters of each.
        seeds: of "train" and "eval" the setting that names the seeds of a kind, and the number of seeds or the seeds.
        split: what "val" stands for: the validation games, or the test games.
        players: the logged trajectories of each game.
        rules: how games are played, shown and paid.
        noun: what a seed is called.

    Raises:
        InputError: no trajectory is asked for.
    """

    def __init__(
        self,
        *,
        maker: GameMaker,
        games: Mapping[str, Mapping[str, int]],
        seeds: Mapping[str, tuple[str, Seeds]],
        split: Played,
        players: Players,
        rules: GameRules,
        noun: str = "seed",
    ) -> None:
        if not players.shares():
            raise InputError("data.gold, data.half and data.random are all 0: no trajectory would be logged; raise one")
        self.splits: tuple[str, ...] = ("train", "val", "test") if split == "val" else ("train", "val")
        self.maker, self.games, self.split, self.rules, self.players = maker, games, split, rules, players
        self._seeds, self._noun = seeds, noun
        self._logged: dict[GameName, LoggedGame] = {}

    def environment(self) -> GameEnvironment:
        """Return the environment that plays the games of `split`."""
        return GameEnvironment(self.maker, self.rules, self.players.seed)

    def load(self, split: str) -> Iterator[Example]:
        """Yield one example per game; "val" stands for the games that `data.split` names.

        Raises:
            InputError: a seed is not of its fold, or a size is unknown to the games.
        """
        self.dropped.clear()
        with GameServer(self.maker, self.rules.step_seconds) as server:
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
        with GameServer(self.maker, self.rules.step_seconds) as server:
            for name in self._names(split, server):
                try:
                    session = GameSession(server, name)
                    opening = self.rules.opening(session)
                    session.close()
                except GameStopped as stopped:  # said again, and counted, when it is played
                    opening = [{"role": "user", "content": f"The game {name} cannot be begun: {stopped}."}]
                yield Example(opening, [], None, prompt_id=str(name), answer=name.facts(), source=self._place(name))

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
        place, fold = "train" if split == "train" else "eval", self.split if split == "val" else split
        seeds = {game: self._chosen(game, place, fold, server) for game in self.games}
        most = max(map(len, seeds.values()))
        rounds = [[(game, own[n]) for game, own in seeds.items() if n < len(own)] for n in range(most)]
        return [GameName(game, seed, fold, self.games[game]) for one in rounds for game, seed in one]

    def _chosen(self, game: str, place: str, fold: str, server: GameServer) -> Sequence[int]:
        """Return the seeds of a kind of game that a setting names.

        Raises:
            InputError: there are not so many, or one is of another fold.
        """
        known = server.seeds(game, self.games[game])
        own, (key, asked) = known[fold], self._seeds[place]
        if isinstance(asked, int):
            if asked > len(own):
                raise InputError(f"data.{key}={asked}: {game} has {len(own)} {fold} {self._noun}s")
            return own[:asked]
        for seed in asked:
            if seed not in own:
                others = [name for name, seeds in known.items() if seed in seeds]
                where = f"a {others[0]} {self._noun}" if others else f"no {self._noun}"
                raise InputError(
                    f"data.{key}: {seed} is {where} of {game}; its {fold} {self._noun}s are {min(own)} to {max(own)}"
                )
        return list(dict.fromkeys(asked))

    def _example(self, name: GameName, logged: LoggedGame) -> Example:
        return Example(
            messages=logged.opening,
            completions=[messages for messages, _ in logged.played],
            rewards=[self.rules.paid(rewards) for _, rewards in logged.played],
            prompt_id=str(name),
            answer=name.facts(),
            source=self._place(name),
        )

    def _place(self, name: GameName) -> str:
        """Return where an example came from, for error messages."""
        return f"{self.maker.data}:{name.fold}:{name}"
