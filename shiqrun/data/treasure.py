"""The data set `treasure` generates small maps as text: a multi-turn problem whose optimal policy is known exactly.

prompt    start r0 c1 goal r2 c3 treasure r1 c1
turn      the policy says one word, N E S or W; the environment answers with the cell reached, `r1 c1`
reward    a step costs, a treasure pays when first entered, the goal pays and ends the episode; a move off the
          map stays put; any other word is illegal, ends the episode and earns 0

With `rewards="last"` the logged trajectories and their returns stay the same, but a trajectory's return falls on its
last turn. The optimum stays the same, too: what a prefix has earned is a function of the prefix and changes no choice.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from shiqrun.data.source import Source
from shiqrun.data.treasure_maps import MOVES, Maps, TreasureEpisode, Tree, cells_of_maps, draw_map_numbers
from shiqrun.data.treasure_optimum import ExactTreasure
from shiqrun.errors import InputError
from shiqrun.types import Example, Message, UnitInterval

_SPECIAL = ("<pad>", "<bos>", "<eos>")
_TEMPLATE = (
    "<bos>{% for message in messages %}{{ ' ' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


class Treasure(Source):
    """A `Treasure` data set generates maps from a seed, with logged episodes of good and random players.

    Args:
        size: side of the map, cells.
        horizon: most moves of an episode; the goal is never further away.
        treasures: number of treasures on a map.
        step_cost, treasure_reward, goal_reward: reward units.
        maps, val_maps: number of training maps and of validation maps, all different; there are as many test maps.
        per_map: logged episodes of a map.
        play: who moves: "good" is epsilon-greedy on the largest return, "random" uniform, "mixed" half and half.
        epsilon: share of the good player's moves that are random.
        illegal: share of random moves that are an illegal word instead.
        fillers: words in the vocabulary that no text uses but illegal moves.
        rewards: where a trajectory's return is written down: "turns", each reward at the turn that earned it, or
            "last", their sum at the last turn and 0 before.
        data_seed: everything above is a function of it.

    Raises:
        InputError: more cells or maps asked for than there are.
    """

    vocabulary: list[str]
    evaluated_exactly = True

    def __init__(
        self,
        *,
        size: Annotated[int, Ge(2), Le(8)],
        horizon: Annotated[int, Ge(1), Le(6)],
        treasures: Annotated[int, Ge(0), Le(4)],
        step_cost: float,
        treasure_reward: float,
        goal_reward: float,
        maps: Annotated[int, Ge(1)],
        val_maps: Annotated[int, Ge(1)],
        per_map: Annotated[int, Ge(1)],
        play: Literal["mixed", "random", "good"],
        epsilon: UnitInterval,
        illegal: UnitInterval,
        fillers: Annotated[int, Ge(0)],
        rewards: Literal["turns", "last"],
        data_seed: Annotated[int, Ge(0)],
    ):
        if treasures + 2 > size**2:
            raise InputError(
                f"data.treasures={treasures} does not fit a map of data.size={size}: start, goal and treasures need "
                f"{treasures + 2} different cells of {size**2}; give at most data.treasures={size**2 - 2}"
            )
        self.vocabulary = [*_SPECIAL, "start", "goal", "treasure", *MOVES]
        self.vocabulary += [f"r{i}" for i in range(size)] + [f"c{i}" for i in range(size)]
        self.vocabulary += [f"x{i}" for i in range(fillers)]
        self.chat_template = _TEMPLATE
        self._per_map, self._epsilon, self._illegal, self._seed = per_map, epsilon, illegal, data_seed
        self._rewards = rewards
        self._good = {"mixed": per_map // 2, "random": 0, "good": per_map}[play]
        rules = (size, horizon, step_cost, treasure_reward, goal_reward)
        drawn = draw_map_numbers(size, horizon, treasures, maps, val_maps, data_seed)
        self._maps = {
            split: Maps(*rules, *cells_of_maps(size, horizon, treasures, n)) for split, n in drawn.items() if len(n)
        }
        self.splits: tuple[str, ...] = tuple(self._maps)

    def maps(self, split: str) -> Maps:
        """Return the maps of a split, in the order of `load`."""
        return self._maps[split]

    def tree(self, split: str) -> Tree:
        """Return the tree of every sequence of legal moves on every map of a split."""
        return self._maps[split].tree()

    def answers_back(self) -> bool:
        """Return True: the environment answers every move with the cell that it reaches."""
        return True

    def exact(self, tokenizer: Any, *, split: str, beta: float) -> ExactTreasure:
        """Return the exact evaluation on the maps of a split, at KL temperature `beta` (reward units per nat)."""
        return ExactTreasure(self.maps(split), tokenizer, beta=beta)

    def load(self, split: str) -> Iterator[Example]:
        """Yield one example per map, with `per_map` logged episodes as completions and one reward per turn."""
        maps = self._maps[split]
        episodes = self._play(split)
        for index in range(len(maps)):
            prompt = maps.prompt(index)
            played = episodes[index * self._per_map : (index + 1) * self._per_map]
            yield Example(
                messages=[{"role": "user", "content": prompt}],
                completions=[_completion(maps, episode) for episode in played],
                rewards=[_written(episode.rewards, self._rewards) for episode in played],
                prompt_id=prompt,
                source=f"treasure:{split}:{index}",
            )

    def _play(self, split: str) -> list[TreasureEpisode]:
        """Play `per_map` logged episodes on every map of a split; the good player plays the first `_good` of each."""
        maps, tree = self._maps[split], self.tree(split)
        rng = np.random.default_rng([self._seed, 2 + self.splits.index(split)])
        index = np.repeat(np.arange(len(maps)), self._per_map)
        good = np.tile(np.arange(self._per_map) < self._good, len(maps))
        words = np.array([*MOVES, *(word for word in self.vocabulary if word not in MOVES)])
        node, alive = np.zeros_like(index), np.ones(index.shape, bool)
        said, cells, rewards, moved = [], [], [], []
        for level, quality in enumerate(tree.best()):
            greedy = good & (rng.random(index.shape) >= self._epsilon)
            # Noise breaks ties at random, so that the good player does not prefer the first of two equal moves.
            best = (quality[index, node] + 1e-6 * rng.random((len(index), 4))).argmax(-1)
            move = np.where(greedy, best, rng.integers(0, 4, index.shape))
            illegal = ~greedy & (rng.random(index.shape) < self._illegal)
            other = rng.integers(4, len(words), index.shape)
            said.append(np.where(alive, words[np.where(illegal, other, move)], ""))
            moved.append(alive & ~illegal)
            cells.append(tree.cell[level][index, node, move])
            rewards.append(np.where(illegal, 0.0, tree.reward[level][index, node, move]))
            alive = alive & ~illegal & ~tree.done[level][index, node, move]
            node = node * 4 + move
        columns = [np.stack(x, 1).tolist() for x in (said, cells, rewards, moved)]
        return [_episode(*row) for row in zip(index.tolist(), *columns, strict=True)]


def _episode(index: int, said: list[str], cells: list[int], rewards: list[float], moved: list[bool]) -> TreasureEpisode:
    turns, legal = sum(word != "" for word in said), sum(moved)
    return TreasureEpisode(index, said[:turns], cells[:legal], rewards[:turns])


def _written(rewards: list[float], where: str) -> list[float]:
    """Return one reward per turn: as it was earned, or with "last" the sum at the last turn and 0 before."""
    return rewards if where == "turns" else [0.0] * (len(rewards) - 1) + [math.fsum(rewards)]


def _completion(maps: Maps, episode: TreasureEpisode) -> list[Message]:
    """Return an episode as messages: moves and answers in turn, without an answer to the last move."""
    messages: list[Message] = []
    for word, cell in zip(episode.words, [*episode.cells, None], strict=False):
        messages.append({"role": "assistant", "content": word})
        if cell is not None:
            messages.append({"role": "tool", "content": maps.words(cell)})
    return messages if messages[-1]["role"] == "assistant" else messages[:-1]
