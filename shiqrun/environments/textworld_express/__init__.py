"""TextWorldExpress is eight kinds of short text games in Java, played by the contract of environments."""

from shiqrun.environments.text_games.harness import GameMaker

MAKER = GameMaker(
    data="textworld_express",
    title="TextWorldExpress",
    worker="shiqrun.environments.textworld_express.worker",
    kinds_key="data.games",
    parameters_key="data.params.{game}",
)
"""Who plays the games of TextWorldExpress, and which settings name them."""
