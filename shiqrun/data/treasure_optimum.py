"""`ExactTreasure` solves data=treasure exactly under a reference and measures a policy's regret against the optimum.

Both come from backward induction in float64 over the tree of legal prefixes.

With r the reward of a move and M the four moves; any other token is illegal, ends the episode and earns 0:

    v*(s)  = beta log( sum_{a in M} pi_ref(a|s) exp((r + v*(sa)) / beta) + sum_{a not in M} pi_ref(a|s) )
    J(s)   = sum_{a in M} pi(a|s) (r + J(sa)) - beta sum_a pi(a|s) D(s,a),    D = log pi - log pi_ref
    regret = v* - J = beta KL(pi || pi*),    pi*(a|s) = pi_ref(a|s) exp((r + v*(sa) - v*(s)) / beta)

The two forms of the regret come from two recursions; `identity_gap` holds their difference.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shiqrun.data.source import DrawnEpisode
from shiqrun.data.treasure_maps import Maps, TreasureEpisode, draw
from shiqrun.data.treasure_tokens import REMEDY, TreasureTokens
from shiqrun.errors import InputError
from shiqrun.types import Positive

Model = nn.Module | Callable[[Tensor], Tensor]
"""A Hugging Face causal LM, or a function `input_ids [B, T] -> logits [B, T, V]`."""

_BATCH = 1024  # rows of one forward pass
_TURN = 3  # tokens of a turn: the move, and the row and column that answer it


class ExactTreasure:
    """An `ExactTreasure` knows the exact optimum on some maps, and computes a policy's exact return, KL and regret.

    Args:
        maps: to be evaluated on.
        tokenizer: one that makes one token of each word of the problem.
        beta: KL temperature, reward units per nat.

    Attributes:
        maps: the maps evaluated.
        identity_gap: largest |regret - beta KL(pi || pi*)| of a map in the last `evaluate`, reward units.
        problems: the metrics of each map in the last `evaluate`, with its prompt as `prompt_id`.

    Raises:
        InputError: the tokenizer does not make one token of each word of the problem.
    """

    def __init__(self, maps: Maps, tokenizer: Any, *, beta: Positive):
        self.maps = maps
        self.identity_gap = float("nan")
        self.problems: list[dict[str, Any]] = []
        self._beta = beta
        self._tokens = TreasureTokens(tokenizer, self.maps)
        tree = self.maps.tree()
        self._alive = [torch.from_numpy(x) for x in tree.alive]
        self._reward = [torch.from_numpy(x) for x in tree.reward]
        self._done = [torch.from_numpy(x) for x in tree.done]
        self._rows, self._is_node = self._tokens.prefixes(tree.alive[-1], tree.cell)

    def set_reference(self, model: Model) -> None:
        """Solve the maps under this reference; `evaluate` then measures the distance of a policy from that optimum."""
        self._reference_logits = torch.cat(list(self._node_logits(model)))
        reference = self._nodes(self._reference_logits.split(_BATCH))
        self._reference = reference
        self._reference_illegal = self._expect(reference.illegal, reference)
        self._reference_reward = self._rewards(reference)
        self._optimal_logp: list[Tensor] = []
        self._value: list[Tensor] = []
        for level in reversed(range(self.maps.horizon)):
            quality = self._reward[level] + self._below(self._value, level)
            stay, leave = reference.logp[level] + quality / self._beta, reference.illegal[level].log()[..., None]
            value = torch.cat([stay, leave], -1).logsumexp(-1)  # nats, [maps, 4^level]
            self._optimal_logp.insert(0, stay - value[..., None])
            self._value.insert(0, (self._beta * value).masked_fill(~self._alive[level], 0))
        self._optimum_kl = self._kl_of_optimum(reference)

    def evaluate(self, model: Model) -> dict[str, float]:
        """Return the exact metrics of a policy as means over maps; `set_reference` must be called before.

        optimum, regularised_return, regret and reward are in reward units, kl = E_pi sum_t D_t in nats; optimum_reward
        and optimum_kl are those of pi*; illegal and reference_illegal are the probability that an episode ends with an
        illegal token.

        Raises:
            InputError: the policy has not as many tokens as the reference.
        """
        policy = self._nodes(self._node_logits(model))
        kl = self._expect(self._divergence(policy, self._reference.logp, policy.illegal_divergence), policy)
        reward = self._rewards(policy)
        optimum, returned = self._value[0].squeeze(-1), reward - self._beta * kl
        gap = optimum - returned - self._beta * self._kl_to_optimum(policy)
        self.identity_gap = gap.abs().max().item()
        figures = {
            "optimum": optimum,
            "optimum_reward": optimum + self._beta * self._optimum_kl,
            "optimum_kl": self._optimum_kl,
            "regularised_return": returned,
            "regret": optimum - returned,
            "reward": reward,
            "kl": kl,
            "illegal": self._expect(policy.illegal, policy),
            "reference_illegal": self._reference_illegal,
        }
        rows = figures | {"reference_reward": self._reference_reward}
        self.problems = [
            {"prompt_id": self.maps.prompt(n), **{k: x[n].item() for k, x in rows.items()}}
            for n in range(len(self.maps))
        ]
        return {name: x.mean().item() for name, x in figures.items()}

    def sample_episodes(self, model: Model, n: int, seed: int) -> list[TreasureEpisode]:
        """Sample n episodes of a policy token by token, on one map after another, over and over."""
        generator = torch.Generator().manual_seed(seed)
        index = np.arange(n) % len(self.maps)
        ids, cell, taken = self._tokens.prompts[index], self.maps.start[index], np.zeros_like(index)
        episodes, alive = [TreasureEpisode(int(i), [], [], []) for i in index], np.ones(n, bool)
        for _ in range(self.maps.horizon):
            logits = torch.cat([_logits(model, rows, torch.tensor([-1]))[:, 0] for rows in ids.split(_BATCH)])
            token = torch.multinomial(logits.double().softmax(-1), 1, generator=generator)
            is_move = token == self._tokens.moves
            legal, move = is_move.any(-1).numpy(), is_move.long().argmax(-1).numpy()
            cell, taken, reward, done = self.maps.step(index, cell, taken, move)
            for i in np.flatnonzero(alive):
                episodes[i].words.append(self._tokens.word(int(token[i])))
                episodes[i].rewards.append(float(reward[i]) if legal[i] else 0.0)
                episodes[i].cells.extend([int(cell[i])] if legal[i] else [])
            alive &= legal & ~done
            ids = torch.cat([ids, self._tokens.moves[move][:, None], self._tokens.answer(cell)], 1)
        return episodes

    def draw_episodes(self, model: Model, number: int, seed: int) -> list[DrawnEpisode]:
        """Sample episodes of a policy and draw each of them on its map."""
        return [
            DrawnEpisode(self.maps.prompt(e.map_index), " ".join(e.words), sum(e.rewards), draw(self.maps, e))
            for e in self.sample_episodes(model, number, seed)
        ]

    def _node_logits(self, model: Model) -> Iterator[Tensor]:
        """Yield the logits at every live node, `[n, V]` a batch, in the model's precision."""
        positions = self._tokens.prompts.shape[1] - 1 + _TURN * torch.arange(self.maps.horizon)
        for ids, is_node in zip(self._rows.split(_BATCH), self._is_node.split(_BATCH), strict=True):
            yield _logits(model, ids, positions)[is_node]

    def _nodes(self, batches: Iterable[Tensor]) -> "_Nodes":
        """Return what the recursions read of a policy's logits at every node, in float64."""
        parts, at = [], 0
        for logits in batches:
            base = self._reference_logits[at : at + len(logits)]
            at += len(logits)
            if logits.shape != base.shape:
                raise InputError(f"the policy has {logits.shape[-1]} tokens, its reference {base.shape[-1]}; {REMEDY}")
            logp, logp_ref = logits.double().log_softmax(-1), base.double().log_softmax(-1)
            illegal = logp.exp().index_fill(-1, self._tokens.moves, 0)
            divergence = (illegal * (logp - logp_ref)).masked_fill(illegal == 0, 0)  # 0 log 0 = 0
            bulk = torch.stack([illegal.sum(-1), divergence.sum(-1)], -1)
            parts.append(torch.cat([logp[:, self._tokens.moves], bulk], -1))
        rows, level = torch.cat(parts), self._is_node.nonzero()[:, 1]
        tables = []
        for depth, alive in enumerate(self._alive):
            table = rows.new_zeros(*alive.shape, rows.shape[-1])
            table[alive] = rows[level == depth]
            tables.append(table)
        return _Nodes([x[..., :-2] for x in tables], [x[..., -2] for x in tables], [x[..., -1] for x in tables])

    def _rewards(self, policy: "_Nodes") -> Tensor:
        """Return the expected return, `[maps]`, without the KL."""
        return self._expect([(p * r).sum(-1) for p, r in zip(policy.p, self._reward, strict=True)], policy)

    def _divergence(self, policy: "_Nodes", logp: list[Tensor], illegal: list[Tensor]) -> list[Tensor]:
        """Return sum_a pi(a|s) (log pi - logp)(a|s) per node, nats; `illegal` is the part of all other tokens."""
        moves = [(p * (x - y)).sum(-1) for p, x, y in zip(policy.p, policy.logp, logp, strict=True)]
        return [x + y for x, y in zip(moves, illegal, strict=True)]

    def _kl_to_optimum(self, policy: "_Nodes") -> Tensor:
        """Return KL(pi || pi*), `[maps]`, nats; an illegal token has log pi*(a|s) = log pi_ref(a|s) - v*(s) / beta."""
        nodes = zip(policy.illegal, policy.illegal_divergence, self._value, strict=True)
        illegal = [divergence + mass * value / self._beta for mass, divergence, value in nodes]
        return self._expect(self._divergence(policy, self._optimal_logp, illegal), policy)

    def _kl_of_optimum(self, reference: "_Nodes") -> Tensor:
        """Return KL(pi* || pi_ref), `[maps]`, nats; an illegal token has D = -v*(s) / beta under pi*."""
        illegal = [mass * (-v / self._beta).exp() for mass, v in zip(reference.illegal, self._value, strict=True)]
        divergence = [-mass * v / self._beta for mass, v in zip(illegal, self._value, strict=True)]
        optimum = _Nodes(self._optimal_logp, illegal, divergence)
        return self._expect(self._divergence(optimum, reference.logp, divergence), optimum)

    def _below(self, levels: list[Tensor], level: int) -> Tensor:
        """Return the values of the nodes below a level, the first of `levels`, `[maps, 4^level, 4]`; 0 at the end."""
        done = self._done[level]
        return levels[0].reshape(done.shape).masked_fill(done, 0) if levels else torch.zeros(done.shape).double()

    def _expect(self, here: Sequence[Tensor], policy: "_Nodes") -> Tensor:
        """Return the expected sum, `[maps]`: x(s) = here(s) + sum_{a in M} pi(a|s) x(sa) at the prompt."""
        sums: list[Tensor] = []
        for level in reversed(range(self.maps.horizon)):
            total = here[level] + (policy.p[level] * self._below(sums, level)).sum(-1)
            sums.insert(0, total.masked_fill(~self._alive[level], 0))
        return sums[0].squeeze(-1)


@dataclass(frozen=True)
class _Nodes:
    """A `_Nodes` holds what the recursions read of a policy, per level d; zeros where the episode is over.

    Attributes:
        logp: log pi of the four moves, `[maps, 4^d, 4]`, nats.
        illegal: probability of all other tokens, `[maps, 4^d]`.
        illegal_divergence: sum of pi (log pi - log pi_ref) over them, `[maps, 4^d]`, nats.
    """

    logp: list[Tensor]
    illegal: list[Tensor]
    illegal_divergence: list[Tensor]

    @property
    def p(self) -> list[Tensor]:
        return [x.exp() for x in self.logp]


@torch.no_grad()
def _logits(model: Model, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the logits at these positions of every row, `[B, A, V]`, on the CPU, with the model in eval mode."""
    if not isinstance(model, nn.Module):
        return model(ids)[:, positions]
    with _evaluating(model):
        device = next(model.parameters()).device
        output = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=positions.to(device))
    return output.logits.cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode inside the block, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
