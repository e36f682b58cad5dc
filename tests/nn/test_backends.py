"""Every attention backend, each scheme, against the float64 reference; and what `auto` takes."""

import functools
import itertools
import math
import warnings

import pytest
import torch
from mtplug_kernels import positions, reference

from mtplug.errors import UserError
from mtplug.nn import backends
from mtplug.nn.attention import Attend, AttentionCall
from mtplug.plugins import host
from tests.kernels import conftest  # noqa: F401  (Triton's interpreter, before triton is imported)

HEADS, SIZE, LIMIT = 2, 8, 3
SCHEMES = [
    "none",
    "bias",
    "linear",
    "query",
    "key",
    "deberta",
    "xl",
    "rotary",
    "mixed",
    "turned tables",
    "lengthened tables",
]
CASES = {
    "full": {},
    "causal": {"causal": True},
    "padded": {"key_lengths": torch.tensor([9, 4, 1])},
    "nothing": {"key_lengths": torch.tensor([9, 0, 1]), "queries": 3},
    "step": {"queries": 1, "query_offset": 8},
    "chunk": {"queries": 3, "query_offset": 6, "causal": True},
    "scaled": {"scale": 1.0},
    "packed": {"packed": True, "causal": True},
    "packed_cross": {"packed": True, "keys": [2, 5, 4]},
}


def test_flex_is_compiled_for_any_number_of_shapes(monkeypatch):
    """torch warns, and holds all scores in memory, from the ninth shape of a process on."""
    compiled = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiled)
    attend = backends._flex.__wrapped__(True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        for length in range(20, 32):
            q = torch.randn(1, 2, length, 16)
            expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
            torch.testing.assert_close(attend(q, q, q), expected)


def schemes(name, generator):
    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    width = 2 * LIMIT + 1
    return {
        "none": lambda: (),
        "bias": lambda: (positions.ClippedBias(leaf(HEADS, width)),),
        "linear": lambda: (positions.Linear(leaf(HEADS).detach().abs().requires_grad_()),),
        "query": lambda: (positions.QueryTable(leaf(1, width, SIZE)),),
        "key": lambda: (positions.KeyTable(leaf(HEADS, width, SIZE)),),
        "deberta": lambda: (
            positions.QueryTable(leaf(HEADS, width, SIZE)),
            positions.KeyTable(leaf(HEADS, width, SIZE)),
        ),
        "xl": lambda: (
            positions.TransformerXL(leaf(HEADS, SIZE), leaf(HEADS, SIZE), leaf(HEADS, SIZE, 4)),
        ),
        "rotary": lambda: (positions.Rotary(),),
        "mixed": lambda: (positions.Rotary(), positions.ClippedBias(leaf(HEADS, width))),
        "turned tables": lambda: (
            positions.Rotary(),
            positions.QueryTable(leaf(HEADS, width, SIZE)),
            positions.KeyTable(leaf(1, width, SIZE)),
        ),
        "lengthened tables": lambda: (
            positions.Rotary(),
            positions.TransformerXL(leaf(HEADS, SIZE), leaf(HEADS, SIZE), leaf(HEADS, SIZE, 4)),
            positions.QueryTable(leaf(1, width, SIZE)),
            positions.KeyTable(leaf(HEADS, width, SIZE)),
        ),
    }[name]()


def tensors(made):
    return [t for s in made for t in vars(s).values() if isinstance(t, torch.Tensor)]


def single(made, device):
    """The same schemes in float32."""
    return tuple(
        type(s)(
            **{
                n: x.detach().to(device, torch.float32).requires_grad_()
                if isinstance(x, torch.Tensor)
                else x
                for n, x in vars(s).items()
            }
        )
        for s in made
    )


def call_of(name, case, gradient, device):
    used = frozenset(type(s).__name__ for s in schemes(name, torch.Generator()))
    return AttentionCall(device, used, gradient, False, "packed" in CASES[case])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex", "triton"])
def test_backend_equals_the_float64_reference(backend, name, case):
    generator = torch.Generator().manual_seed(7)
    options = dict(CASES[case])
    queries, batch, keys = options.pop("queries", 9), 3, 9
    if options.pop("packed", False):
        cu = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
        counts = options.pop("keys", [4, 1, 4])
        cu_k = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).to(torch.int32)
        options["cu_seqlens"], batch, keys = (cu, cu_k), 1, sum(counts)
    q = torch.randn(batch, HEADS, queries, SIZE, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, HEADS, keys, SIZE, generator=generator, dtype=torch.float64)
    exact = [x.requires_grad_() for x in (q, k, v)]
    made = schemes(name, generator)
    expected = reference.attention(*exact, position=made, **options)

    component = host().component("attention_backends", backend)
    ours = component.factory(component.config())
    # Kernels run where their compiler is for; the interpreter's tests are on a CPU.
    compiled = backend in ("triton", "sdpa") and torch.cuda.is_available()
    device = "cuda" if compiled else "cpu"
    gradient = not ours.why_not(call_of(name, case, True, device))
    inputs = [x.detach().to(device, torch.float32).requires_grad_(gradient) for x in exact]
    found_schemes = single(made, device)
    for name, value in options.items():
        if isinstance(value, torch.Tensor):
            options[name] = value.to(device)
        elif isinstance(value, tuple):
            options[name] = tuple(x.to(device) for x in value)
    with torch.set_grad_enabled(gradient):
        found = ours(*inputs, position=found_schemes, **options)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-4, atol=2e-5)
    if not gradient:
        assert backend == "flex"  # the only one without a backward pass on a CPU
        return
    seed = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    truth = torch.autograd.grad(expected, [*exact, *tensors(made)], seed)
    ours_grad = torch.autograd.grad(
        found, [*inputs, *tensors(found_schemes)], seed.to(device, torch.float32)
    )
    for a, b in zip(ours_grad, truth, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-4)


def shared():
    """Backend, scheme and case: all, but of the interpreter two cases for each scheme, in turn.

    Its kernels have shared heads in most of tests/kernels, each scheme with all options.
    """
    for backend in ("reference", "sdpa", "flex", "triton"):
        for n, name in enumerate(SCHEMES):
            for m, case in enumerate(("full", "causal", "padded", "nothing", "step", "packed")):
                if backend != "triton" or (n + m) % 6 in (0, 3):
                    yield backend, name, case


@pytest.mark.parametrize(("backend", "name", "case"), list(shared()))
def test_heads_of_keys_that_queries_share_are_as_if_repeated(backend, name, case):
    generator = torch.Generator().manual_seed(3)
    options = dict(CASES[case])
    queries, batch = options.pop("queries", 9), 3
    if options.pop("packed", False):
        starts = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
        options["cu_seqlens"], batch = (starts, starts), 1
    q = torch.randn(batch, HEADS, queries, SIZE, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, 1, 9, SIZE, generator=generator, dtype=torch.float64)
    exact = [x.requires_grad_() for x in (q, k, v)]
    made = schemes(name, generator)
    repeated = [x.expand(-1, HEADS, -1, -1) for x in exact[1:]]
    expected = reference.attention(q, *repeated, position=made, **options)

    attend = Attend(backend)
    reason = attend.backends[backend].why_not(call_of(name, case, True, "cpu"))
    inputs = [x.detach().float().requires_grad_(not reason) for x in exact]
    with torch.set_grad_enabled(not reason):
        found = attend(*inputs, position=single(made, "cpu"), **options)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
    if reason:
        assert backend == "flex"
        return
    seed = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    truth = torch.autograd.grad(expected, exact, seed)
    for a, b in zip(torch.autograd.grad(found, inputs, seed.float()), truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offset", [-1, 1])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex", "triton"])
def test_as_many_queries_as_keys_may_stand_elsewhere(backend, offset):
    """Which is no causal attention of a sentence to itself, of which torch has a version of its own."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, 2, 4, 8, generator=generator)
    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1 + offset)
    weights = (q @ k.mT / 8**0.5).masked_fill(hidden, -math.inf).softmax(-1).nan_to_num(0.0)
    with torch.no_grad():
        found = Attend(backend)(q, k, v, causal=True, query_offset=offset)
    torch.testing.assert_close(found, weights @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 4])  # as many as heads of keys, and of queries
@pytest.mark.parametrize("queries", [3, 70])  # in two ways
def test_double_precision_stays_double_where_heads_of_keys_are_shared(queries, batch):
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(batch, 4, queries, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, batch, 2, 9, 8, generator=generator, dtype=torch.float64)
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5
    expected = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(Attend("sdpa")(q, k, v), expected, rtol=1e-12, atol=1e-12)


def test_packed_bfloat16_stays_bfloat16():
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, HEADS, 30, SIZE, generator=generator).bfloat16()
    starts = torch.tensor([0, 10, 30])
    found = Attend("sdpa")(q, k, v, cu_seqlens=(starts, starts))
    assert found.dtype == torch.bfloat16
    exact = (x.double() for x in (q, k, v))
    expected = reference.attention(*exact, cu_seqlens=starts)
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.01)


def test_autocast_rounds_nothing_that_is_computed_in_float32():
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, HEADS, 80, SIZE, generator=generator).bfloat16()
    made = single(schemes("deberta", generator), "cpu")
    exact = Attend("sdpa")(q, k, v, position=made)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Attend("sdpa")(q, k, v, position=made), exact)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex", "triton"])
def test_two_heads_of_keys_for_four_with_tables_of_each_query_head(backend):
    """A single one torch would repeat by itself, that of keys and not that of values, too."""
    generator = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, 1, 2, 9, SIZE, generator=generator)
    table = torch.randn(4, 2 * LIMIT + 1, SIZE, generator=generator)
    repeated = [x.double().repeat_interleave(2, 1) for x in (k, v)]
    for queries in (9, 70):
        q = torch.randn(1, 4, queries, SIZE, generator=generator)
        expected = reference.attention(q.double(), *repeated, positions.KeyTable(table.double()))
        with torch.no_grad():
            found = Attend(backend)(q, k, v, position=(positions.KeyTable(table),))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 4, 70])
@pytest.mark.parametrize("name", SCHEMES)
def test_bfloat16_on_cpus_is_as_near_as_its_rounding(name, queries):
    """Few queries, more of them with a backward pass, and still more are computed in three ways."""
    generator = torch.Generator().manual_seed(5)
    options = {"causal": True, "key_lengths": torch.tensor([80, 75]), "query_offset": 80 - queries}
    q = torch.randn(2, HEADS, queries, SIZE, generator=generator).bfloat16()
    k, v = torch.randn(2, 2, HEADS, 80, SIZE, generator=generator).bfloat16()
    made = schemes(name, generator)
    exact = [x.double() for x in (q, k, v)]
    expected = reference.attention(*exact, position=made, **options)
    sdpa = Attend("sdpa")
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            found = sdpa(q, k, v, position=single(made, "cpu"), **options)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("name", ["bias", "lengthened tables"])
@pytest.mark.parametrize("backend", ["reference", "flex", "triton"])  # of sdpa see above
def test_learnt_positions_may_be_of_a_higher_precision(backend, name):
    """As weights are that autocast leaves alone."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, HEADS, 20, SIZE, generator=generator).bfloat16()
    made = schemes(name, generator)
    with torch.no_grad():
        expected = reference.attention(q.double(), k.double(), v.double(), position=made)
        found = Attend(backend)(q, k, v, position=single(made, "cpu"))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("queries", [2, 80])
def test_dropout_keeps_the_mean_however_few_the_queries_and_heads_of_keys(queries, groups, dtype):
    """Weights that sum to 1 sum to 1 on average, and vary by p / (1 - p) times the sum of their squares."""
    torch.manual_seed(1)
    q = torch.randn(64, 4, queries, 8).to(dtype)
    k, ones = torch.randn(64, groups, 9, 8).to(dtype), torch.ones(64, groups, 9, 8, dtype=dtype)
    with torch.no_grad():
        sums = Attend("sdpa")(q, k, ones, dropout_p=0.5)[..., 0].float()
    scores = q.float() @ k.float().repeat_interleave(4 // groups, 1).mT / 8**0.5
    spread = scores.softmax(-1).square().sum(-1).mean()
    assert sums.mean().item() == pytest.approx(1, abs=0.1)
    assert sums.var().item() == pytest.approx(spread.item(), rel=0.35)


def test_a_backend_is_chosen_by_what_a_call_is(monkeypatch):
    attend, asked = Attend("sdpa"), []
    monkeypatch.setattr(attend, "choose", lambda call: asked.append(call) or "sdpa")
    q = torch.randn(1, 2, 3, 4)
    attend(q, q, q)
    attend(q, q, q, cu_seqlens=(torch.tensor([0, 1, 3]),) * 2)
    with torch.no_grad():
        attend(q, q, q, position=(positions.Rotary(),), dropout_p=0.5)
    assert asked == [
        AttentionCall("cpu"),
        AttentionCall("cpu", packed=True),
        AttentionCall("cpu", frozenset({"Rotary"}), gradient=False, dropout=True),
    ]
    with torch.no_grad(), pytest.raises(UserError, match="no dropout; set attention_dropout=0"):
        Attend("flex")(q, q, q, dropout_p=0.5)


def test_auto_takes_the_documented_order(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    auto = Attend("auto")
    plain, biased = frozenset(), frozenset({"ClippedBias"})
    for call, wanted in (
        (AttentionCall("cpu", plain), "sdpa"),
        (AttentionCall("cpu", biased), "sdpa"),
        (AttentionCall("cuda", plain), "sdpa"),
        (AttentionCall("cuda", frozenset({"Rotary"})), "sdpa"),
        (AttentionCall("cuda", frozenset({"TransformerXL"})), "sdpa"),
        (AttentionCall("cuda", biased), "triton"),
        (AttentionCall("cuda", plain, packed=True), "triton"),
        (AttentionCall("mps", biased), "sdpa"),
    ):
        assert auto.choose(call) == wanted, call


def test_auto_takes_the_next_where_one_is_missing_or_cannot():
    auto = Attend("auto")
    auto.backends["triton"].missing = "triton is not installed"
    biased = frozenset({"ClippedBias"})
    assert auto.choose(AttentionCall("cuda", biased)) == "flex"
    assert auto.choose(AttentionCall("cuda", biased, dropout=True)) == "sdpa"
    del auto.backends["sdpa"]
    assert auto.choose(AttentionCall("mps", biased)) == "reference"
    auto.backends = {"flex": auto.backends["flex"]}
    with pytest.raises(UserError, match=r"no attention backend can do .*\(flex: .* on CPUs\)"):
        auto.choose(AttentionCall("cpu"))
    with pytest.raises(UserError, match=r"\(there is none\)"):  # but the one that is asked by name
        auto.choose(AttentionCall("cpu", gradient=False))


def test_a_mask_hides_what_lies_ahead_and_padding_and_is_none_where_one_query_sees_all():
    for queries, offset, causal in itertools.product((1, 3), range(6), (False, True)):
        for lengths in (None, [0, 2, 4]):
            given = None if lengths is None else torch.tensor(lengths)
            mask = backends.attention_mask(queries, 4, causal, given, offset, "cpu")
            ends = [4] if lengths is None else lengths
            seen = [
                [
                    [j < end and (not causal or j <= i + offset) for j in range(4)]
                    for i in range(queries)
                ]
                for end in ends
            ]
            if mask is None or (queries == 1 and lengths is None):
                assert (mask is None) == all(itertools.chain(*seen[0]))
            else:
                assert mask.expand(len(ends), 1, queries, 4)[:, 0].tolist() == seen


def test_a_backend_that_cannot_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match=r"backend=triton: Triton needs a GPU.*cpu; use auto"):
        Attend("triton").choose(AttentionCall("cpu"))
    with pytest.raises(UserError, match="no backward pass on CPUs"):
        Attend("flex").choose(AttentionCall("cpu"))
    assert Attend("flex").choose(AttentionCall("cpu", gradient=False)) == "flex"


@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "flex", "triton"])
def test_an_offset_for_each_sentence_is_refused_by_all_alike(backend):
    """sdpa and flex left it out where nothing was relative, and told of torch.arange's arguments elsewhere."""
    q = torch.randn(2, 2, 3, 4)
    with pytest.raises(TypeError, match="query_offset must be an int, the same for all sentences"):
        Attend(backend)(q, q, q, query_offset=torch.tensor([0, 1]))


@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex", "triton"])
def test_a_table_that_does_not_fit_is_named(backend):
    """flex read the first heads of a table of more, and sdpa told of sizes that do not broadcast."""
    q = torch.randn(1, HEADS, 5, SIZE)
    for scheme, said in (
        (
            positions.ClippedBias(torch.randn(3, 5)),
            r"ClippedBias.table has shape \(3, 5\), it must be \(2, 2D",
        ),
        (
            positions.KeyTable(torch.randn(1, 5, 4)),
            r"KeyTable.table has shape \(1, 5, 4\), it must be \(2 or 1",
        ),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match=said):
            Attend(backend)(q, q, q, position=(scheme,))


@pytest.mark.parametrize("name", ["none", "bias", "rotary", "lengthened tables"])
@pytest.mark.parametrize("backend", ["sdpa", "flex", "triton"])
def test_without_queries_keys_or_sentences_it_is_as_the_reference(backend, name):
    """flex raised what its masks of blocks did, and both raised where nothing is packed."""
    generator = torch.Generator().manual_seed(7)
    made = single(schemes(name, generator), "cpu")
    nothing, starts = torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    for batch, queries, keys, options in (
        (2, 3, 0, {}),
        (2, 3, 0, {"causal": True}),
        (2, 0, 3, {"causal": True}),
        (0, 3, 3, {"key_lengths": torch.zeros(0, dtype=torch.int64)}),
        (1, 0, 0, {"cu_seqlens": (nothing, nothing)}),
        (1, 0, 0, {"cu_seqlens": (starts, starts)}),
        (1, 3, 0, {"cu_seqlens": (3 * torch.arange(2).int(), starts)}),
    ):
        q = torch.randn(batch, HEADS, queries, SIZE, generator=generator)
        for groups in (1, HEADS):
            k, v = torch.randn(2, batch, groups, keys, SIZE, generator=generator)
            with torch.no_grad():
                given = Attend(backend)(q, k, v, position=made, **options)
                torch.testing.assert_close(
                    given, Attend("reference")(q, k, v, position=made, **options)
                )
            assert given.shape == q.shape


def test_an_unknown_backend_suggests_the_nearest():
    with pytest.raises(UserError, match="sdpa"):
        Attend("sdpaa")
