import inspect
from functools import partial
from math import exp, log
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiqrun.data.treasure import Treasure
from shiqrun.data.treasure_optimum import ExactTreasure
from shiqrun.errors import InputError
from shiqrun.models.tiny import Tiny

CONF = Path(__file__).parents[2] / "conf" / "data" / "treasure.yaml"
BETA = 0.5
WAY = {"N": (-1, 0), "E": (0, 1), "S": (1, 0), "W": (0, -1)}


def treasure(**changes):
    settings = {k: v for k, v in OmegaConf.load(CONF).items() if k in inspect.signature(Treasure).parameters}
    return Treasure(**{**settings, **changes})


def micro(**changes):
    return treasure(**{"size": 2, "horizon": 2, "maps": 8, "val_maps": 6, **changes})


def tokenizer_of(source):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1, "initializer_range": 0.1}
    return Tiny(**shape, max_position_embeddings=64, vocab_size=300).tokenizer(source, [])


def llama(vocabulary, seed, **changes):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=0.3, **{**shape, **changes}))


class Naive:
    """All token strings of a map, spelled out with the rules written once more; one forward pass a prefix."""

    def __init__(self, tokenizer, prompt, horizon):
        pairs = iter(prompt.replace("r", " ").replace("c", " ").split())
        numbers = [int(w) for w in pairs if w.isdigit()]
        self.start, self.goal, self.item = zip(numbers[::2], numbers[1::2], strict=True)
        self.tokenizer, self.prompt, self.horizon = tokenizer, prompt, horizon

    def prefix(self, words):
        chat = [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": " ".join(words)}]
        chat = chat if words else chat[:1]
        return self.tokenizer.apply_chat_template(chat, return_dict=False)

    def strings(self, words=(), place=None, found=False, depth=0):
        """[(prefixes, tokens, return, illegal)] of every episode from here on."""
        place = place or self.start
        here, ids = self.prefix(words), self.tokenizer.get_vocab()
        episodes = []
        for word, token in ids.items():
            if word not in WAY:
                episodes.append(([here], [token], 0.0, True))
                continue
            new = tuple(min(max(place[i] + WAY[word][i], 0), 1) for i in (0, 1))
            earned = -0.1 + (new == self.item and not found) + 2.0 * (new == self.goal)
            if new == self.goal or depth + 1 == self.horizon:
                episodes.append(([here], [token], earned, False))
                continue
            said = (*words, word, f"r{new[0]}", f"c{new[1]}")
            for prefixes, tokens, later, illegal in self.strings(said, new, found or new == self.item, depth + 1):
                episodes.append(([here, *prefixes], [token, *tokens], earned + later, illegal))
        return episodes

    def logps(self, logits, episodes):
        """log-probability of every episode's tokens, nats; `logits` is a function of one prefix."""
        rows = {}
        for prefixes, _, _, _ in episodes:
            for prefix in prefixes:
                if tuple(prefix) not in rows:
                    rows[tuple(prefix)] = logits(torch.tensor([prefix])).double().log_softmax(-1).tolist()
        return [sum(rows[tuple(p)][t] for p, t in zip(e[0], e[1], strict=True)) for e in episodes]


@torch.no_grad()
def last_logits(model, ids):
    return model(input_ids=ids).logits[0, -1]


def naive_figures(source, tokenizer, reference, policy, horizon):
    """The figures of `evaluate`, by sums over all strings."""
    rows = []
    for example in source.load("val"):
        naive = Naive(tokenizer, example.prompt_id, horizon)
        episodes = naive.strings()
        ref = naive.logps(partial(last_logits, reference), episodes)
        pol = naive.logps(partial(last_logits, policy), episodes)
        returns = [e[2] for e in episodes]
        optimum = BETA * log(sum(exp(q + r / BETA) for q, r in zip(ref, returns, strict=True)))
        star = [q + (r - optimum) / BETA for q, r in zip(ref, returns, strict=True)]
        row = {
            "optimum": optimum,
            "optimum_reward": sum(exp(p) * r for p, r in zip(star, returns, strict=True)),
            "optimum_kl": sum(exp(p) * (p - q) for p, q in zip(star, ref, strict=True)),
            "reward": sum(exp(p) * r for p, r in zip(pol, returns, strict=True)),
            "kl": sum(exp(p) * (p - q) for p, q in zip(pol, ref, strict=True)),
            "regret": BETA * sum(exp(p) * (p - s) for p, s in zip(pol, star, strict=True)),
            "illegal": sum(exp(p) for p, e in zip(pol, episodes, strict=True) if e[3]),
            "reference_illegal": sum(exp(q) for q, e in zip(ref, episodes, strict=True) if e[3]),
        }
        rows.append({**row, "regularised_return": row["reward"] - BETA * row["kl"]})
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@pytest.mark.parametrize("fillers", [0, 3])
def test_figures_are_those_of_a_sum_over_all_token_strings(fillers):
    source = micro(fillers=fillers)
    tokenizer = tokenizer_of(source)
    reference, policy = llama(len(tokenizer), 0).eval(), llama(len(tokenizer), 1).eval()
    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(reference)
    # The models are float32, and their logits depend a little on how rows are batched.
    expected = naive_figures(source, tokenizer, reference, policy, 2)
    assert exact.evaluate(policy) == pytest.approx(expected, abs=1e-5)
    assert exact.evaluate(reference)["reference_illegal"] == pytest.approx(expected["reference_illegal"], abs=1e-5)


@pytest.fixture(scope="module")
def problem():
    """The real sizes, with a reference that moves: random weights put little mass on the four moves."""
    source = treasure(maps=64, val_maps=16)
    tokenizer = tokenizer_of(source)
    exact = source.exact(tokenizer, split="val", beta=BETA)
    moves = torch.tensor(tokenizer.convert_tokens_to_ids(["N", "E", "S", "W"]))
    reference, policy = (mover(llama(len(tokenizer), seed), moves) for seed in (0, 1))
    exact.set_reference(reference)
    return exact, reference, policy


def mover(model, moves):
    """Logits of a model whose moves are made more likely."""

    @torch.no_grad()
    def logits(ids):
        out = model(input_ids=ids).logits
        return out.index_add(-1, moves, torch.full((*out.shape[:2], 4), 3.0))

    return logits


def test_regret_is_beta_times_the_divergence_from_the_optimum_by_another_recursion(problem):
    exact, _, policy = problem
    figures = exact.evaluate(policy)
    assert figures["regret"] > 0.1
    assert exact.identity_gap < 1e-6


def test_the_reference_has_no_divergence_and_regret_optimum_minus_its_reward(problem):
    exact, reference, _ = problem
    figures = exact.evaluate(reference)
    assert figures["kl"] == 0
    assert figures["illegal"] == figures["reference_illegal"]
    assert figures["regret"] == pytest.approx(figures["optimum"] - figures["reward"])
    assert exact.identity_gap < 1e-6


def test_sampled_return_agrees_with_the_exact_one_within_its_error(problem):
    exact, _, policy = problem
    episodes = exact.sample_episodes(policy, 6400, seed=0)
    returns = torch.tensor([sum(e.rewards) for e in episodes])
    illegal = torch.tensor([float(len(e.words) > len(e.cells)) for e in episodes])
    figures = exact.evaluate(policy)
    for sample, figure in ((returns, figures["reward"]), (illegal, figures["illegal"])):
        assert abs(sample.mean() - figure) < 4 * sample.std() / len(sample) ** 0.5


def test_sampled_episodes_are_a_function_of_the_seed(problem):
    exact, _, policy = problem
    assert exact.sample_episodes(policy, 20, seed=3) == exact.sample_episodes(policy, 20, seed=3)
    assert exact.sample_episodes(policy, 20, seed=3) != exact.sample_episodes(policy, 20, seed=4)


def test_the_optimal_policy_has_no_regret():
    """pi* made of naive values: a table of logits, one row a prefix."""
    source = micro()
    tokenizer = tokenizer_of(source)
    reference = llama(len(tokenizer), 0).eval()
    table = {}
    for example in source.load("val"):
        naive = Naive(tokenizer, example.prompt_id, 2)
        episodes = naive.strings()
        logps = naive.logps(partial(last_logits, reference), episodes)
        for (prefixes, tokens, gained, _), logp in zip(episodes, logps, strict=True):
            for prefix, token in zip(prefixes, tokens, strict=True):
                row = table.setdefault(tuple(prefix), torch.zeros(len(tokenizer), dtype=torch.float64))
                row[token] += exp(logp + gained / BETA)  # mass of pi* on all strings through here

    def optimal(ids):
        rows = [[table.get(tuple(x[: t + 1]), torch.ones(len(tokenizer))) for t in range(len(x))] for x in ids.tolist()]
        return torch.stack([torch.stack(row) for row in rows]).log()

    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(reference)
    figures = exact.evaluate(optimal)
    assert figures["kl"] > 0.1
    assert figures["regret"] == pytest.approx(0, abs=1e-6)
    assert figures["kl"] == pytest.approx(figures["optimum_kl"], abs=1e-5)
    assert figures["reward"] == pytest.approx(figures["optimum_reward"], abs=1e-5)


def test_modes_of_the_model_and_its_parts_are_restored():
    source = micro()
    tokenizer = tokenizer_of(source)
    model = llama(len(tokenizer), 0).train()
    model.model.layers[0].eval()
    before = {name: m.training for name, m in model.named_modules()}
    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(model)
    exact.sample_episodes(model, 2, seed=0)
    assert {name: m.training for name, m in model.named_modules()} == before


def test_dropout_is_off_while_evaluating():
    source = micro()
    tokenizer = tokenizer_of(source)
    model = llama(len(tokenizer), 0, attention_dropout=0.5).train()
    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(model)
    assert exact.evaluate(model)["kl"] == 0


def test_the_first_maps_of_a_split_can_be_chosen():
    source = micro()
    exact = ExactTreasure(source.maps("train").first(3), tokenizer_of(source), beta=BETA)
    assert [exact.maps.prompt(i) for i in range(len(exact.maps))] == [e.prompt_id for e in source.load("train")][:3]


def test_a_policy_with_more_tokens_than_the_tokenizer_is_evaluated():
    source = micro()
    tokenizer = tokenizer_of(source)
    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(llama(len(tokenizer) + 5, 0))
    assert exact.evaluate(llama(len(tokenizer) + 5, 1))["regret"] > 0


def made(vocabulary, template, splitter=None, unknown="<unk>"):
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    fast.pre_tokenizer = splitter or pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token=unknown, bos_token="<bos>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "case", ["word missing", "words with one token", "word in pieces", "no template", "other template"]
)
def test_a_foreign_tokenizer_is_refused_with_the_model_to_choose(case):
    source = micro()
    words, template = [*source.vocabulary, "<unk>", "r", "c", "0", "1"], source.chat_template
    if case == "word missing":
        tokenizer = made([w for w in words if w != "E"], template)
    elif case == "words with one token":
        tokenizer = made([w for w in words if w not in "EW"], template, unknown=None)
    elif case == "word in pieces":
        digits = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True)])
        tokenizer = made(words, template, digits)
    elif case == "no template":
        tokenizer = made(words, None)
    else:
        tokenizer = made(words, "{% for m in messages %}start {{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="model=tiny"):
        source.exact(tokenizer, split="val", beta=BETA)


def test_a_policy_that_has_other_tokens_than_its_reference_is_refused():
    source = micro()
    tokenizer = tokenizer_of(source)
    exact = source.exact(tokenizer, split="val", beta=BETA)
    exact.set_reference(llama(len(tokenizer), 0))
    with pytest.raises(InputError, match="tokens"):
        exact.evaluate(llama(len(tokenizer) + 1, 0))
