"""`TreasureTokens` translates the maps, moves and answers of data=treasure into the token ids of a tokenizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiqrun.data.treasure_maps import MOVES, Maps
from shiqrun.errors import InputError

REMEDY = "data=treasure needs `model=tiny`, or as model.path a policy directory made by it"


class TreasureTokens:
    """A `TreasureTokens` translates the maps, moves and answers of treasure into token ids."""

    def __init__(self, tokenizer: Any, maps: Maps):
        self._tokenizer, self._size = tokenizer, maps.size
        names = ["<bos>", "start", "goal", "treasure", *MOVES]
        names += [f"{axis}{i}" for axis in "rc" for i in range(maps.size)]
        ids = {name: _only_token(tokenizer, name) for name in names}
        if len(set(ids.values())) < len(ids):
            raise InputError(f"the tokenizer gives two words of treasure the same token: {REMEDY}")
        self.moves = torch.tensor([ids[move] for move in MOVES])
        self._answers = torch.tensor([[ids[w] for w in maps.words(cell).split()] for cell in range(maps.size**2)])
        prompts = [maps.prompt(i) for i in range(len(maps))]
        self.prompts = torch.tensor([[ids[w] for w in ["<bos>", *prompt.split()]] for prompt in prompts])
        self._require_template(prompts[0])

    def _require_template(self, prompt: str) -> None:
        if not self._tokenizer.chat_template:
            raise InputError(f"the tokenizer has no chat template: {REMEDY}")
        chat = [{"role": "user", "content": prompt}]
        rendered = list(self._tokenizer.apply_chat_template(chat, return_dict=False))
        if rendered != self.prompts[0].tolist():
            raise InputError(
                f"the tokenizer's chat template renders {prompt!r} as the tokens {rendered}, expected "
                f"{self.prompts[0].tolist()}: {REMEDY}"
            )

    def word(self, token: int) -> str:
        """Return the text of a token, for people to read."""
        return self._tokenizer.convert_ids_to_tokens(token) or f"<{token}>"

    def answer(self, cell: np.ndarray) -> Tensor:
        """Return the two tokens that name a cell, `[..., 2]`."""
        return self._answers[torch.from_numpy(cell)]

    def prefixes(self, alive: np.ndarray, cell: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return (token rows `[B, T]`, is_node `[B, A]`); a row is a map and all moves but the last of a live episode.

        Logits at a row's A action positions belong to A nodes; is_node marks those that no earlier row has. Every
        live node lies on a row, since only one of its four moves reaches the goal.
        """
        maps, leaves = alive.shape
        depth, leaf = len(cell) - 1, np.arange(leaves)
        parts, first = [self.prompts[:, None].expand(-1, leaves, -1)], []
        for level in range(depth):
            node = leaf // 4 ** (depth - 1 - level)
            parts.append(self.moves[node % 4].expand(maps, -1)[..., None])
            parts.append(self.answer(cell[level].reshape(maps, -1)[:, node]))
        for level in range(depth + 1):
            below = alive.reshape(maps, 4**level, -1)
            first.append((below & (below.cumsum(-1) == 1)).reshape(alive.shape))
        chosen = torch.from_numpy(alive)
        return torch.cat(parts, -1)[chosen], torch.from_numpy(np.stack(first, -1))[chosen]


def _only_token(tokenizer: Any, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(f"the tokenizer makes {len(ids)} known tokens of {word!r}, expected 1: {REMEDY}")
    return ids[0]
