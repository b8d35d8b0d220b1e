import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from shiqrun.batching.chat_template import Conversation
from shiqrun.batching.encode import tokens_through_last_action
from shiqrun.data.chats import prompt_name
from shiqrun.errors import InputError
from shiqrun.rewards.provenance import provenance_of
from shiqrun.rewards.reward import Answered
from tests.rewards.classifiers import ANSWERS, SIZES, head_at_the_end, items, reward, save, tokens
from tests.support import helpers

PADS = {"own pad": {"pad": "<pad>"}, "pad is EOS": {"pad": "</s>"}, "no pad": {"pad": None}}
TEMPLATES = {
    "chatml": helpers.CHATML,
    "eos outside the marks": helpers.MARKED_EOS_OUTSIDE,
    "bare": helpers.BARE,
    "plain": None,
}


def ours(folder, names=()):
    """Makes the directory one of shiqrun's own reward models."""
    (folder / "shiqrun.json").write_text(json.dumps(provenance_of(names).file_content()))
    return folder


# ------------------------------------------------------------------ where the score is read
@pytest.mark.parametrize("special", PADS.values(), ids=PADS)
@pytest.mark.parametrize("template", [helpers.CHATML, None], ids=["ends in a newline", "ends in EOS"])
def test_a_foreign_model_is_read_at_its_last_token_whatever_the_padding(tmp_path, special, template):
    save(tmp_path, template=template, **special)
    expected = [head_at_the_end(tmp_path, tokens(tmp_path, item)) for item in items()]
    assert reward(tmp_path).score(items()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("special", PADS.values(), ids=PADS)
def test_our_own_model_is_read_at_the_last_action(tmp_path, special):
    ours(save(tmp_path, **special))
    expected = []
    for item in items():
        ids = tokens(tmp_path, item)
        end = len(ids) - ids[::-1].index(helpers.tokenizer(**special).convert_tokens_to_ids("<|im_end|>"))
        assert end == len(ids) - 1  # a newline follows, which no policy is trained to write
        expected.append(head_at_the_end(tmp_path, ids[:end]))
    assert reward(tmp_path).score(items()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_last_action_is_the_one_that_training_has(template):
    made = helpers.tokenizer(template)
    turns = [helpers.assistant("hi"), helpers.tool("sunny"), helpers.assistant("the weather is fine")]
    for completion in ([helpers.assistant("fine, thank you")], turns):
        (trained,), dropped = helpers.encoded(made, helpers.example(completion))
        assert not dropped
        (read,) = tokens_through_last_action([Conversation([helpers.user("hello"), *completion], 1, "x")], made)
        assert read == trained.input_ids[: trained.action_index[-1] + 1].tolist()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_an_empty_answer_ends_where_the_template_closes_it(template):
    made = helpers.tokenizer(template)
    (read,) = tokens_through_last_action([Conversation([helpers.user("hello"), helpers.assistant("")], 1, "x")], made)
    closing = "<|im_end|>" if template == helpers.CHATML else "</s>"
    assert made.decode(read).endswith(closing)


def test_what_follows_the_last_answer_is_not_read_by_our_own_model(tmp_path):
    ours(save(tmp_path))
    first = Answered([helpers.user("hello")], [helpers.assistant("fine")])
    longer = Answered(first.prompt, [*first.completion, helpers.tool("sunny")])
    made = reward(tmp_path)
    assert made.score([first]) == made.score([longer])


def test_scores_depend_neither_on_batch_size_nor_on_order_nor_on_company(tmp_path):
    save(tmp_path, pad="</s>")
    given = items(ANSWERS * 3)
    alone = [reward(tmp_path).score([item])[0] for item in given]
    assert len({round(x, 4) for x in alone}) == len(given)
    for batch_tokens in (1, 70, 8192):
        made = reward(tmp_path, batch_tokens=batch_tokens)
        assert made.score(given) == pytest.approx(alone, abs=1e-5)
        assert made.score(given[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


def test_no_items_no_scores(tmp_path):
    assert reward(save(tmp_path)).score([]) == []


def test_weights_are_read_in_float32_whatever_they_are_saved_in(tmp_path):
    save(tmp_path)
    half = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert {p.dtype for p in reward(tmp_path).classifier.model.parameters()} == {torch.float32}


def test_scores_are_float32_inside_a_run_in_bfloat16(tmp_path):
    made = reward(save(tmp_path))
    plain = made.score(items())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.score(items()) == plain


def test_centre_and_scale(tmp_path):
    save(tmp_path)
    plain = reward(tmp_path).score(items())
    assert reward(tmp_path, center=1.5, scale=-2.0).score(items()) == pytest.approx([-2 * (x - 1.5) for x in plain])


def test_a_tokenizer_without_template_gets_the_plain_one_and_says_so(tmp_path, caplog):
    save(tmp_path, template=None)
    (tmp_path / "chat_template.jinja").unlink()
    (item,) = items(["fine"])
    text = "<s>User: how are you 0\n\nAssistant: fine</s>"
    ids = helpers.tokenizer(None).encode(text, add_special_tokens=False)
    with caplog.at_level(logging.INFO, logger="shiqrun"):
        assert reward(tmp_path).score([item]) == pytest.approx([head_at_the_end(tmp_path, ids)], abs=1e-4)
    assert "no chat template" in caplog.text


# ------------------------------------------------------------------ other architectures
def bert(folder, **special):
    made = helpers.tokenizer(helpers.BARE, context=64, **special)
    config = BertConfig(**SIZES, vocab_size=len(made), max_position_embeddings=64, num_labels=1, initializer_range=0.5)
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_encoder_gives_what_it_gives_each_text_alone(tmp_path):
    bert(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    given = items(["fine", "fine, thank you. And you?", "no"])
    expected = [float(model(input_ids=torch.tensor([tokens(tmp_path, item)])).logits) for item in given]
    assert reward(tmp_path).score(given) == pytest.approx(expected, abs=1e-5)
    assert reward(tmp_path, batch_tokens=1).score(given) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_without_pad_token_is_refused(tmp_path):
    bert(tmp_path, pad=None)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text) | {"pad_token_id": None}))
    with pytest.raises(InputError, match=r"reward\.path=.*BertForSequenceClassification needs a pad token"):
        reward(tmp_path).score(items())


def test_a_model_whose_score_changes_with_padding_is_refused(tmp_path):
    """BART reads its last EOS, so it takes padding with EOS for the end of the text."""
    made = helpers.tokenizer(None, pad="</s>")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64, "init_std": 0.5}
    ids = {"pad_token_id": 2, "eos_token_id": made.eos_token_id, "decoder_start_token_id": made.eos_token_id}
    config = BartConfig(**sizes, **heads, **ids, vocab_size=len(made), num_labels=1)
    BartForSequenceClassification(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="shiqrun cannot read its head"):
        reward(tmp_path).score(items(["fine", "fine, thank you"]))


# ------------------------------------------------------------------ what is no reward model
def refused(folder, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        reward(folder, **options).score(items())
    assert "reward.path" in str(caught.value)
    return str(caught.value)


def test_several_labels_are_refused(tmp_path):
    refused(save(tmp_path, labels=3), "3 labels; a reward model has 1")


def test_a_causal_language_model_is_no_reward_model(tmp_path):
    helpers.llama(400).save_pretrained(tmp_path)
    helpers.tokenizer(helpers.CHATML).save_pretrained(tmp_path)
    assert "algo=reward_model" in refused(tmp_path, "is LlamaForCausalLM, no reward model")


def test_a_causal_language_model_that_claims_one_label_is_no_reward_model(tmp_path):
    model = helpers.llama(400)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path)
    helpers.tokenizer(helpers.CHATML).save_pretrained(tmp_path)
    refused(tmp_path, r"no reward model: its weights lack score\.weight, which would start at random")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save(tmp_path)
    made = helpers.tokenizer(helpers.CHATML)
    rows = len(made)
    made.add_tokens([f"<word{n}>" for n in range(5)])
    made.save_pretrained(tmp_path)
    refused(tmp_path, f"its tokenizer has {rows + 5} tokens, its embedding {rows} rows")


def test_a_score_that_is_no_number_names_the_row(tmp_path):
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, r"6 of 6 texts a score that is no finite number, nan for file:1")


def test_a_text_that_does_not_fit_is_refused_not_cut(tmp_path):
    folder, given = save(tmp_path / "a"), items()
    lengths = [len(tokens(folder, item)) for item in given]
    assert reward(folder).lengths(given) == lengths
    context = max(lengths) - 1
    assert lengths.index(context + 1) == 2
    made = reward(save(tmp_path / "b", context=context))
    with pytest.raises(InputError, match=rf"1 of 6 texts .* context of {context} .*first file:3 .*data\.max_length"):
        made.score(given)
    assert len(made.score(given[:2] + given[3:])) == 5
    assert len(reward(save(tmp_path / "c", context=context + 1)).score(given)) == 6


@pytest.mark.parametrize("path", ["./nowhere", "someone/never-fetched"])
def test_a_path_that_leads_nowhere(path):
    with pytest.raises(InputError, match=r"reward\.path|reward=DIRECTORY"):
        reward(path).score(items())


def test_a_run_directory_names_the_model_inside(tmp_path):
    save(tmp_path / "reward_model")
    refused(tmp_path, f"reward.path={tmp_path}/reward_model")


def test_damaged_weights_are_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    refused(tmp_path, "its weights cannot be loaded")


# ------------------------------------------------------------------ what it was trained on
def test_prompts_it_was_trained_on_are_refused_by_number(tmp_path):
    seen, new = [helpers.user("how are you 0")], [helpers.user("what is new")]
    ours(save(tmp_path), [prompt_name(seen), prompt_name([helpers.user("else")])])
    made = reward(tmp_path)
    made.refuse_seen([new])
    with pytest.raises(InputError, match=r"trained on 1 of these 2 prompts \(its 2 training prompts .*val_fraction"):
        made.refuse_seen([new, seen, seen])


def test_a_model_of_unknown_training_warns_once(tmp_path, caplog):
    made = reward(save(tmp_path))
    for _ in range(2):
        made.refuse_seen([[helpers.user("hello")]])
    assert caplog.text.count("cannot be checked") == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "format 2"),
        ({"reads": "first_token"}, "'first_token'"),
        ({"prompts": {"fingerprint": "0", "names": []}}, "damaged"),
        ({"prompts": None}, "damaged"),
    ],
)
def test_a_provenance_that_this_version_does_not_know_is_refused(tmp_path, change, match):
    save(tmp_path)
    (tmp_path / "shiqrun.json").write_text(json.dumps(provenance_of(["a"]).file_content() | change))
    refused(tmp_path, match)


def test_a_provenance_that_is_no_json_is_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "shiqrun.json").write_text("{")
    refused(tmp_path, "damaged")


def test_the_fingerprint_of_prompts_does_not_depend_on_their_order():
    assert provenance_of(["a", "b"]).fingerprint == provenance_of(["b", "a", "b"]).fingerprint
    assert provenance_of(["a", "b"]).fingerprint != provenance_of(["a", "c"]).fingerprint


# ------------------------------------------------------------------ fingerprint
def test_equal_models_have_equal_fingerprints_wherever_they_are(tmp_path):
    for name in "ab":
        file = save(tmp_path / name) / "tokenizer.json"
        cut = {"direction": "Right", "max_length": 200, "strategy": "LongestFirst", "stride": 0}
        fill = {"direction": "Right", "strategy": "BatchLongest", "pad_to_multiple_of": None, "pad_id": 0}
        also = {"truncation": cut, "padding": fill | {"pad_type_id": 0, "pad_token": "<pad>"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | also))
    one, other = reward(tmp_path / "a"), reward(tmp_path / "b")
    one.score(items())  # tokenizing undoes both of them in the tokenizer
    assert one.fingerprint() == other.fingerprint()
    assert reward(tmp_path / "a", batch_tokens=1).fingerprint() == one.fingerprint()


def test_whatever_changes_a_score_changes_the_fingerprint(tmp_path):
    base = save(tmp_path / "base")
    prints = [reward(base).fingerprint(), *(reward(base, **o).fingerprint() for o in ({"center": 1.0}, {"scale": 2.0}))]
    prints.append(reward(ours(save(tmp_path / "ours"))).fingerprint())
    prints.append(reward(save(tmp_path / "template", template=helpers.BARE)).fingerprint())
    weights = load_file(save(tmp_path / "weights") / "model.safetensors")
    weights["score.weight"][0, 0] += 1
    save_file(weights, tmp_path / "weights" / "model.safetensors", metadata={"format": "pt"})
    prints.append(reward(tmp_path / "weights").fingerprint())
    config = save(tmp_path / "config") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    prints.append(reward(tmp_path / "config").fingerprint())
    assert len(set(prints)) == len(prints)


def test_about_tells_what_a_reader_of_the_number_must_know(tmp_path):
    made = reward(save(tmp_path), center=0.5, scale=2.0)
    expected = {"name": "model", "path": str(tmp_path), "center": 0.5, "scale": 2.0}
    assert made.about() == expected | {"fingerprint": made.fingerprint()}
