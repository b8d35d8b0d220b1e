"""DPO and IPO against TRL's trainer: loss, gradients and metrics of random pairs through a real small model."""

from functools import partial
from random import Random

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiqrun import losses
from shiqrun.types import ActionScores, Trajectories

BETA, VOCABULARY = 0.3, 24


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl", reason="TRL is no dependency: `pip install --no-deps trl` runs this comparison")


def model(seed):
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.5, **size))


def tokenizer():
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    split = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=split, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def compared(trl, folder, pairs, words=None, **settings):
    """(trainer, inputs): TRL's trainer, and its own batch of this many random pairs, of answers of so many words."""
    draw = Random(pairs)

    def text(least, most):
        return " ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(draw.randint(least, most)))

    least, most = (words, words) if words else (1, 8)
    rows = [
        {"prompt": text(1, 5), "chosen": " " + text(least, most), "rejected": " " + text(least, most)}
        for _ in range(pairs)
    ]
    args = trl.DPOConfig(
        str(folder), beta=BETA, use_cpu=True, bf16=False, report_to=[], disable_dropout=True, **settings
    )
    args.per_device_train_batch_size = pairs
    trainer = trl.DPOTrainer(
        model(0), model(1), args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


def trajectories(inputs, pairs):
    """TRL's rows (first the chosen ones) as trajectories: chosen earns 1, its partner 0."""
    places = [mask.nonzero().squeeze(-1).tolist() for mask in inputs["completion_mask"]]
    width = max(len(row) for row in places)
    return Trajectories(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"].bool(),
        action_index=torch.tensor([[*row, *[1] * (width - len(row))] for row in places]),
        action_mask=torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in places]),
        rewards=torch.tensor([[1.0 * (b < pairs), *[0.0] * (width - 1)] for b in range(2 * pairs)]),
        group=torch.arange(pairs).repeat(2),
    )


def scores(network, batch):
    """The dense computation: a loop over actions of the network's logits at the position before."""
    logits = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    rows = range(len(batch.group))
    before = torch.stack([logits[b, batch.action_index[b] - 1] for b in rows])
    taken = torch.stack([batch.input_ids[b, batch.action_index[b]] for b in rows])
    return ActionScores(before.gather(-1, taken[..., None]).squeeze(-1), before.logsumexp(-1))


@pytest.mark.parametrize("pairs", [1, 4, 7])
def test_dpo_is_trls_loss_with_its_gradients_and_metrics(trl, tmp_path, pairs):
    trainer, inputs = compared(trl, tmp_path, pairs)
    assert_equal_to_trl(trainer, inputs, pairs, partial(losses.dpo, beta=BETA))


def test_label_smoothing_is_trls_where_it_smooths_labels_on_one_pair(trl, tmp_path):
    """TRL's `sigmoid` ignores label_smoothing; `aot` sorts a batch, so that of one pair it is the smoothed loss."""
    trainer, inputs = compared(trl, tmp_path, 1, loss_type="aot", label_smoothing=0.2)
    assert_equal_to_trl(trainer, inputs, 1, partial(losses.dpo, beta=BETA, label_smoothing=0.2))


def assert_equal_to_trl(trainer, inputs, pairs, loss):
    network, reference = trainer.model, trainer.ref_model
    theirs = trainer.compute_loss(network, inputs)
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(theirs, weights)
    batch = trajectories(inputs, pairs)
    with torch.no_grad():
        frozen = scores(reference, batch)
    terms = loss(batch, scores(network, batch), frozen)
    ours = terms.total / terms.count
    assert int(terms.count) == pairs
    assert abs(ours.item() - 0.6931) > 1e-2
    assert_close(ours, theirs)
    for found, wanted in zip(torch.autograd.grad(ours, weights), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # float32 sums in another order, through the whole network
    shown = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for name, (total, count) in terms.metrics.items():
        if name != "ties":  # TRL has none: its pairs are labelled
            assert (total / count).item() == pytest.approx(shown[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(("pairs", "words"), [(1, 3), (4, 1), (5, 6)])
def test_ipo_is_trls_loss_at_another_beta_where_all_answers_have_one_length(trl, tmp_path, pairs, words):
    """TRL divides log-ratios by the number of tokens n, as the paper does not: it is IPO of beta / n, over n^2."""
    trainer, inputs = compared(trl, tmp_path, pairs, words, loss_type="ipo")
    (tokens,) = {int(mask.sum()) for mask in inputs["completion_mask"]}
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    theirs = trainer.compute_loss(trainer.model, inputs)
    expected = torch.autograd.grad(theirs, weights)
    batch = trajectories(inputs, pairs)
    with torch.no_grad():
        frozen = scores(trainer.ref_model, batch)
    terms = losses.ipo(batch, scores(trainer.model, batch), frozen, beta=BETA / tokens)
    ours = terms.total / terms.count / tokens**2
    assert_close(ours, theirs)
    for found, wanted in zip(torch.autograd.grad(ours, weights), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # float32 sums in another order, through the whole network
