"""Strategies against enumeration of all translations, closed forms and sacreBLEU."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from sacrebleu.metrics import CHRF

from mtplug.architectures.base import DecodingState
from mtplug.data.batching import collate
from mtplug.data.tokenizers import EOS, UNK
from mtplug.errors import UserError
from mtplug.search.base import Request
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.combine import Ensemble, ShallowFusion
from mtplug.search.constraints import Constraints
from mtplug.search.coverage import coverage_penalties, cross_attention
from mtplug.search.diverse import DiverseBeam, DiverseBeamConfig
from mtplug.search.sampling import MbrConfig, MinimumBayesRisk, Sampling, SamplingConfig
from mtplug.search.stepwise import Alternatives, AlternativesConfig, Greedy, GreedyConfig
from mtplug.search.utility import chrf_matrix
from mtplug.testing.material import MeanWords, random_batch
from mtplug.translator import Translation
from tests.search.models import RandomModel, every_sequence

SOURCE, LENGTHS = torch.tensor([[3, 4, EOS]]), torch.tensor([3])
LIMIT = {"max_ratio": 0, "max_extra": 4}


def log_probs(model, prefix, source=(3, 4, EOS)):
    logits = model.logits(list(source), [EOS, *prefix])
    return logits.log_softmax(-1)


# --- sampling ---------------------------------------------------------------------------------


def first_tokens(config, count=4000, seed=5):
    """How often each token comes first among samples, `</s>` counted."""
    model = RandomModel(8, seed)
    search = Sampling(SamplingConfig(nbest=count, max_ratio=0, max_extra=2, **config))
    (found,) = search(model, SOURCE, LENGTHS)
    counts = Counter(h.tokens[0] if h.tokens else EOS for h in found)
    p = log_probs(model, []).exp().double()
    p[0] = 0  # padding is never written
    return counts, p / p.sum()


def chi_squared(counts, p, count=4000):
    """Pearson's statistic over the tokens that can come, and their number less one."""
    assert all(p[t] > 0 for t in counts)
    kept = [t for t in range(len(p)) if p[t] > 0]
    return sum((counts[t] - count * p[t]) ** 2 / (count * p[t]) for t in kept), len(kept) - 1


def filtered(p, config):
    p = p ** (1 / config.get("temperature", 1.0))
    p = p / p.sum()
    if "epsilon" in config:
        p = torch.where(p < config["epsilon"], 0.0, p)
    if "top_k" in config:
        p = torch.where(p < p.sort(descending=True).values[config["top_k"] - 1], 0.0, p)
    if "top_p" in config:
        order = p.argsort(descending=True)
        mass = 0.0
        for token in order.tolist():
            keep, mass = mass < config["top_p"] * p.sum(), mass + float(p[token])
            if not keep:
                p[token] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "config",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}, {"epsilon": 0.05},
     {"temperature": 2.0, "top_k": 5, "top_p": 0.9}],
)  # fmt: skip
def test_sampled_frequencies_are_the_models_probabilities(config):
    counts, p = first_tokens(config)
    statistic, freedom = chi_squared(counts, filtered(p, config))
    # The 99.9 % points of the chi-squared distribution with 1 … 7 degrees of freedom.
    critical = [10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322]
    assert statistic < critical[freedom - 1]


def test_chi_squared_sees_a_wrong_temperature():
    counts, p = first_tokens({"temperature": 0.8})
    assert chi_squared(counts, p)[0] > 24.322


def test_samples_do_not_depend_on_the_batch():
    model = RandomModel(9, 1)
    search = Sampling(SamplingConfig(nbest=3, **LIMIT))
    alone = search(model, SOURCE, LENGTHS)[0]
    both = search(model, torch.tensor([[5, EOS, 0], [3, 4, EOS]]), torch.tensor([2, 3]))[1]
    assert [h.tokens for h in alone] == [h.tokens for h in both]
    other = Sampling(SamplingConfig(nbest=3, seed=2, **LIMIT))(model, SOURCE, LENGTHS)[0]
    assert [h.tokens for h in other] != [h.tokens for h in alone]


def test_samples_of_two_prompts_are_drawn_apart():
    """Of texts that are continued, which have no source, all had the same random numbers."""

    class Blind(RandomModel):  # so that equal numbers give equal tokens
        def logits(self, source, prefix):
            return super().logits([], prefix[2:])

    sources, lengths = torch.tensor([[EOS]] * 3), torch.tensor([1] * 3)
    search = Sampling(SamplingConfig(nbest=6, **LIMIT))
    found = search(Blind(9, 1), sources, lengths, [Request([3]), Request([4]), Request([3])])
    one, other, again = ({tuple(h.tokens[1:]) for h in row} for row in found)
    assert one == again != other


@pytest.mark.parametrize(
    "search",
    [
        Sampling(SamplingConfig(nbest=3, **LIMIT)),
        Alternatives(AlternativesConfig(nbest=3, **LIMIT)),
    ],
)
def test_two_threads_may_share_a_strategy(search):
    """One's batch took the other's random numbers, or those of sentences that the other did not have."""

    class Interrupted(RandomModel):
        def forward(self, source_tokens, source_lengths, prev_output_tokens):
            if prev_output_tokens.shape[1] == 2:
                search(RandomModel(9, 1), torch.tensor([[5, EOS]]), torch.tensor([2]))
            return super().forward(source_tokens, source_lengths, prev_output_tokens)

    batch = torch.tensor([[3, 4, EOS], [6, 7, EOS]]), torch.tensor([3, 3])
    assert search(Interrupted(9, 1), *batch) == search(RandomModel(9, 1), *batch)


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"epsilon": 0.999}])
def test_where_filters_leave_one_token_samples_are_what_greedy_search_finds(filters):
    model = RandomModel(9, 1)
    (greedy,) = Greedy(GreedyConfig(**LIMIT))(model, SOURCE, LENGTHS)
    (found,) = Sampling(SamplingConfig(nbest=5, **filters, **LIMIT))(model, SOURCE, LENGTHS)
    assert [h.tokens for h in found] == [greedy[0].tokens] * 5


def test_mbr_takes_the_translation_with_the_greatest_mean_chrf():
    texts = [
        "a big dog runs",
        "a big dog ran",
        "a big dog runs",
        "the cat sleeps",
        "one big dog runs",
    ]
    translations = [Translation(t, 0.0, t.split(), [], True) for t in texts]
    search = MinimumBayesRisk(MbrConfig(nbest=2, samples=5))
    (found,) = search.rank(["x"], [translations])
    chrf = CHRF(word_order=0, eps_smoothing=False)
    mean = {
        t: sum(chrf.sentence_score(t, [r]).score for r in texts) / len(texts) for t in set(texts)
    }
    best = sorted(mean, key=lambda t: -mean[t])[:2]
    assert [t.text for t in found] == best
    assert [t.score for t in found] == pytest.approx([mean[t] for t in best], abs=1e-6)


def test_chrf_of_texts_shorter_than_its_ngrams_is_sacrebleus():
    texts = ["", "a", "b", "ab", "ba", "a b a", "aab", "abab ba", "b a b b a", "abba abba"]
    chrf = CHRF(word_order=0, eps_smoothing=False)
    theirs = [[chrf.sentence_score(t, [r]).score for r in texts] for t in texts]
    np.testing.assert_allclose(chrf_matrix(texts), theirs, atol=1e-9)


# --- what translations must and must not hold -------------------------------------------------


def contains(tokens, phrase):
    return any(tokens[i : i + len(phrase)] == phrase for i in range(len(tokens)))


def test_a_prefix_may_make_a_required_word_longer():
    """It ended the translation at once; the word within the longer one is not the word that is required."""
    inside = torch.arange(12) == 9
    asked = Request(prefix=[3, 9, 5], required=[[[3]]], word_inside=inside)
    for seed in range(4):
        config = BeamConfig(max_ratio=0, max_extra=6, beam=3)
        ((best,),) = BeamSearch(config)(RandomModel(12, seed), SOURCE, LENGTHS, [asked])
        assert best.met and best.tokens[:3] == [3, 9, 5]
        assert contains(best.tokens[3:], [3]) and not contains(best.tokens[3:], [3, 9])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prefix", [[3, 2, 3, 4], [3, 4, 2], [3, 4, 3]])
def test_what_a_prefix_holds_as_a_word_is_met_whatever_longer_word_follows(prefix, seed):
    """It was due again where the prefix has, behind the word itself, a longer one that begins with it."""
    model, inside = RandomModel(5, seed), torch.arange(5) == 4
    asked = Request(prefix=prefix, required=[[[3]]], word_inside=inside)
    config = BeamConfig(max_ratio=0, max_extra=5 - len(prefix), beam=400, length_penalty=0.0)
    (found,) = BeamSearch(config)(model, SOURCE, LENGTHS, [asked])

    def whole(tokens):
        return [n for n, t in enumerate(tokens) if t == 3 and tokens[n + 1 : n + 2] != [4]]

    able = [
        (total, tokens)
        for tokens, total, _ in every_sequence(model, [3, 4, EOS], 6)
        if tokens[: len(prefix)] == prefix and whole(tokens)
        and not contains(tokens[max(len(prefix) - 1, 0) :], [3, 4])
    ]  # fmt: skip
    total, tokens = max(able)
    assert found[0].tokens == tokens and found[0].met
    assert found[0].score == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "phrases",
    [[[[3]]], [[[3, 2]]], [[[2, 2]], [[4]]], [[[3, 4], [4, 4]]], [[[3, 4]], [[4]]]],
)
@pytest.mark.parametrize("inside", [None, 4])
def test_wide_beam_with_required_phrases_finds_the_best_that_holds_them(seed, phrases, inside):
    """`inside`: the token that continues a word, which none follows that ends a phrase."""
    model = RandomModel(5, seed)
    asked = Request(required=phrases)
    if inside:
        asked.word_inside = torch.arange(5) == inside
    # the limit leaves as many tokens more as the phrases have
    forced = sum(max(map(len, forms)) for forms in phrases)
    config = BeamConfig(max_ratio=0, max_extra=5 - forced, beam=400, length_penalty=0.0)
    (found,) = BeamSearch(config)(model, SOURCE, LENGTHS, [asked])
    longer = [[*ids, inside] for forms in phrases for ids in forms]
    able = [
        (total, tokens)
        for tokens, total, _ in every_sequence(model, [3, 4, EOS], 5)
        if all(any(contains(tokens, ids) for ids in forms) for forms in phrases)
        and not any(contains(tokens, ids) for ids in longer)
    ]
    total, tokens = max(able)
    assert found[0].tokens == tokens
    assert found[0].score == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(
    ("phrases", "tokens", "expected"),
    [
        ([[[3, 4]], [[5]]], [3, 4, 3, 5], [1, 2, 2, 3]),  # what is met again is none
        ([[[3, 4, 5], [6, 7]]], [3, 6, 7], [1, 2, 3]),  # of a short spelling less is left
    ],
)
def test_progress_is_the_tokens_that_are_met(phrases, tokens, expected):
    constraints = Constraints([Request(required=phrases)], torch.device("cpu"))
    progress = []
    for token in tokens:
        one = torch.zeros(1, 1, dtype=torch.long)
        constraints.advance(one[0], one, one + token)
        progress.append(int(constraints._progress(constraints.node, constraints.met)))
    assert progress == expected


@pytest.mark.parametrize("seed", range(6))
def test_narrow_beam_keeps_every_required_phrase_and_scores_are_the_models(seed):
    model = RandomModel(12, seed)
    rng = np.random.default_rng(seed)
    phrases = [[rng.integers(2, 12, n).tolist()] for n in (1, 2, 3)]
    config = BeamConfig(max_ratio=0, max_extra=6, beam=3, nbest=3, length_penalty=0.0)
    (found,) = BeamSearch(config)(model, SOURCE, LENGTHS, [Request(required=phrases)])
    for h in found:
        holds = all(contains(h.tokens, ids) for (ids,) in phrases)
        assert h.met == holds and (holds or not h.finished)  # only the limit cuts one short
        forced = [float(log_probs(model, h.tokens[:t])[x]) for t, x in enumerate([*h.tokens, EOS])]
        assert h.token_scores == pytest.approx(forced, abs=1e-4)
        assert h.score == pytest.approx(sum(forced), abs=1e-4)
    assert found[0].met


@pytest.mark.parametrize("nbest", [1, 2])
def test_where_phrases_are_required_a_sentence_is_done_once_no_prefix_would_win_by_ending_next(
    nbest,
):
    """The rule, told anew from what is known at each step; others in the batch wait for a full beam."""
    config = BeamConfig(max_ratio=0, max_extra=8, nbest=nbest, length_penalty=0.5)
    requests, early, ends = [Request(required=[[[7]]]), Request()], [], []
    source, lengths = SOURCE.expand(2, -1), LENGTHS.expand(2)

    class Watched(BeamSearch):
        def done(self, found, best, end, beam):
            answer = super().done(found, best, end, beam)
            enough = len(found) >= nbest and end is not None
            beaten = enough and sorted(h.score for h in found)[-nbest] >= best / end**0.5
            assert answer == (len(found) >= beam or bool(beaten))
            early.append(bool(beaten) and len(found) < beam)
            ends.extend([] if end is None else [end])
            return answer

    for seed in range(8):
        model = RandomModel(12, seed)
        ends.clear()
        found = Watched(config)(model, source, lengths, requests)
        assert len(ends) > 1 and ends == list(
            range(2, len(ends) + 2)
        )  # after a token, with the second
        assert len(found[0]) == nbest and 7 in found[0][0].tokens
        (alone,) = BeamSearch(config)(model, SOURCE, LENGTHS)
        assert [h.tokens for h in found[1]] == [h.tokens for h in alone]
    assert any(early)


@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_obeys_prefix_forbidden_and_repetition(seed):
    model = RandomModel(5, seed)
    request = Request(prefix=[4], forbidden=[[3], [2, 4]])
    shared = {"max_ratio": 0, "max_extra": 4, "length_penalty": 0.0, "no_repeat_ngram": 2}
    config = BeamConfig(beam=400, nbest=9, **shared)
    (found,) = BeamSearch(config)(model, SOURCE, LENGTHS, [request])

    def allowed(tokens):
        bigrams = list(itertools.pairwise(tokens))
        return (
            tokens[:1] == [4] and 3 not in tokens and (2, 4) not in bigrams
            and len(set(bigrams)) == len(bigrams)
        )  # fmt: skip

    able = [(x, t) for t, x, _ in every_sequence(model, [3, 4, EOS], 5) if allowed(t)]
    best = sorted(able, reverse=True)[:9]
    assert [h.tokens for h in found] == [tokens for _, tokens in best]
    assert [h.score for h in found] == pytest.approx([total for total, _ in best], abs=1e-5)


def test_what_is_forbidden_in_one_sentence_is_not_in_the_others_of_its_batch():
    model, config = RandomModel(9, 3), BeamConfig(beam=3, length_penalty=3.0, **LIMIT)
    ((alone,),) = BeamSearch(config)(model, SOURCE, LENGTHS)
    word, other = alone.tokens[0], Request(forbidden=[[8, 8]])
    requests = [Request(forbidden=[[word]]), other]
    (first,), (second,) = BeamSearch(config)(
        model, SOURCE.expand(2, -1), LENGTHS.expand(2), requests
    )
    assert word not in first.tokens and second.tokens == alone.tokens


class Stuttering(RandomModel):
    """Likes to say one word five times, or two in turn."""

    turn = False

    def logits(self, source, prefix):
        liked = 5 - prefix[-1] if self.turn and prefix[-1] in (2, 3) else 2
        scores = super().logits(source, prefix)
        scores[liked] += 9
        scores[EOS] -= 30 * (len(prefix) < 6)
        return scores


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("turn", [False, True])
def test_no_ngram_comes_twice_whatever_its_length(n, turn):
    model = Stuttering(5, 1)
    model.turn = turn
    config = BeamConfig(max_ratio=0, max_extra=6, beam=800, length_penalty=0.0, no_repeat_ngram=n)
    ((best,),) = BeamSearch(config)(model, SOURCE, LENGTHS)

    def allowed(tokens):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return len(set(grams)) == len(grams)

    able = [(x, t) for t, x, _ in every_sequence(model, [3, 4, EOS], 6) if allowed(t)]
    assert best.tokens == max(able)[1]


def test_what_the_rules_leave_nothing_for_is_not_finished():
    everything = Request(forbidden=[[t] for t in range(1, 5)])
    ((found,),) = BeamSearch(BeamConfig(**LIMIT))(RandomModel(5, 0), SOURCE, LENGTHS, [everything])
    assert not found.finished and found.score == -math.inf


def test_greedy_obeys_them_too():
    model = RandomModel(7, 3)
    config = GreedyConfig(max_ratio=0, max_extra=6, no_repeat_ngram=1)
    (found,) = Greedy(config)(model, SOURCE, LENGTHS, [Request(prefix=[5], forbidden=[[4]])])
    tokens = found[0].tokens
    assert tokens[0] == 5 and 4 not in tokens and len(set(tokens)) == len(tokens)


def test_alternatives_are_the_most_probable_tokens_after_the_prefix():
    model = RandomModel(9, 2)
    search = Alternatives(AlternativesConfig(nbest=3, **LIMIT))
    (found,) = search(model, SOURCE, LENGTHS, [Request(prefix=[5, 6])])
    scores = log_probs(model, [5, 6])
    scores[0] = -math.inf
    best = scores.topk(3)
    assert [h.tokens[2] if len(h.tokens) > 2 else EOS for h in found] == best.indices.tolist()
    assert [h.score for h in found] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert all(h.tokens[:2] == [5, 6] for h in found)


# --- beams ------------------------------------------------------------------------------------


def test_diverse_groups_without_diversity_are_beams_of_their_own():
    model = RandomModel(9, 4)
    plain = BeamSearch(BeamConfig(beam=2, nbest=2, **LIMIT))(model, SOURCE, LENGTHS)[0]
    config = DiverseBeamConfig(beam=4, groups=2, diversity=0.0, nbest=2, **LIMIT)
    found = DiverseBeam(config)(model, SOURCE, LENGTHS)[0]
    assert [h.tokens for h in found] == [h.tokens for h in plain]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("groups", "width"), [(3, 1), (2, 2), (3, 3)])
def test_diverse_groups_follow_the_papers_recursion(groups, width, seed):
    """Vijayakumar et al. (2018), algorithm 1, with Hamming diversity."""
    model, strength = RandomModel(9, seed), 1.5
    live = [[([], 0.0)] for _ in range(groups)]
    ended = [{} for _ in range(groups)]
    for step in range(5):
        taken = Counter()
        for g in range(groups):
            if len(ended[g]) == width:
                continue
            able = [
                (total + score - strength * taken[token], total + score, prefix, token)
                for prefix, total in live[g]
                for token, score in enumerate(log_probs(model, prefix).tolist())
                if token == EOS or (token and step < 4)
            ]
            able.sort(reverse=True)
            for _, total, prefix, token in able[:width]:
                if token == EOS and len(ended[g]) < width:
                    ended[g][tuple(prefix)] = total
            able = [one for one in able if one[3] != EOS][:width]
            live[g] = [([*prefix, token], total) for _, total, prefix, token in able]
            taken.update(token for *_, token in able)
    config = DiverseBeamConfig(
        beam=groups * width, groups=groups, diversity=strength, nbest=groups * width, max_ratio=0, max_extra=5,
        length_penalty=0.0,
    )  # fmt: skip
    (found,) = DiverseBeam(config)(model, SOURCE, LENGTHS)
    expected = {tokens: total for group in ended for tokens, total in group.items()}
    assert {tuple(h.tokens): pytest.approx(h.score, abs=1e-4) for h in found} == expected


def test_stop_bound_finds_what_the_full_search_finds_when_scores_only_fall():
    for seed in range(10):
        model = RandomModel(7, seed)
        shared = {"beam": 4, "length_penalty": 0.0, **LIMIT}
        full = BeamSearch(BeamConfig(**shared))(model, SOURCE, LENGTHS)[0][0]
        bound = BeamSearch(BeamConfig(stop="bound", **shared))(model, SOURCE, LENGTHS)[0][0]
        assert bound.score >= full.score - 1e-6


def test_stop_bound_is_refused_where_scores_may_rise():
    """Coverage lowers what has ended, so that a prefix may yet beat it; so does a negative exponent."""
    lm = {"language_model": "lm", "language_model_weight": -0.1}
    for settings in ({"coverage_penalty": 0.1}, {"length_penalty": -1.0}, lm):
        BeamConfig(**settings)
        with pytest.raises(ValueError, match="stop: bound is exact only"):
            BeamConfig(stop="bound", **settings)


class Attending(RandomModel):
    """Looks at the source as a table says."""

    table: torch.Tensor

    def cross_attention(self, source_tokens, source_lengths, prev_output_tokens):
        return self.table[: prev_output_tokens.shape[1]].expand(len(source_tokens), -1, -1)


def test_coverage_penalty_is_equation_14_of_wu_et_al():
    from mtplug.search.base import Hypothesis

    model = Attending(6, 1)
    model.table = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.1, 0.3], [0.1, 0.8, 0.1]])
    found = [[Hypothesis([3, 4], -1.0)]]
    ((value,),) = coverage_penalties(model, SOURCE, LENGTHS, found)
    sums = [0.7 + 0.6 + 0.1, 0.2 + 0.1 + 0.8, 0.1 + 0.3 + 0.1]
    assert value == pytest.approx(sum(math.log(min(s, 1.0)) for s in sums), abs=1e-5)


class Pointing(RandomModel):
    """Each output looks at the source token whose number is that of the token it was given."""

    def cross_attention(self, source_tokens, source_lengths, prev_output_tokens):
        return torch.nn.functional.one_hot(prev_output_tokens, source_tokens.shape[1]).float()


def test_a_model_that_tells_no_next_token_is_shown_the_targets_themselves():
    """Its alignments were those of the tokens before."""
    model, batch = Pointing(6, 1), collate([(np.array([3, 4, 5, 3]), np.array([2, 4, 3]))], [0])
    (shifted,) = cross_attention(model, batch)
    assert shifted.argmax(-1).tolist() == [EOS, 2, 4, 3]
    model.autoregressive = False
    for shown in (model, Ensemble([model, model]), ShallowFusion(model, RandomModel(6, 2), 0.1)):
        (itself,) = cross_attention(shown, batch)
        assert itself.argmax(-1).tolist() == [2, 4, 3, EOS]


# --- models together --------------------------------------------------------------------------


def test_ensemble_averages_probabilities_at_each_step():
    one, two = RandomModel(5, 1), RandomModel(5, 2)
    config = BeamConfig(max_ratio=0, max_extra=4, beam=400, length_penalty=0.0)
    (found,) = BeamSearch(config)(Ensemble([one, two]), SOURCE, LENGTHS)

    def total(tokens):
        return sum(
            math.log((float(log_probs(one, tokens[:t]).exp()[token])
                      + float(log_probs(two, tokens[:t]).exp()[token])) / 2)
            for t, token in enumerate([*tokens, EOS])
        )  # fmt: skip

    best = max((total(t), t) for t, _, _ in every_sequence(one, [3, 4, EOS], 4))
    assert found[0].tokens == best[1]
    assert found[0].score == pytest.approx(best[0], abs=1e-5)


def test_an_ensemble_looks_where_its_members_look_on_average():
    one, two = Attending(6, 1), Attending(6, 2)
    one.table = torch.tensor([[0.6, 0.2, 0.2], [0.4, 0.3, 0.3], [0.2, 0.1, 0.7]])
    two.table = torch.tensor([[0.2, 0.2, 0.6], [0.0, 0.9, 0.1], [0.4, 0.5, 0.1]])
    shown = Ensemble([one, two]).cross_attention(SOURCE, LENGTHS, torch.tensor([[EOS, 3, 4]]))
    torch.testing.assert_close(shown[0], (one.table + two.table) / 2)


def test_fusion_adds_weighted_scores_of_the_language_model():
    model, language = RandomModel(5, 1), RandomModel(5, 2)
    config = BeamConfig(max_ratio=0, max_extra=4, beam=400, length_penalty=0.0)
    (found,) = BeamSearch(config)(ShallowFusion(model, language, 0.3), SOURCE, LENGTHS)

    def total(tokens):
        return sum(
            float(log_probs(model, tokens[:t])[token] + 0.3 * log_probs(language, tokens[:t], [EOS])[token])
            for t, token in enumerate([*tokens, EOS])
        )  # fmt: skip

    best = max((total(t), t) for t, _, _ in every_sequence(model, [3, 4, EOS], 4))
    assert found[0].tokens == best[1]
    assert found[0].score == pytest.approx(best[0], abs=1e-5)


@pytest.mark.parametrize("together", [Ensemble, lambda models: ShallowFusion(*models, 0.3)])
def test_features_of_a_step_make_its_logits(together):
    """What is made of models could not itself be part of one that looks at features: `extend` was not theirs."""
    models = [MeanWords(seed=1).eval(), MeanWords(seed=2, dim=8).eval()]
    both, batch = together(models), random_batch()
    apart, whole = (both.start(*batch.inputs[:2]) for _ in range(2))
    for t in range(3):
        tokens = batch.prev_output_tokens[:, t : t + 1]
        with torch.no_grad():
            found, wanted = both.project(both.extend(apart, tokens)), both.step(whole, tokens)
        torch.testing.assert_close(found, wanted)


def test_a_model_with_a_step_of_its_own_says_that_it_has_no_features():
    class Own(RandomModel):
        def start(self, source_tokens, source_lengths):
            return type("State", (DecodingState,), {"reorder": None})()

        def step(self, state, tokens):
            return torch.zeros(*tokens.shape, 5)

    alone = Own(5, 1)
    both = Ensemble([alone, alone])
    state = both.start(SOURCE, LENGTHS)
    assert both.step(state, SOURCE[:, :1]).shape == (1, 1, 5)
    with pytest.raises(UserError, match="search: Own decodes by a step of its own"):
        both.extend(state, SOURCE[:, :1])


@pytest.mark.parametrize("seed", range(4))
def test_no_translation_holds_what_is_unknown(seed):
    """Token 2 of the model; where a prefix has it, it stays."""
    model = RandomModel(5, seed)
    limits = {"max_ratio": 0, "max_extra": 4}
    (wide,) = BeamSearch(BeamConfig(**limits, beam=400, nbest=400))(model, SOURCE, LENGTHS)
    assert any(UNK in h.tokens for h in wide)
    limits["allow_unknown"] = False
    (found,) = BeamSearch(BeamConfig(**limits, beam=400, nbest=5, length_penalty=0.0))(
        model, SOURCE, LENGTHS
    )
    able = [(x, t) for t, x, _ in every_sequence(model, [3, 4, EOS], 4) if UNK not in t]
    assert [h.tokens for h in found] == [tokens for _, tokens in sorted(able, reverse=True)[:5]]
    (greedy,) = Greedy(GreedyConfig(**limits))(model, SOURCE, LENGTHS)
    (samples,) = Sampling(SamplingConfig(**limits, nbest=50))(model, SOURCE, LENGTHS)
    assert not any(UNK in h.tokens for h in [*greedy, *samples])
    forced = BeamSearch(BeamConfig(**limits))(model, SOURCE, LENGTHS, [Request([UNK])])
    assert forced[0][0].tokens[0] == UNK and UNK not in forced[0][0].tokens[1:]


@pytest.mark.parametrize("seed", range(4))
def test_no_translation_is_shorter_than_the_least_length(seed):
    model = RandomModel(5, seed)
    limits = {"max_ratio": 0, "max_extra": 5, "min_length": 2}
    (found,) = BeamSearch(BeamConfig(**limits, beam=400, nbest=5, length_penalty=0.0))(
        model, SOURCE, LENGTHS
    )
    able = [(x, t) for t, x, _ in every_sequence(model, [3, 4, EOS], 5) if len(t) >= 2]
    assert [h.tokens for h in found] == [tokens for _, tokens in sorted(able, reverse=True)[:5]]
    assert found[0].score == pytest.approx(
        max(able)[0], abs=1e-5
    )  # of what remains, the model's own
    (greedy,) = Greedy(GreedyConfig(**limits))(model, SOURCE, LENGTHS)
    (samples,) = Sampling(SamplingConfig(**limits, nbest=50))(model, SOURCE, LENGTHS)
    assert all(2 <= len(h.tokens) <= 4 for h in [*greedy, *samples])
    short = {"max_ratio": 0, "max_extra": 2, "min_length": 9}  # the greatest length decides
    (cut,) = BeamSearch(BeamConfig(**short))(model, SOURCE, LENGTHS)
    assert len(cut[0].tokens) == 1 and math.isfinite(cut[0].score)
