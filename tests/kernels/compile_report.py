"""Compiles every shipped configuration for sm_80 and sm_90 without a GPU and reads the result.

Run by test_compile.py in a process without TRITON_INTERPRET; prints one JSON list. Arguments:
architectures ("80 90" by default).
"""

import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile

import triton
from mtplug_kernels.triton_kernels import backward, forward
from mtplug_kernels.tuning import blocks
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = {
    "forward": forward.forward,
    "backward_queries": backward.backward_queries,
    "backward_keys": backward.backward_keys,
    "backward_table": backward.backward_table,
}
SCHEMES = {
    "none": {}, "table": {"HAS_TABLE": True}, "linear": {"HAS_LINEAR": True},
    "query": {"HAS_QR": True}, "key": {"HAS_KR": True},
}  # fmt: skip
HALF = ["Q", "K", "V", "OUT", "DO", "DQ", "DK", "DV", "QR", "KR"]
FLOAT = ["LSE", "TABLE", "SLOPES", "DELTA", "LEFT", "DSLOPE", "DQR", "DKR", "FOLD"]
TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
# Shared memory of one program, and of an SM: CUDA programming guide, table of capabilities.
LIMITS = {80: (163 * 1024, 164 * 1024), 90: (227 * 1024, 228 * 1024)}


def source(kernel, constants):
    """The signature that a launch with contiguous bfloat16 tensors would have."""
    names = list(inspect.signature(kernel.fn).parameters)
    signature, attributes = {}, {}
    for n, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        aligned = True
        if name in HALF:
            signature[name] = "*bf16"
        elif name in FLOAT:
            signature[name] = "*fp32"
        elif name == "SPANS":
            signature[name] = "*i32"
        else:
            aligned = bool(re.fullmatch(r"s\w{1,2}[zhl]", name)) and not name.startswith("sl")
            kinds = {"scale": "fp32", "scale2": "fp32", "inverse_keep": "fp32"}
            kinds |= {"seed": "i64", "threshold": "i64"}
            signature[name] = kinds.get(name, "i32")
        if aligned:
            attributes[(n,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def constants_of(name, head, scheme, causal, dropout=False):
    use = blocks(name, head, 2, scheme in ("query", "key"))
    flags = dict.fromkeys(("HAS_TABLE", "HAS_QR", "HAS_KR", "HAS_LINEAR"), False) | SCHEMES[scheme]
    constants = dict(
        flags, CAUSAL=causal, DROPOUT=dropout, SIZE=head, VSIZE=head, BD=head, BV=head,
        BM=use.queries, BN=use.keys, PRECISION="tf32", B=use.queries,
        NEED_LEFT=not causal and scheme in ("table", "query"), NEED_SLOPE=scheme == "linear",
    )  # fmt: skip
    known = inspect.signature(KERNELS[name].fn).parameters
    return {key: value for key, value in constants.items() if key in known}, use


def measure(compiled, capability, warps):
    """Registers, stack, spills and matrix instructions from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        dump = [os.path.join(TOOLS, "cuobjdump")]
        usage = subprocess.run(
            [*dump, "--dump-resource-usage", file.name], capture_output=True, text=True
        ).stdout
        sass = subprocess.run([*dump, "-sass", file.name], capture_output=True, text=True).stdout
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    shared = compiled.metadata.shared
    per_warp = -(-registers // 8) * 8 * 32
    occupancy = min(
        65536 // (per_warp * warps), LIMITS[capability][1] // (shared + 1024), 64 // warps
    )
    count = {op: len(re.findall(rf"\b{op}\b", sass)) for op in ("STL", "LDL", "HGMMA", "HMMA")}
    atomics = len(re.findall(r"\b(?:RED|REDG|ATOM|ATOMG)\b", sass))
    stack = int(re.search(r"STACK:(\d+)", usage)[1])
    return dict(
        registers=registers, stack=stack, shared=shared, shared_limit=LIMITS[capability][0],
        programs_per_sm=occupancy, atomics=atomics, **count,
    )  # fmt: skip


def main(capabilities, heads=(64, 128, 256)):
    report = []
    for head, name, scheme, causal in itertools.product(heads, KERNELS, SCHEMES, (False, True)):
        if name == "backward_table" and scheme != "table":
            continue
        # Head size 256 and the far cheaper causal forms of tables are held by fewer cases.
        if head == 256 and (scheme != "table" or causal):
            continue
        constants, use = constants_of(name, head, scheme, causal)
        for capability in capabilities:
            row = {
                "kernel": name,
                "head": head,
                "scheme": scheme,
                "causal": causal,
                "sm": capability,
            }
            row |= {"tile": f"{use.queries}x{use.keys}", "warps": use.warps, "stages": use.stages}
            options = {"num_warps": use.warps, "num_stages": use.stages}
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(
                source(KERNELS[name], constants), target=target, options=options
            )
            report.append(row | measure(compiled, capability, use.warps))
            if os.environ.get("PROGRESS"):
                print(report[-1], file=sys.stderr, flush=True)
    return report


if __name__ == "__main__":
    print(json.dumps(main([int(x) for x in sys.argv[1:]] or [80, 90])))
