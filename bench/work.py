"""`prepare` writes the model, tokenizer and preference pairs that every side of a benchmark works on.

Models are Llamas from a config with random weights; tokenizers are byte-level BPE trained on the pairs' own text, so
that nothing is downloaded. Pairs come from a file of hh-rlhf, or are made from a seed with similar lengths: the numbers
of words of prompts and of answers are log-normal with mean and deviation of harmless-base's test split.
"""

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from shiqrun.batching.encode import with_template
from shiqrun.data.hh import HH

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CONTEXT = 1024
HH_FILE = "hh_harmless_test_train4of5.jsonl.gz"
PROMPT_WORDS, ANSWER_WORDS = (3.89, 1.14), (3.12, 1.01)
"""Mean and deviation of the logarithm of the number of words; a prompt is all messages before the answer."""
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ist")]


@dataclass(frozen=True)
class Shape:
    """A `Shape` is the size of a Llama with tied embeddings, and the number of pairs that it is measured on."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    pairs: int

    def body(self) -> int:
        """Return how many parameters every token passes: per layer 4 D^2 of attention and 3 D I of the MLP."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    def minimal_flops(self, tokens: int, actions: int) -> float:
        """Return the least flops of a training step, 6 for each weight and token, forward and backward.

        The body counts at `tokens`, the head at `actions` only.
        """
        return 6.0 * self.body() * tokens + 6.0 * self.hidden * self.vocabulary * actions


SHAPES = {
    "A": Shape(hidden=256, layers=4, heads=4, intermediate=688, vocabulary=32_000, pairs=96),
    "B": Shape(hidden=512, layers=8, heads=8, intermediate=1376, vocabulary=8_192, pairs=48),
    "gpu": Shape(
        hidden=896, layers=24, heads=14, intermediate=4864, vocabulary=151_936, pairs=512
    ),  # sizes of a 0.5B model
}

Talk = dict[str, Any]
"""A row of pairs.jsonl: `prompt` and `completions` as chat lists, and `rewards`; of a pair the better is first."""


def hh_file() -> Path | None:
    """Return the file of preference pairs in $SHIQRUN_TEST_DATA or ../shared/data, or None if there is none."""
    folders = [os.environ.get("SHIQRUN_TEST_DATA"), "../shared/data"]
    return next((Path(f) / HH_FILE for f in folders if f and (Path(f) / HH_FILE).is_file()), None)


def hh_pairs(path: Path) -> list[Talk]:
    """Return every preference pair of the hh-rlhf file that has two answers."""
    source = HH(path=str(path), subset="both", split="train", pair_rewards=[1, -1], on_embedded_marker="drop")
    return [
        {"prompt": list(e.messages), "completions": [list(c) for c in e.completions], "rewards": [1.0, -1.0]}
        for e in source.load("train")
    ]


def make_pairs(number: int, seed: int = 0) -> Iterator[Talk]:
    """Yield preference pairs of random words, with frequencies of natural words (Zipf) and the lengths of hh-rlhf."""
    draw = random.Random(seed)
    for _ in range(number):
        words = [min(600, max(3, round(draw.lognormvariate(*PROMPT_WORDS))))]
        words += [min(400, max(2, round(draw.lognormvariate(*ANSWER_WORDS)))) for _ in range(2)]
        yield talk(words[0], words[1:], draw)


def talk(prompt: int, answers: Sequence[int], draw: random.Random) -> Talk:
    """Return a prompt and answers of the given numbers of words; the first answer is the best."""
    vocabulary = _vocabulary()
    weights = [1 / (rank + 2) for rank in range(len(vocabulary))]
    text = [" ".join(draw.choices(vocabulary, weights, k=n)) for n in (prompt, *answers)]
    return {
        "prompt": [{"role": "user", "content": text[0]}],
        "completions": [[{"role": "assistant", "content": answer}] for answer in text[1:]],
        "rewards": [1.0 - 2.0 * k / max(len(answers) - 1, 1) for k in range(len(answers))],
    }


def _vocabulary() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2, 3)))) for _ in range(2000)]


def prepare(folder: Path, shape: Shape, talks: Iterable[Talk], *, pairs: int, longest: int = CONTEXT) -> None:
    """Write `model/` and `pairs.jsonl` into the folder: the first `pairs` talks that fit the context.

    Raises:
        SystemExit: there are not so many.
    """
    set_verbosity_error()
    disable_progress_bar()
    given = list(talks)
    tokenizer = tokenizer_on(given, shape.vocabulary, longest)
    rows = [row for row in given if _longest(row, tokenizer) < longest][:pairs]
    if len(rows) < pairs:
        raise SystemExit(f"{len(rows)} pairs of at most {longest} tokens, {pairs} are needed; give another --pairs")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=longest,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def tokenizer_on(rows: Sequence[Talk], vocabulary: int, longest: int) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer trained on the texts of the rows, of at most `vocabulary` tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (m["content"] for row in rows for chat in (row["prompt"], *row["completions"]) for m in chat)
    made.train_from_iterator(texts, trainer)
    return with_template(
        PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=longest
        )
    )


def _longest(row: Talk, tokenizer: Any) -> int:
    """Return the number of tokens of the longest of a row's whole chats."""
    chats = [row["prompt"] + completion for completion in row["completions"]]
    return max(len(ids) for ids in tokenizer.apply_chat_template(chats, tokenize=True)["input_ids"])


def read_pairs(folder: Path) -> list[Talk]:
    """Return the rows of `pairs.jsonl` in the order of the file."""
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer in the folder's `model/`."""
    return AutoTokenizer.from_pretrained(folder / "model")
