"""ScienceWorld is 30 tasks of school science in a house of ten rooms, played by the contract of environments."""

from shiqrun.environments.text_games.harness import GameMaker

MAKER = GameMaker(
    data="scienceworld",
    title="ScienceWorld",
    worker="shiqrun.environments.scienceworld.worker",
    kinds_key="data.tasks",
    parameters_key="data.simplifications",
)
"""Who plays the tasks of ScienceWorld, and which settings name them."""
