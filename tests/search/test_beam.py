"""Search against exhaustive enumeration, and what may not change its results."""

import random

import pytest
import torch

import mtplug
from mtplug.data.tokenizers import EOS
from mtplug.search.base import Request
from mtplug.search.beam import BeamConfig, BeamSearch
from mtplug.search.stepwise import Greedy, GreedyConfig
from mtplug.search.topk import top_tokens
from tests import tiny
from tests.search.models import RandomModel, every_sequence


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("norm", "penalty"), [("average", 0.0), ("average", 1.0), ("average", 2.0), ("gnmt", 0.6)]
)
def test_wide_beam_finds_what_enumeration_finds(seed, norm, penalty):
    model = RandomModel(5, seed)
    source, lengths = torch.tensor([[3, 4, EOS], [2, EOS, 0]]), torch.tensor([3, 2])
    config = BeamConfig(
        max_ratio=0, max_extra=5, beam=400, nbest=5, length_norm=norm, length_penalty=penalty
    )
    search = BeamSearch(config)
    found = search(model, source, lengths)
    for row in range(2):
        truth = [
            (search.normalised(total, length), tokens)
            for tokens, total, length in every_sequence(
                model, source[row, : lengths[row]].tolist(), 5
            )
        ]
        truth.sort(key=lambda item: -item[0])
        assert [h.tokens for h in found[row]] == [tokens for _, tokens in truth[:5]]
        for hypothesis, (score, _) in zip(found[row], truth, strict=False):
            assert hypothesis.score == pytest.approx(score, abs=1e-5)
            total = sum(hypothesis.token_scores)
            assert search.normalised(total, len(hypothesis.tokens) + 1) == pytest.approx(
                score, abs=1e-5
            )


class Ending(RandomModel):
    """Would rather end, and so gives a narrow beam ends among its best continuations."""

    def logits(self, source, prefix):
        scores = super().logits(source, prefix)
        scores[EOS] += 2.5
        return scores


def plain_beam(model, beam, limit):
    """(score, tokens): ends among the `beam` best continuations are taken, the `beam` best others go on."""
    alive, found = [(0.0, [])], []
    for length in range(1, limit + 1):
        made = []
        for total, tokens in alive:
            scores = model.logits([3, 4, EOS], [EOS, *tokens]).log_softmax(-1).tolist()
            able = [EOS] if length == limit else range(1, model.vocabulary)
            made += [(total + scores[t], tokens, t) for t in able]
        made.sort(key=lambda one: -one[0])
        found += [(total / length, tokens) for total, tokens, t in made[:beam] if t == EOS]
        if len(found) >= beam:
            break
        alive = [(total, [*tokens, t]) for total, tokens, t in made if t != EOS][:beam]
    return sorted(found[:beam], key=lambda one: -one[0])


@pytest.mark.parametrize("beam", [1, 2, 3, 4])
def test_a_narrow_beam_is_one_written_out(beam):
    config = BeamConfig(beam=beam, nbest=beam, max_ratio=0, max_extra=7)
    for seed in range(12):
        model = Ending(9, seed)
        (found,) = BeamSearch(config)(model, torch.tensor([[3, 4, EOS]]), torch.tensor([3]))
        wanted = plain_beam(model, beam, 7)
        assert [h.tokens for h in found] == [tokens for _, tokens in wanted]
        assert [h.score for h in found] == pytest.approx([x for x, _ in wanted], abs=1e-4)


@pytest.mark.parametrize("size", [64 * 12, 64 * 12 + 37])
def test_the_largest_logits_may_stand_anywhere_in_a_row(size):
    logits = torch.randn(300, size, generator=torch.Generator().manual_seed(1))
    for found, due in zip(top_tokens(logits, 3), logits.topk(3), strict=True):
        assert torch.equal(found, due)


def test_normalisation_is_that_of_the_papers():
    gnmt = BeamSearch(BeamConfig(length_norm="gnmt", length_penalty=0.6))
    assert gnmt.normalised(-3.0, 7) == pytest.approx(-3.0 / ((5 + 7) / 6) ** 0.6)
    assert BeamSearch(BeamConfig()).normalised(-3.0, 6) == pytest.approx(-0.5)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_most_probable_token_each_time(seed):
    model = RandomModel(7, seed)
    source, lengths = torch.tensor([[3, 4, 5, EOS]]), torch.tensor([4])
    (found,) = Greedy(GreedyConfig(max_ratio=1, max_extra=8))(model, source, lengths)
    tokens = []
    while len(tokens) < 11:
        logits = model.logits([3, 4, 5, EOS], [EOS, *tokens])
        logits[0] = -torch.inf
        best = int(logits.argmax())
        if best == EOS:
            break
        tokens.append(best)
    assert found[0].tokens == tokens
    assert found[0].finished == (len(tokens) < 11)


def test_greedy_has_no_beam_to_set(tiny_run):
    translator = mtplug.load(tiny_run, overrides=["search.name=greedy"])
    with pytest.raises(mtplug.UserError, match="unknown setting 'beam'"):
        translator.translate(["ka"], beam=5)


def test_length_limit_depends_on_the_sentence_alone():
    class Endless(RandomModel):
        def logits(self, source, prefix):
            return torch.tensor([0.0, -50.0, 1.0, 2.0])

    source, lengths = torch.tensor([[3, 3, 3, EOS], [3, EOS, 0, 0]]), torch.tensor([4, 2])
    found = BeamSearch(BeamConfig(max_ratio=2, max_extra=1, beam=2))(Endless(4, 0), source, lengths)
    assert [len(h[0].tokens) + 1 for h in found] == [9, 5]
    assert not found[0][0].finished
    asked = [Request(), Request(required=[[[2], [3, 2, 2]]])]  # the longest spelling counts
    found = BeamSearch(BeamConfig(max_ratio=2, max_extra=1))(Endless(4, 0), source, lengths, asked)
    assert [len(h[0].tokens) + 1 for h in found] == [9, 8]


@pytest.fixture(scope="module")
def sentences():
    return [source for source, _ in tiny.pairs(60, seed=77)]


def test_results_do_not_depend_on_batch_size_or_order(tiny_run, sentences):
    translator = mtplug.load(tiny_run)
    expected = translator.nbest(sentences, beam=4, nbest=3)
    shuffled = list(enumerate(sentences))
    random.Random(1).shuffle(shuffled)
    for batch_tokens in (1, 40, 4096):
        translator.batch_tokens = batch_tokens
        found = translator.nbest([s for _, s in shuffled], beam=4, nbest=3)
        for (number, _), translations in zip(shuffled, found, strict=True):
            for mine, theirs in zip(translations, expected[number], strict=True):
                assert mine.text == theirs.text
                assert mine.score == pytest.approx(theirs.score, abs=1e-4)


def test_nbest_is_sorted_and_distinct(tiny_run, sentences):
    for translations in mtplug.load(tiny_run).nbest(sentences[:10], beam=5, nbest=5):
        scores = [t.score for t in translations]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(t.tokens) for t in translations}) == 5


def test_trained_model_translates_word_by_word(tiny_run, sentences):
    found = mtplug.load(tiny_run).translate(sentences)
    right = [" ".join(tiny.LEXICON[w] for w in s.split()) for s in sentences]
    assert sum(f == r for f, r in zip(found, right, strict=True)) >= 50
