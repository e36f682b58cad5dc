"""What is taken for which device, and on which device it is launched; there is none here."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
import triton
from mtplug_kernels import operators, tuning


@pytest.mark.parametrize(("major", "shared", "table"), [
    (8, 166_912, 80),  # A100
    (8, 101_376, 80),  # RTX 4090
    (9, 232_448, 90),  # H100
    (10, 232_448, 90),  # B200
    (12, 101_376, 80),  # RTX 5090: newer, with less shared memory
])  # fmt: skip
def test_blocks_are_those_that_fit_the_devices_shared_memory(monkeypatch, major, shared, table):
    properties = SimpleNamespace(major=major, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert tuning.capability.__wrapped__(torch.device("cuda", 0)) == table


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "device", lambda d: entered.append(d) or contextlib.nullcontext()
    )
    launch = operators.on_its_device(lambda x, y: y)
    tensors = [SimpleNamespace(is_cuda=True, device=torch.device("cuda", n)) for n in (0, 1)]
    assert [launch(x, 7) for x in (*tensors, torch.zeros(1))] == [7, 7, 7]
    assert entered == [torch.device("cuda", 1)]


def test_the_copy_engine_gets_rows_at_multiples_of_16_bytes():
    """Its rule, which the interpreter doesn't know; what keeps to it is not copied."""
    flat = torch.arange(2000, dtype=torch.float16)
    begin = -flat.data_ptr() // 2 % 8  # wherever memory begins
    at = flat[begin:]
    for x, copied in (
        (at[:160].view(1, 2, 10, 8), False),
        (at[1:161].view(1, 2, 10, 8), True),  # begins elsewhere
        (at[:180].view(1, 2, 10, 9), True),  # rows of 18 bytes
        (at[:180].view(1, 2, 10, 9)[:, :, :1], True),  # as do heads here
        (at[:160].view(1, 2, 10, 8)[..., :3], False),
        (at[:160].view(1, 2, 8, 10).mT, True),  # features apart
        (at[:16].view(1, 2, 1, 8).expand(1, 2, 10, 8), True),  # rows that are one
        (at[:9].view(1, 1, 1, 9), False),  # there's no second row
    ):
        y = operators.aligned(x)
        assert torch.equal(y, x) and (y is not x) == copied
        assert y.data_ptr() % 16 == 0 and y.stride(-1) == 1
        steps = [s for n, s in zip(y.shape[:-1], y.stride()[:-1], strict=True) if n > 1]
        assert all(s > 0 and s % 8 == 0 for s in steps)


def test_sizes_are_rounded_as_tritons_own_functions_round_them():
    for n in range(1, 300):
        assert operators.next_power_of_2(n) == triton.next_power_of_2(n)
        assert operators.cdiv(n, 16) == triton.cdiv(n, 16)
