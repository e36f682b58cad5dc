"""Compiles shipped configurations for one architecture without a GPU and reads the machine code.

Run by test_compile.py in a process without TRITON_INTERPRET; prints one JSON list. Argument: the
architecture, 80 or 90.
"""

import inspect
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from typing import NamedTuple

import triton
from mtplug_kernels.triton_kernels import backward, decode, forward
from mtplug_kernels.tuning import blocks, decode_blocks, products_together, size_of_tiles
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = {
    "forward": forward.forward,
    "backward_queries": backward.backward_queries,
    "backward_keys": backward.backward_keys,
    "backward_products": backward.backward_products,
    "backward_table": backward.backward_table,
    "finish_table": backward.finish_table,
    "near_products": decode.near_products,
    "decode": decode.decode,
    "combine": decode.combine,
}
TRAINING = list(KERNELS)[:5]
INPUTS = {
    "Q", "K", "V", "Q2", "OUT", "DO", "DQ", "DQ2", "DQR", "DKR", "DK", "DV", "QR", "KR", "TAIL", "QTABLE", "KTABLE",
}  # fmt: skip
FLOATS = {
    "LSE", "LSES", "LEFT_P", "TABLE", "SLOPES", "DELTA", "LEFT", "DSLOPE", "FOLD", "PARTS", "TOPS",
    "NEAR", "TURNS", "WAVES", "DTABLE", "LEFTS",
    "QFAR", "KFAR",
}  # fmt: skip
# What comes in tiles by the copy engine, with the constants of a tile's shape.
TILED = {
    "forward": {"K": ("BN", "BD"), "V": ("BN", "BV"), "WAVES": ("BN", "BT")},
    "backward_queries": {"K": ("BN", "BD"), "V": ("BN", "BV"), "WAVES": ("BN", "BT")},
    "backward_keys": {"Q": ("BM", "BD"), "DO": ("BM", "BV"), "Q2": ("BM", "BT")},
    "backward_products": {"K": ("BN", "BD"), "V": ("BN", "BV"), "WAVES": ("BN", "BT")},
    "backward_table": {
        "Q": ("BM", "BD"), "K": ("BN", "BD"), "V": ("BN", "BV"), "DO": ("BM", "BV"),
        "Q2": ("BM", "BT"), "WAVES": ("BN", "BT"),
    },
}  # fmt: skip
SCALARS = {
    "scale": "fp32", "scale2": "fp32", "inverse_keep": "fp32", "seed": "i64", "threshold": "i64",
}  # fmt: skip
TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
# Shared memory of one program, and of an SM: CUDA programming guide, table of capabilities. The
# blocks for 8.0 also have to fit the 99 KB of 8.6 and 8.9.
LIMITS = {80: (99 * 1024, 164 * 1024), 90: (227 * 1024, 228 * 1024)}


class Case(NamedTuple):
    """One kernel's compilation; ``scheme`` names schemes joined by "+"."""

    kernel: str
    head: int = 64
    scheme: str = "none"
    causal: bool = False
    dropout: bool = False
    dtype: str = "bf16"
    value: int = 0  # the value head's size, if another than head
    rows: int = 16  # decode: query rows that share a key head
    tail: int = 64  # sinusoid features of Transformer-XL


def cases():
    plain = ("none", "table", "linear", "linear+reach", "query", "key")
    for kernel, head, scheme in itertools.product(TRAINING[:4], (64, 128), plain):
        yield Case(kernel, head, scheme)
        if scheme in ("none", "table"):
            yield Case(kernel, head, scheme, causal=True)
    for kernel, head in itertools.product(TRAINING, (64, 128)):
        yield Case(kernel, head, "table", head == 64, dropout=True)
        yield Case(kernel, head, "table", head == 128, dtype="fp32")
        yield Case(kernel, head, "table+linear+query+key", head == 64)
    for kernel, head in itertools.product(TRAINING[:3], (64, 128)):
        yield Case(kernel, head, "query+key", head == 64, dropout=True)
    for kernel in TRAINING:
        yield Case(kernel, 256, "table")
        yield Case(kernel, 64, "table", dtype="fp16")
        if kernel != "backward_table":
            yield Case(kernel, 64, "query", dtype="fp16")
        # Transformer-XL: 64 features and 64 of sinusoids.
        yield Case(kernel, 64, "xl")
        yield Case(kernel, 128, "xl")
        yield Case(kernel, 64, "none", value=128)
        # More sinusoids than features, and all that there may be, the keys' own table with them.
        yield Case(kernel, 64, "xl+table+key", tail=192)
        yield Case(kernel, 128, "xl+table", tail=128)
    for head in (64, 128):
        yield Case("backward_table", head, "table", True)
        yield Case("backward_table", head, "table", False)
        for kernel in TRAINING[:4]:
            yield Case(kernel, head, "query+key", head == 128)
    for head, dtype in ((64, "bf16"), (128, "bf16"), (256, "bf16"), (128, "fp32")):
        for scheme in ("none", "table+linear+query+key", "rotary+table+query", "xl+table"):
            yield Case("decode", head, scheme, dtype=dtype)
    yield Case("decode", 64, "table+linear+query+key", rows=32)
    yield Case("decode", 64, "rotary", rows=32)
    yield Case("decode", 128, "none", rows=32)
    yield Case("near_products", 128, "query+key")
    yield Case("combine", 128)
    yield Case("finish_table")


def source(kernel, constants, dtype):
    """The signature that a launch with contiguous tensors would have."""
    signature, attributes = {}, {}
    for n, name in enumerate(inspect.signature(kernel.fn).parameters):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in TILED.get(kernel.__name__, {}):
            rows, width = (constants[x] for x in TILED[kernel.__name__][name])
            batch_and_head = "" if name == "WAVES" else "1, 1, "
            signature[name] = f"tensordesc<{dtype}[{batch_and_head}{rows}, {width}]>"
            continue
        if name in INPUTS or (name == "WAVES" and kernel.__name__ == "backward_keys"):
            signature[name] = "*" + dtype
        elif name in FLOATS:
            signature[name] = "*fp32"
        elif name in ("SPANS", "REACH", "OFFSETS", "LENGTHS"):
            signature[name] = "*i32"
        else:
            signature[name] = SCALARS.get(name, "i32")
        stride = re.fullmatch(r"s\w{1,2}[zhl]", name) and not name.startswith("sl")
        if stride or signature[name].startswith("*"):
            attributes[(n,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def constants_of(case, capability):
    """The constants of a launch, and its blocks."""
    schemes = set(case.scheme.split("+"))
    value = case.value or case.head
    itemsize = 4 if case.dtype == "fp32" else 2
    head = max(case.head, value)
    if case.kernel == "decode":
        turning = bool(schemes & {"rotary", "xl"})
        use = decode_blocks(head, case.rows, itemsize, capability, turning)
    elif case.kernel in TRAINING:
        parts = schemes | {
            name for name, part in (("tail", "xl" in schemes), ("dropout", case.dropout)) if part
        }
        head = size_of_tiles(head, triton.next_power_of_2(case.tail) if "xl" in schemes else 0)
        use = blocks(case.kernel, head, itemsize, capability, parts)
    else:
        use = None
    extra = case.tail if "xl" in schemes else 0
    together = case.kernel.startswith("backward") and products_together(head, parts)
    constants = {
        "HAS_TABLE": "table" in schemes, "HAS_QR": "query" in schemes, "HAS_KR": "key" in schemes,
        "HAS_LINEAR": "linear" in schemes, "HAS_REACH": "reach" in schemes, "CAUSAL": case.causal, "DROPOUT": case.dropout,
        "SIZE": case.head, "VSIZE": value, "BD": case.head, "BV": value, "BC": 64,
        "PRECISION": "ieee" if case.dtype == "fp32" else "tf32",
        "NEED_LEFT": not case.causal and bool(schemes & {"table", "query"}),
        "HAS_LSES": "query" in schemes or ("table" in schemes and together), "TOGETHER": together,
        "NEED_SLOPE": "linear" in schemes, "HAS_NEAR": bool(schemes & {"query", "key"}),
        "HAS_QTABLE": "query" in schemes, "HAS_KTABLE": "key" in schemes, "HAS_LENGTHS": True,
        "PAIR": case.head // 2 if "rotary" in schemes else 0, "TAIL_SIZE": extra, "BT": max(16, triton.next_power_of_2(extra)),
        "SPLITS": 256, "CHUNK": 16, "BATCHED": 1, "HAS_SPANS": True, "MANY": 1024,
    }  # fmt: skip
    if case.kernel in TRAINING:
        constants["TAIL"] = extra  # a tensor for decode
    if use:
        constants |= {"BM": use.queries, "BN": use.keys}
    known = inspect.signature(KERNELS[case.kernel].fn).parameters
    return {name: x for name, x in constants.items() if name in known}, use


def report(case, capability):
    """A case, the blocks it is launched with, and its machine code as an ELF file."""
    constants, use = constants_of(case, capability)
    warps, stages = (use.warps, use.stages) if use else (4, 2)
    options: dict = {"num_warps": warps, "num_stages": stages}
    if case.kernel in TRAINING:
        options = use.options
    compiled = triton.compile(
        source(KERNELS[case.kernel], constants, case.dtype),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    elf = compiled.asm["cubin"]
    shared = compiled.metadata.shared
    registers, stack = usage(elf)
    per_warp = -(-registers // 8) * 8 * 32
    occupancy = min(
        65536 // (per_warp * warps), LIMITS[capability][1] // (shared + 1024), 64 // warps
    )
    tile = f"{use.queries}x{use.keys}" if use else "-"
    row = case._asdict() | {
        "sm": capability, "tile": tile, "warps": warps, "stages": stages, "registers": registers,
        "stack": stack, "shared": shared, "shared_limit": LIMITS[capability][0],
        "programs_per_sm": occupancy,
    }  # fmt: skip
    return row, elf


def usage(elf):
    """Registers of a thread, and bytes of its stack."""
    told = run_on(elf, "cuobjdump", "--dump-resource-usage")
    return (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK"))


def run_on(content, tool, *options):
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        line = [os.path.join(TOOLS, tool), *options, file.name]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def instructions(elves, capability):
    """How often each instruction is in the code of each ELF file.

    All code is taken apart at once, since the tool needs a quarter of a second to start.
    """
    codes = [code_of(elf) for elf in elves]
    names = f"SM{capability}"
    listing = run_on(b"".join(codes), "nvdisasm", "--binary", names, "--no-dataflow")
    found = iter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\w+)", listing, re.M))
    counts = [Counter(itertools.islice(found, len(code) // 16)) for code in codes]
    assert next(found, None) is None, "an instruction has 16 bytes, and each its line"
    return counts


def code_of(elf):
    """The sections of an ELF file that hold machine code."""
    (headers,) = struct.unpack_from("<Q", elf, 0x28)
    size, number, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", elf, headers + n * size) for n in range(number)]
    text = sections[names][1]
    return b"".join(
        elf[start : start + length]
        for name, start, length in sections
        if elf.startswith(b".text.", text + name)
    )


if __name__ == "__main__":
    rows, elves = [], []
    for case in cases():
        if case.kernel == "backward_products" and not {"query", "key"} & set(
            case.scheme.split("+")
        ):
            continue  # never launched
        row, elf = report(case, int(sys.argv[1]))
        rows.append(row)
        elves.append(elf)
        if os.environ.get("PROGRESS"):
            print(row, file=sys.stderr, flush=True)
    for row, count in zip(rows, instructions(elves, int(sys.argv[1])), strict=True):
        row |= {name: count[name] for name in ("STL", "LDL", "HGMMA", "HMMA")}
        row["atomics"] = sum(count[name] for name in ("RED", "REDG", "ATOM", "ATOMG"))
    print(json.dumps(rows))
