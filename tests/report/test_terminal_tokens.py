from collections import Counter

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shiqrun.batching.encode import encode
from shiqrun.report.terminal_tokens import trajectory_lines
from shiqrun.types import Example


def test_no_line_is_wider_than_asked_and_no_text_is_lost():
    words = [f"w{'o' * (i % 9)}{i}" for i in range(80)]
    made = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*words, "User:", "Assistant:", "<e>", "<u>"])}, "<u>")
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>", unk_token="<u>")
    tokenizer.chat_template = (
        "User: {{ messages[0].content }} Assistant: "
        "{% if messages[1:] %}{% generation %}{{ messages[1].content }} <e>{% endgeneration %}{% endif %}"
    )
    completion = [{"role": "assistant", "content": " ".join(words)}]
    example = Example([{"role": "user", "content": words[0]}], [completion], [list(map(float, range(1, 82)))], "p")
    (trajectory,) = encode([example], tokenizer, Counter(), max_length=None)
    head, counts, *lines = (line.plain for line in trajectory_lines(trajectory, tokenizer, width=50, brackets=("", "")))
    assert head.endswith("prompt p")
    assert counts.startswith(f"{len(trajectory.input_ids)} tokens, 81 actions, return {81 * 82 // 2}")
    tokens = [line for line in lines if "w" in line or "<e>" in line]
    assert "".join(tokens) == tokenizer.decode(trajectory.input_ids)
    assert max(map(len, tokens)) <= 50
    below = [line for line in lines if line and line not in tokens]
    assert [float(n) for line in below for n in line.split()] == list(range(1, 82))
