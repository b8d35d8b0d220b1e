"""`model=tiny` builds a new, randomly initialised Llama of any size, with a tokenizer made from the training split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from shiqrun.batching.encode import with_template
from shiqrun.data.chats import wording
from shiqrun.data.source import Source
from shiqrun.errors import InputError
from shiqrun.models.precision import cast_weights
from shiqrun.types import Example

Count = Annotated[int, Gt(0)]
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A `Tiny` builds a new Llama and its tokenizer, by the keys of `conf/model/tiny.yaml`.

    Attributes:
        hidden_size: units of a hidden state.
        intermediate_size: units of the feed-forward layers.
        num_layers: decoder layers.
        num_heads: attention heads.
        max_position_embeddings: length of the context, tokens.
        initializer_range: standard deviation of the initial weights.
        vocab_size: largest number of tokens of a tokenizer that is made from text.

    Raises:
        InputError: the hidden size is no multiple of twice the number of heads.
    """

    suggested: ClassVar[Mapping[str, float]] = {"trainer.learning_rate": 2.0e-3}
    untrained: ClassVar[bool] = True

    hidden_size: Count
    intermediate_size: Count
    num_layers: Count
    num_heads: Count
    max_position_embeddings: Count
    initializer_range: Annotated[float, Gt(0)]
    vocab_size: Annotated[int, Gt(260)]

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"model.hidden_size={self.hidden_size} and model.num_heads={self.num_heads}: the hidden size must be a "
                "multiple of twice the number of heads (rotary positions turn pairs of units)"
            )

    def tokenizer(self, source: Source, training: Iterable[Example]) -> PreTrainedTokenizerBase:
        """Return a new tokenizer: one token per word where the data set names its vocabulary, else byte-level BPE."""
        if source.vocabulary is not None:
            model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(source.vocabulary)}))
            model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            model = self._byte_pairs(training)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=model,
            pad_token=PAD,
            bos_token=BOS,
            eos_token=EOS,
            model_max_length=self.max_position_embeddings,
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = source.chat_template
        return with_template(tokenizer)

    def _byte_pairs(self, training: Iterable[Example]) -> Tokenizer:
        """Train a byte-level BPE tokenizer on all messages of the training split."""
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        dialogues = ([*e.messages, *(m for c in e.completions for m in c)] for e in training)
        model.train_from_iterator((wording(m) for dialogue in dialogues for m in dialogue), trainer)
        return model

    def build(
        self, tokenizer: PreTrainedTokenizerBase, seed: int, dtype: torch.dtype = torch.float32
    ) -> PreTrainedModel:
        """Return a freshly initialised LlamaForCausalLM with one logit for each token of the tokenizer."""
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_heads,
            max_position_embeddings=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cast_weights(LlamaForCausalLM(config), dtype)

    def context(self) -> int:
        """Return the context length of the model in tokens."""
        return self.max_position_embeddings
