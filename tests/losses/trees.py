"""A token tree small enough to enumerate: the world in which the claims about the losses are theorems.

Action 0 ends an episode, and so does the horizon. After action 1 the environment answers with two tokens, so that
turns begin inside a trajectory. A state is the tuple of actions that led to it; tables are `[states, V]`.
"""

from itertools import product
from math import exp, log
from random import Random

import torch

from shiqrun.types import ActionScores, Trajectories

PROMPT, REPLY = [90, 91], [92, 93]


class Tree:
    """Every state, every complete path and a reward for every action of a tree of `vocabulary` and `horizon`."""

    def __init__(self, vocabulary=3, horizon=3, seed=0):
        words = [word for length in range(1, horizon + 1) for word in product(range(vocabulary), repeat=length)]
        alive = [word for word in words if 0 not in word[:-1]]
        self.vocabulary = vocabulary
        self.paths = [word for word in alive if word[-1] == 0 or len(word) == horizon]
        self.states = [(), *(word for word in alive if word not in self.paths)]
        self.row = {state: i for i, state in enumerate(self.states)}
        draw = Random(seed)
        self.reward = {word: draw.uniform(-1, 1) for word in alive}
        self.random = torch.Generator().manual_seed(seed)

    def lift(self, level):
        """Adds a constant to every return."""
        for first in range(self.vocabulary):
            self.reward[first,] += level

    def give(self, returns):
        """Changes the last reward of every path so that the paths return these numbers, in the order of `paths`."""
        for path, wanted in zip(self.paths, returns, strict=True):
            self.reward[path] += wanted - sum(self.rewards(path))

    def table(self, scale=2.0, shift=1.5):
        """Random logits, nowhere normalised."""
        shape = (len(self.states), self.vocabulary)
        return scale * torch.randn(shape, dtype=torch.float64, generator=self.random) + shift

    def visited(self, path):
        """The states of a path, with the actions chosen there."""
        return [(path[:t], path[t]) for t in range(len(path))]

    def rewards(self, path):
        return [self.reward[path[: t + 1]] for t in range(len(path))]

    def trajectories(self, paths=None, rewarded=True):
        """The paths as a batch: prompt, actions, and a reply after every action 1 that does not end its path."""
        paths = self.paths if paths is None else paths
        tokens, places = zip(*(_tokens(path) for path in paths), strict=True)
        rewards = [self.rewards(path) if rewarded else [0.0] * len(path) for path in paths]
        return Trajectories(
            input_ids=_padded(tokens, torch.int64),
            attention_mask=_padded([[1] * len(row) for row in tokens], torch.bool),
            action_index=_padded(places, torch.int64),
            action_mask=_padded([[1] * len(path) for path in paths], torch.bool),
            rewards=_padded(rewards, torch.float64),
            group=torch.zeros(len(paths), dtype=torch.int64),
        )

    def scores(self, table, paths=None, value=None, against=None):
        """What a model with these logits scores along the paths, differentiable in the table.

        A value is one for every state or one everywhere; with the logits of another model, the KL to it is there too.
        """
        paths = self.paths if paths is None else paths
        steps = [self.visited(path) for path in paths]
        rows = _padded([[self.row[state] for state, _ in path] for path in steps], torch.int64)
        actions = _padded([[action for _, action in path] for path in steps], torch.int64)
        if value is not None:
            value = value[rows] if value.dim() else value.expand(rows.shape)
        divergence = None
        if against is not None:
            ours, theirs = table.log_softmax(-1), against.log_softmax(-1)
            divergence = (ours.exp() * (ours - theirs)).sum(-1)[rows]
        return ActionScores(table[rows, actions], table.logsumexp(-1)[rows], value, divergence)

    def optimum(self, reference, beta):
        """(Q*, V*) of the regularised objective by backward induction, `[states, V]` and `[states]`, reward units."""
        q, v = torch.zeros_like(reference), torch.zeros(len(self.states), dtype=torch.float64)
        for state in sorted(self.states, key=len, reverse=True):
            i = self.row[state]
            for action in range(self.vocabulary):
                after = (*state, action)
                q[i, action] = self.reward[after] + (float(v[self.row[after]]) if after in self.row else 0.0)
            weights = [float(p) * exp(float(x) / beta) for p, x in zip(reference[i].softmax(-1), q[i], strict=True)]
            v[i] = beta * log(sum(weights))
        return q, v

    def probabilities(self, table):
        """The probability of every path, by multiplication."""
        policy = table.softmax(-1)
        return [_product(float(policy[self.row[s], a]) for s, a in self.visited(path)) for path in self.paths]

    def returns(self):
        """The return of every path."""
        return [sum(self.rewards(path)) for path in self.paths]

    def quantiles(self, reference):
        """The probability under the reference of a return that is at most the path's, for every path."""
        prior, returns = self.probabilities(reference), self.returns()
        return [sum(p for p, r in zip(prior, returns, strict=True) if r <= own) for own in returns]

    def best_probabilities(self, reference, beta, returns=None):
        """pi*(y) = pi_ref(y) exp(R(y) / beta) / Z, by enumeration of every path; R other numbers if they are given."""
        prior = self.probabilities(reference)
        weights = [p * exp(r / beta) for p, r in zip(prior, returns or self.returns(), strict=True)]
        return [weight / sum(weights) for weight in weights]


def minimised(objective, start):
    """The tensor that LBFGS reaches from `start`."""
    found = start.clone().requires_grad_()
    settings = {"max_iter": 4000, "tolerance_grad": 1e-13, "tolerance_change": 1e-18, "history_size": 50}
    optimiser = torch.optim.LBFGS([found], line_search_fn="strong_wolfe", **settings)

    def closure():
        optimiser.zero_grad()
        terms = objective(found)
        mean = terms.total / terms.count
        mean.backward()
        return mean

    optimiser.step(closure)
    return found.detach()


def kl(p, q):
    """sum p log(p / q), nats."""
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True) if a)


def _tokens(path):
    row, places = list(PROMPT), []
    for t, action in enumerate(path):
        places.append(len(row))
        row.append(action)
        if action == 1 and t + 1 < len(path):
            row += REPLY
    return row, places


def _padded(rows, dtype):
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype)


def _product(factors):
    result = 1.0
    for factor in factors:
        result *= factor
    return result
