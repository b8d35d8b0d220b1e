"""`tell_template` tells a data set which chat template renders its prompts, before anything is loaded for it."""

from transformers import PreTrainedTokenizerBase

from shiqrun.batching.encode import PLAIN_TEMPLATE
from shiqrun.batching.special_tokens import special_token_texts
from shiqrun.data.source import Source, as_source


def tell_template(source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a data set which chat template renders its prompts; see `Source.use_template`.

    Raises:
        InputError: the data set's settings ask for something that the template cannot do.
    """
    own = tokenizer.chat_template not in (None, PLAIN_TEMPLATE)
    as_source(source).use_template(tokenizer, own=own, specials=special_token_texts(tokenizer))
