"""Lower training steps for a GPU that is not there; count bytes and compile their kernels.

python -m benchmarks.gpu_lowering                                # the table of all cases
python -m benchmarks.gpu_lowering --cases cram-1gpu --compile    # compile their kernels for every architecture
python -m benchmarks.gpu_lowering --record                       # replace recorded.json, which the tests compare with
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_lowering.fake_cuda import CAPABILITIES
from benchmarks.gpu_lowering.graphs import Graph, Region
from benchmarks.gpu_lowering.kernels import compile_kernel, compile_liger_kernels, distinct_kernels
from benchmarks.gpu_lowering.step import Step, lower_step

RECORDED = Path(__file__).parent / "recorded.json"
# Overrides of yamls/cram-1gpu.yaml and the compute capability; before Ampere the precision is fp16.
CASES: dict[str, tuple[list[str], int]] = {
    "cram-1gpu": ([], 89),
    "cram-1gpu-fp16": ([], 75),
    "fp32-residual": (["model.residual_in_fp32=true"], 89),
    "fused-layernorm": (["algorithms.fused_layernorm={}"], 89),
    "post-norm": (["recipes=[crammed-bert,post-norm]"], 89),
    "alibi": (["recipes=[crammed-bert,alibi]"], 89),
    "gelu-mlp": (["recipes=[crammed-bert,gelu-mlp]"], 89),
    "local-attention": (["recipes=[crammed-bert,rope,local-attention]"], 89),
    "flex-attention": (["recipes=[crammed-bert,rope,local-attention,flex-attention]"], 89),
    "chunked-cross-entropy": (["recipes=[crammed-bert,rope,chunked-cross-entropy]"], 89),
    "modern-bert": (["recipes=[modern-bert]"], 89),
}


def main() -> None:
    """Parse arguments, lower, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--compile", action="store_true", help="compile the kernels, and Liger's")
    parser.add_argument("--every", action="store_true", help="compile every launch configuration")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    options = parser.parse_args()
    steps = {name: lower_step(*CASES[name]) for name in options.cases}
    found: dict[str, Any] = {
        "torch": torch.__version__.split("+")[0],
        "cases": {name: describe_step(step) for name, step in steps.items()},
    }
    if options.record:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    if options.compile:
        found["binaries"] = compile_all(steps, options.every)
    if options.json:
        print(json.dumps(found))
        return
    print("\n".join(table(found["cases"])))
    for name, sizes in found.get("binaries", {}).items():
        print(name, *(f"sm_{capability}: {size}" for capability, size in sizes.items()))


def describe_step(step: Step) -> dict[str, Any]:
    """Return the counts of a lowered step."""
    return {
        "rows": step.rows,
        "length": step.length,
        "masked": step.masked,
        "vocabulary": step.vocabulary,
        "graph_breaks": step.graph_breaks,
        "layers": [_describe_region(layer) for layer in step.layers],
        "head": _describe_region(step.head),
    }


def _describe_region(region: Region) -> dict[str, Any]:
    assert region.forward is not None and region.backward is not None
    return {
        "forward": _describe_graph(region.forward),
        "backward": _describe_graph(region.backward),
        "saved": region.forward.saved,
        "tangents": region.backward.tangents,
    }


def _describe_graph(graph: Graph) -> dict[str, int]:
    return {
        "bytes": graph.bytes,
        "fused_bytes": graph.fused_bytes,
        "launches": len(graph.operations),
        "flops": sum(operation.flops for operation in graph.operations),
    }


def compile_all(steps: dict[str, Step], every: bool) -> dict[str, dict[int, Any]]:
    """Compile the kernels of steps, of bf16 from Ampere on and of fp16 before it, and Liger's; return their sizes."""
    binaries: dict[str, dict[int, Any]] = {}
    for half in ("bf16", "fp16"):
        capabilities = [capability for capability in CAPABILITIES if (capability >= 80) == (half == "bf16")]
        kind = [step for name, step in steps.items() if (CASES[name][1] >= 80) == (half == "bf16")]
        for name, source in distinct_kernels(kind).items():
            binaries[f"{half} {name}"] = compile_kernel(name, source, capabilities, every)
    for capability in CAPABILITIES:
        for name, size in compile_liger_kernels(capability).items():
            binaries.setdefault(f"liger {name}", {})[capability] = size
    return binaries


def table(cases: dict[str, Any]) -> Iterable[str]:
    """Format the counts as a table of Markdown; bytes per token of the row, also of the head."""
    yield "| case | region | forward: B/token | launches | backward: B/token | launches | saved: B/token |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, case in cases.items():
        tokens = case["rows"] * case["length"]
        regions = {f"layer {index + 1}": layer for index, layer in enumerate(case["layers"])} | {"head": case["head"]}
        for label, region in regions.items():
            cells = [name, label]
            for direction in ("forward", "backward"):
                graph = region[direction]
                cells += [f"{graph['bytes'] / tokens:,.0f}", str(graph["launches"])]
            cells.append(f"{region['saved'] / tokens:,.0f}")
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
