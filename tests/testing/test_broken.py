"""A check finds what it is there for: for each promise of each kind, a component that breaks only that one."""

import re
from pathlib import Path

import pytest

from mtplug import plugins, testing
from mtplug.architectures.base import why_unfit
from mtplug.config.build import component_from_overrides
from mtplug.contracts import CONTRACTS
from mtplug.criteria import LabelSmoothedCrossEntropy
from mtplug.nn.attention import Attend, AttentionCall
from mtplug.registry import singular
from mtplug.search import BeamSearch
from mtplug.search.combine import Ensemble
from mtplug.testing.material import MeanWords, WordsTask


@pytest.fixture(scope="module", autouse=True)
def broken():
    """The components of broken.py and wrong.py, in this process's host."""
    before = plugins._current
    plugins._current = plugins.PluginHost(
        files=[Path(__file__).with_name(f"{name}.py") for name in ("broken", "wrong")]
    )
    yield
    plugins._current = before


# `config` is checked by one piece of code for all kinds; search strategies add to it.
PROMISES = [
    (kind, promise)
    for kind, contract in CONTRACTS.items()
    for promise in contract.promises
    if promise != "config" or kind in ("architectures", "search_strategies")
]


def check(kind, name, **more):
    getattr(testing, f"check_{singular(kind)}")(name, *SETTINGS.get(kind, ()), **more)


SETTINGS = {"search_strategies": ("beam=3", "nbest=3")}


@pytest.mark.parametrize(("kind", "promise"), PROMISES)
def test_broken_promise_is_found_and_named(kind, promise, mtplug_run):
    more = {"run": mtplug_run} if kind == "exporters" else {}
    sentence = re.escape(CONTRACTS[kind].promises[promise])
    said = f"{singular(kind)} '{promise}' breaks '{promise}': {sentence}.*docs/plugins.md#{kind}"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        check(kind, promise, **more)


@pytest.mark.parametrize("kind", ["criteria", "search_strategies"])
def test_broken_promises_are_found_on_a_model_of_ones_own_too(kind):
    for promise in ("hypotheses", "loss", "direction", "determinism", "batch", "padding", "scores"):
        if promise in CONTRACTS[kind].promises:
            with pytest.raises(testing.ContractBroken, match=f"breaks '{promise}'"):
                check(kind, promise, architecture=("sound",))


def test_a_buffer_that_no_checkpoint_may_hold_breaks_save():
    with pytest.raises(
        testing.ContractBroken, match=re.compile("breaks 'save'.*NaN or infinite", re.S)
    ):
        check("architectures", "infinite_mask")


def test_a_model_that_tells_no_next_token_is_checked_without_order_and_for_its_own_parts_only():
    check("architectures", "sees_all", criterion=("label_smoothed_cross_entropy",), compile=False)
    model = component_from_overrides("architectures", "sees_all", []).build(WordsTask())
    for factory in (LabelSmoothedCrossEntropy, BeamSearch):
        assert "SeesAll does not" in why_unfit(factory, None, model)
        assert not why_unfit(factory, None, MeanWords())
        mine = type("Mine", (factory,), {"why_not": staticmethod(lambda config, model: "")})
        assert not why_unfit(mine, None, model)
    both = Ensemble([model, MeanWords()])
    assert not both.autoregressive and why_unfit(BeamSearch, None, both)


@pytest.mark.parametrize("kind", CONTRACTS)
def test_factory_of_other_arguments_is_told_what_it_is_called_with(kind):
    more = {"run": Path("none")} if kind == "exporters" else {}
    said = rf"breaks 'factory': .*takes 0 positional.*docs/plugins.md#{kind}"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        getattr(testing, f"check_{singular(kind)}")("takes_nothing", **more)


@pytest.mark.parametrize(
    "kind",
    [
        "architectures",
        "tasks",
        "position_encodings",
        "attention_backends",
        "corpora",
        "metrics",
        "trackers",
    ],
)
def test_component_of_another_class_is_told_which_is_right(kind):
    said = "breaks 'factory': .* returns a `.*it returned a dict"
    with pytest.raises(testing.ContractBroken, match=re.compile(said, re.S)):
        getattr(testing, f"check_{singular(kind)}")("of_another_class")


# More ways to break a promise, by kind and name: what is broken and what is said.
FURTHER = {
    "architectures": {
        "zeroed": ("gradients", "the gradient of dead is zero throughout"),
        "training_determinism": ("determinism", "training losses of one seed"),
    },
    "criteria": {
        "without_gradient": ("gradients", "zero throughout"),
        "tokens": ("nll", "`tokens`: 3.0 instead of"),
        "part_with_gradient": ("loss", "part 'all' is no scalar, or has a gradient"),
        "untrained": ("state", "weight has a gradient, but is never trained: .* no nn.Module"),
        "late": ("state", "never trained: it was not there from the start"),
        "loads_nothing": ("state", r"`state_dict\(\)` after `load_state_dict`"),
    },
    "peft_methods": {
        "zeroed": ("gradients", "the gradient of dead is zero throughout"),
        "new_base": ("save", "features differ"),
    },
    "position_encodings": {"zeroed": ("gradients", "unused is zero throughout")},
    "tokenizers": {"one_file": ("save", "ids of the source side")},
    "tasks": {
        "negative": ("batches", "source_tokens hold ids below 0"),
        "no_start": ("batches", "start neither with </s> nor with a tag"),
        "unnamed": ("checksums", "train.en was changed, they were not"),
    },
    "optimizers": {
        "switch": ("rate", "a hundredth"),
        "deaf": ("optimizer", r"learning rates \[0.123\], where lr is set to"),
    },
    "metrics": {
        "first_reference": (
            "references",
            r"0.5000 with two sets, of which the second fits, 0.5000",
        ),
        "statistics_of_sources": ("statistics", "1.0 from the sum"),
        "last_reference": ("references", r"0.5000 with two sets, of which the first fits, 0.5000"),
    },
    "lr_schedulers": {
        "rises": ("beyond", "update 200 is 2"),
        "tensor": ("range", "update 1 is a Tensor"),
    },
    "search_strategies": {
        "no_number": ("hypotheses", "nan"),
        "no_max_extra": ("settings", "max_ratio=0, max_extra=3: tokens"),
        "no_max_ratio": ("settings", "max_ratio=0, max_extra=3: tokens"),
        "no_min_length": ("settings", r"min_length=4: tokens \[\]"),
        "no_allow_unknown": ("settings", r"allow_unknown=false: tokens .*\b2\b"),
        "no_no_repeat_ngram": ("settings", "no_repeat_ngram=2: tokens .*5, 5, 5"),
        "no_prefix": ("requests", r"a prefix: tokens \[5"),
        "no_closed": ("requests", r"a prefix that ends a word: tokens \[6, 7, 5"),
        "no_forbidden": ("requests", r"a forbidden token: tokens \[5"),
        "no_required": ("requests", "a required token: tokens"),
    },
    "attention_backends": {
        "no_scale": ("definition", "'scale': 0.7"),
        "no_lengths": ("definition", "'key_lengths'"),
        "no_lengths_with_offset": ("definition", "'query_offset': 2"),
        "first_scheme": ("schemes", "with QueryTable and KeyTable"),
        "packed_alone": ("packed", "with no scheme"),
        "packed_causal_only": ("packed", "causal=False"),
        "keys_of_queries": ("packed", r"sentences of \(2, 5, 3\) keys"),
        "other_backward": ("dropout", "gradients and weights left"),
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in FURTHER.items() for name in names]
)
def test_further_way_to_break_a_promise_is_found(kind, name):
    promise, detail = FURTHER[kind][name]
    more = {"starts_as_model": False} if name == "new_base" else {}
    said = re.compile(f"breaks '{promise}'.*{detail}", re.S)
    with pytest.raises(testing.ContractBroken, match=said):
        check(kind, name, **more)


def test_attention_backend_that_cannot_be_made_is_left_out_of_auto():
    with pytest.warns(RuntimeWarning, match="'takes_nothing' of file wrong.py:wrong is left out"):
        auto = Attend("auto")
    assert auto.choose(AttentionCall("cpu")) == "sdpa"
    with pytest.raises(TypeError):
        Attend("takes_nothing")


def test_sound_architecture_passes():
    check("architectures", "sound")
