"""GGUF files are read back by `transformers`, whose reader is not ours, and by llama.cpp where it is installed."""

import json
import urllib.request

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from shiqrun.cli import main
from shiqrun.errors import InputError
from shiqrun.sharing.finished_run import FinishedRun
from shiqrun.sharing.gguf_file import in_pairs, write_gguf
from shiqrun.sharing.gguf_tokenizer import SPLITS
from tests.sharing.runs import logits
from tests.support.helpers import model

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama_tied": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True),
    "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SIZES, sliding_window=None, head_dim=8),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
}
TEXTS = [
    "Is 7 even? Say yes.",
    "  two  spaces\n\nand\ttabs",
    "don't I'LL é字 123456 ",
    "<eos> x<pad>",
    "Ünï — 🙂",
    "a",
    " ",
]


@pytest.fixture
def run(runs):
    """A run with a Llama, an adapter and a byte-level BPE tokenizer."""
    return runs["llama"]


def saved(config, tokenizer, folder):
    """A run directory with a random model of a config and a tokenizer."""
    config.vocab_size = len(tokenizer) + 3  # as models whose embeddings are padded to a round number
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    made = model(config)
    for parameter in made.parameters():  # biases and norms start at 0 and 1
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    made.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return FinishedRun(folder, {}, {})


def written(finished, precision="fp32"):
    path = finished.directory / f"{precision}.gguf"
    write_gguf(finished, path, precision)
    return path


@pytest.mark.parametrize("family", ["llama", "llama_tied", "mistral", "qwen2"])  # it does not read all of the others
def test_the_reader_of_transformers_finds_the_same_model_and_tokens(run, family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    finished = saved(FAMILIES[family], tokenizer, tmp_path)
    path = written(finished)
    if family != "llama_tied":  # nor the biases of a Llama
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
        assert_close(logits(read), logits(AutoModelForCausalLM.from_pretrained(finished.model)))
    if family.startswith("qwen"):
        return  # a tokenizer of its own, whatever the file says
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert [again(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS
    ]


def fields(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_a_run_is_exported_with_its_sizes_its_template_and_every_number(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "gguf", "--out", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "out").glob("*.gguf")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: llama-cli -m {path} --jinja"
    values, tensors = fields(path)
    policy, tokenizer = (
        AutoModelForCausalLM.from_pretrained(run / "policy"),
        AutoTokenizer.from_pretrained(run / "policy"),
    )
    state, heads = policy.state_dict(), policy.config.num_attention_heads
    assert values["general.architecture"] == "llama"
    assert values["llama.attention.head_count"] == heads
    assert values["llama.context_length"] == policy.config.max_position_embeddings
    assert values["tokenizer.chat_template"] == tokenizer.chat_template
    assert values["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert values["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight"].data, state["model.layers.1.mlp.down_proj.weight"])
    query = state["model.layers.0.self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight"].data, in_pairs(query, heads))
    assert len(tensors) == len(state)


def test_rotary_pairs_stand_beside_each_other():
    rows = np.arange(12)[:, None]  # two heads of six units: 0 turns with 3, 1 with 4, 2 with 5
    assert in_pairs(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize(("precision", "largest"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_half_precision_rounds_matrices_alone(run, tmp_path, precision, largest):
    finished = saved(FAMILIES["llama"], AutoTokenizer.from_pretrained(run / "policy"), tmp_path)
    _, whole = fields(written(finished))
    _, half = fields(written(finished, precision))
    for name, tensor in half.items():
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(whole[name].data.shape)
        if tensor.data.ndim < 2:
            np.testing.assert_array_equal(numbers, whole[name].data)
        else:
            np.testing.assert_allclose(numbers, whole[name].data, rtol=largest, atol=1e-7)
            assert not np.array_equal(numbers, whole[name].data)


def test_a_weight_too_large_for_fp16_is_refused(run, tmp_path):
    finished = saved(FAMILIES["llama"], AutoTokenizer.from_pretrained(run / "policy"), tmp_path)
    broken = AutoModelForCausalLM.from_pretrained(finished.model)
    broken.lm_head.weight.data[0, 0] = 1e5
    broken.save_pretrained(finished.model)
    with pytest.raises(InputError, match=r"a weight of output.weight is larger than 65504; use --dtype bf16"):
        write_gguf(finished, tmp_path / "a.gguf", "fp16")


def server(path):
    """llama.cpp with a model, and a function that posts to its server; keys and values are cached in float32."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="no llama.cpp: the package xllamacpp is not installed")
    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(path)
    wanted.n_ctx, wanted.cpuparams.n_threads, wanted.warmup, wanted.n_parallel = 64, 1, False, 1
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in float16
    wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    running = xllamacpp.Server(wanted)

    def post(where, body):
        request = urllib.request.Request(
            running.listening_address + where, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=60))

    return running, post


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same_distribution_from_the_same_tokens(run, family, tmp_path):
    finished = saved(FAMILIES[family], AutoTokenizer.from_pretrained(run / "policy"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(finished.model)  # of Qwen2, whatever class had saved it
    running, post = server(written(finished))
    ids = (torch.arange(40) * 7 % 200 + 3).tolist()
    whole = AutoModelForCausalLM.from_pretrained(finished.model)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    plain = {"n_predict": 1, "n_probs": len(tokenizer), "post_sampling_probs": False, "samplers": []}
    forced = {"logit_bias": [[tokenizer.convert_tokens_to_ids("e"), 1000.0]]}  # half a character would not be told
    answer = post("/completions", {"prompt": ids, **plain, **forced})
    found = {top["id"]: top["logprob"] for top in answer["completion_probabilities"][0]["top_logprobs"]}
    assert len(found) > 250
    assert max(abs(whole[number].item() - logp) for number, logp in found.items()) < 2e-4
    for text in TEXTS:
        tokens = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        assert tokens == tokenizer(text)["input_ids"]
    del running


def refused(finished):
    with pytest.raises(InputError) as caught:
        write_gguf(finished, finished.directory / "a.gguf", "fp32")
    assert "use --to merged" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GPT2Config(n_embd=16, n_layer=1, n_head=2), "GPT2LMHeadModel is not written; known are LlamaForCausalLM"),
        (MistralConfig(**SIZES, sliding_window=8), "sliding-window attention"),
        (Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding-window"),
        (LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "'dynamic'"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act=gelu"),
    ],
    ids=["gpt2", "mistral", "qwen2", "rope", "gelu"],
)
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(run, tmp_path, config, says):
    assert says in refused(saved(config, AutoTokenizer.from_pretrained(run / "policy"), tmp_path))


def bpe(split=None, normalizer=None, **options):
    """A byte-level BPE tokenizer of single bytes and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {c: i + 1 for i, c in enumerate(alphabet)} | {"se": 257}
    made = Tokenizer(models.BPE(vocabulary, [("s", "e")], **options))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    made.pre_tokenizer = byte_level if split is None else pre_tokenizers.Sequence([split, byte_level])
    made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def word_level():
    made = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (word_level(), "the tokenizer is WordLevel"),
        (bpe(pre_tokenizers.Split(Regex(r"\w+"), "isolated")), "splits text into words in a way"),
        (bpe(normalizer=normalizers.Lowercase()), "normalises text by Lowercase"),
        (bpe(ignore_merges=True), "ignore_merges=True, unlike llama.cpp's gpt-2"),
    ],
    ids=["words", "split", "normalizer", "merges"],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path, tokenizer, says):
    assert says in refused(saved(LlamaConfig(**SIZES), tokenizer, tmp_path))


@pytest.mark.parametrize(("pattern", "name"), SPLITS.items(), ids=SPLITS.values())
def test_the_splits_of_llama_3_and_qwen_2_are_those_of_llama_cpp(tmp_path, pattern, name):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer = bpe(split, ignore_merges=name == "llama-bpe")
    path = written(saved(LlamaConfig(**SIZES), tokenizer, tmp_path))
    assert fields(path)[0]["tokenizer.ggml.pre"] == name
    _running, post = server(path)
    for text in TEXTS[:3]:
        tokens = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        assert tokens == tokenizer(text)["input_ids"]


def pieces(complete=True):
    """A BPE tokenizer as SentencePiece's of Llama 2: bytes, characters, and pieces with all ways to make them."""
    texts = ["▁t", "he", "▁the", "er", "ab", "aba", "bab", "abab", "oo", "ooo", "oooo", "▁▁", "▁there"]
    start = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *"▁abehort.,"]
    vocabulary = {text: number for number, text in enumerate([*start, *texts])}
    ways = [(t[:k], t[k:]) for t in texts for k in range(1, len(t)) if t[:k] in vocabulary and t[k:] in vocabulary]
    merges = ways if complete else ways[:-1]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_pieces_of_sentencepiece_are_those_of_llama_cpp(tmp_path):
    tokenizer = pieces()
    path = written(saved(LlamaConfig(**SIZES), tokenizer, tmp_path))
    assert fields(path)[0]["tokenizer.ggml.model"] == "llama"
    _running, post = server(path)
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list("abehort.,  é字"), rng.integers(1, 40))) for _ in range(100)]
    for text in [*TEXTS[:3], "the there ooooo ababab", "a</s> b", *drawn]:
        tokens = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        assert tokens == tokenizer(text)["input_ids"], text


def test_pieces_of_which_a_merge_is_left_out_are_refused(tmp_path):
    finished = saved(LlamaConfig(**SIZES), pieces(complete=False), tmp_path)
    assert "merges in another order than SentencePiece" in refused(finished)
