"""`Maps` holds the maps and rules of the game `data=treasure`; `Tree` holds every sequence of moves on them.

All maps of a size have numbers, so that maps are drawn without repetition and no held-out map is a training map.
"""

from dataclasses import dataclass, replace
from math import comb

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from shiqrun.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MOVES = ("N", "E", "S", "W")
_DOWN, _RIGHT = np.array([-1, 0, 1, 0]), np.array([0, 1, 0, -1])


@dataclass(frozen=True)
class Tree:
    """A `Tree` holds every sequence of moves on every map; level d has 4^d nodes, numbered by their moves in base 4.

    Attributes:
        alive: per level, `[maps, 4^d]`, whether the episode has not ended before the node.
        reward: per level, `[maps, 4^d, 4]`, what each move earns there.
        done: per level, `[maps, 4^d, 4]`, whether the move reaches the goal.
        cell: per level, `[maps, 4^d, 4]`, the cell reached.
    """

    alive: list[Bools]
    reward: list[Floats]
    done: list[Bools]
    cell: list[Ints]

    def best(self) -> list[Floats]:
        """Return the largest return from each move on, unregularised: per level, `[maps, 4^d, 4]`, reward units."""
        quality: list[Floats] = []
        following: Floats | None = None
        for reward, done in zip(reversed(self.reward), reversed(self.done), strict=True):
            later = 0.0 if following is None else np.where(done, 0.0, following.reshape(reward.shape))
            quality.insert(0, reward + later)
            following = quality[0].max(-1)
        return quality


@dataclass(frozen=True)
class Maps:
    """A `Maps` holds maps of one size and the rules of the game on them; cells are numbered row by row.

    Attributes:
        size: side of a map, cells.
        horizon: most moves of an episode.
        step_cost, treasure_reward, goal_reward: reward units.
        start, goal: `[maps]`, cells.
        treasures: `[maps, treasures]`, cells in reading order.
    """

    size: int
    horizon: int
    step_cost: float
    treasure_reward: float
    goal_reward: float
    start: Ints
    goal: Ints
    treasures: Ints

    def __len__(self) -> int:
        return len(self.start)

    def first(self, count: int | None) -> "Maps":
        """Return the first `count` maps, or all for None."""
        return replace(self, start=self.start[:count], goal=self.goal[:count], treasures=self.treasures[:count])

    def words(self, cell: int) -> str:
        """Return the name of a cell in prompts and answers, `r1 c3`."""
        return f"r{cell // self.size} c{cell % self.size}"

    def prompt(self, index: int) -> str:
        """Return the text that describes a map to the policy."""
        places = [("start", self.start[index]), ("goal", self.goal[index])]
        places += [("treasure", cell) for cell in self.treasures[index]]
        return " ".join(f"{name} {self.words(int(cell))}" for name, cell in places)

    def step(self, index: Ints, cell: Ints, taken: Ints, move: Ints) -> tuple[Ints, Ints, Floats, Bools]:
        """Return (cell reached, taken treasures as bits, reward, goal reached) for one move each of many episodes."""
        edge = self.size - 1
        row, column = (
            np.clip(cell // self.size + _DOWN[move], 0, edge),
            np.clip(cell % self.size + _RIGHT[move], 0, edge),
        )
        reached = row * self.size + column
        reward = np.full(reached.shape, -self.step_cost)
        for j in range(self.treasures.shape[1]):
            found = (reached == self.treasures[index, j]) & (taken >> j & 1 == 0)
            reward, taken = reward + self.treasure_reward * found, taken | found << j
        done = reached == self.goal[index]
        return reached, taken, reward + self.goal_reward * done, done

    def tree(self) -> Tree:
        """Return the tree of every sequence of moves on every map."""
        tree = Tree([], [], [], [])
        index = np.arange(len(self))[:, None]
        cell, taken, alive = self.start[:, None], np.zeros_like(index), np.ones(index.shape, bool)
        for _ in range(self.horizon):
            nodes = cell.shape[1]
            move = np.tile(np.arange(4), nodes)[None]
            cell, taken, reward, done = self.step(index, np.repeat(cell, 4, 1), np.repeat(taken, 4, 1), move)
            tree.alive.append(alive)
            tree.reward.append(reward.reshape(len(self), nodes, 4))
            tree.done.append(done.reshape(len(self), nodes, 4))
            tree.cell.append(cell.reshape(len(self), nodes, 4))
            alive = np.repeat(alive, 4, 1) & ~done
        return tree


@dataclass(frozen=True)
class TreasureEpisode:
    """A `TreasureEpisode` holds the policy's words on a map, the cells that answered them, and the reward of each word.

    An illegal word is the last one and has no cell.
    """

    map_index: int
    words: list[str]
    cells: list[int]
    rewards: list[float]


def draw(maps: Maps, episode: TreasureEpisode) -> str:
    """Return a drawing of an episode on its map, in rich markup; a number is the step that last entered the cell."""
    size, index = maps.size, episode.map_index
    signs = {int(cell): ("$", "yellow") for cell in maps.treasures[index]}
    signs |= {int(maps.start[index]): ("S", "cyan"), int(maps.goal[index]): ("G", "green")}
    entered = {cell: step for step, cell in enumerate(episode.cells, 1)}
    lines = []
    for row in range(size):
        shown = []
        for cell in range(row * size, (row + 1) * size):
            sign, colour = signs.get(cell, ("·", "dim"))
            step = f"[bold]{entered[cell]}[/]" if cell in entered else " "
            shown.append(f"[{colour}]{sign}[/]{step}")
        lines.append(" ".join(shown))
    legal = len(episode.cells)
    said = [word if i < legal else f"[red]{escape(word)}[/]" for i, word in enumerate(episode.words)]
    return "\n".join([*lines, f"{' '.join(said)}  [bold]{sum(episode.rewards):+.1f}[/]"])


def _pairs(size: int, horizon: int) -> Ints:
    """Return every (start, goal) at most `horizon` moves apart, `[pairs, 2]`, cells."""
    cell = np.arange(size**2)
    row, column = cell // size, cell % size
    distance = abs(row[:, None] - row) + abs(column[:, None] - column)
    return np.argwhere((distance > 0) & (distance <= horizon))


def draw_map_numbers(size: int, horizon: int, treasures: int, maps: int, val_maps: int, seed: int) -> dict[str, Ints]:
    """Return randomly drawn map numbers for each split, all different; those of val do not depend on `maps`.

    As many test maps as validation maps follow behind the training maps, fewer where no more are left: the other
    splits do not depend on them.
    """
    existing = len(_pairs(size, horizon)) * comb(size**2 - 2, treasures)
    if maps + val_maps > existing:
        raise InputError(
            f"data.maps={maps} and data.val_maps={val_maps} ask for {maps + val_maps} different maps; with "
            f"data.size={size}, data.horizon={horizon} and data.treasures={treasures} there are {existing}. "
            "Give fewer maps, or more trajectories of each with data.per_map"
        )
    val = np.random.default_rng([seed, 0]).choice(existing, val_maps, replace=False)
    drawn = np.random.default_rng([seed, 1]).choice(existing, maps + val_maps, replace=False)
    train = drawn[~np.isin(drawn, val)][:maps]
    others = np.random.default_rng([seed, 5]).choice(existing, min(existing, maps + 2 * val_maps), replace=False)
    return {"train": train, "val": val, "test": others[~np.isin(others, [*train, *val])][:val_maps]}


def cells_of_maps(size: int, horizon: int, treasures: int, number: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the cells (start, goal, treasures) of maps by number, which counts (start, goal) pairs, then treasures."""
    cells = size**2 - 2
    pair, rank = np.divmod(number, comb(cells, treasures))
    start, goal = _pairs(size, horizon)[pair].T
    chosen = np.empty((len(number), treasures), np.int64)
    for j in range(treasures, 0, -1):  # the combinatorial number system: the largest c with comb(c, j) <= rank
        table = np.array([comb(c, j) for c in range(cells)])
        chosen[:, j - 1] = np.searchsorted(table, rank, side="right") - 1
        rank = rank - table[chosen[:, j - 1]]
    for taken in (np.minimum(start, goal), np.maximum(start, goal)):
        chosen += chosen >= taken[:, None]
    return start, goal, chosen
