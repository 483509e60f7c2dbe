"""`python -m data_plane.bench engine --artifact DIR …`: what `ebb bench engine` starts. Progress goes to stderr.

Knows nothing of HTTP or of the gateway.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from data_plane.bench.bounds import Machine, Work, bound_ratio, measure_machine, work_of
from data_plane.bench.cases import CaseResult, run_case
from data_plane.bench.situations import run_mixed, run_prefix
from data_plane.execution import Loaded, LoadOptions, load
from data_plane.weights.mapped import open_mapped

RATES = tuple(field.name for field in fields(CaseResult) if field.name.endswith(("_tps", "_ms", "_mb")))


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 1,8,32") from None
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' holds a number below 1")
    return numbers


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    engine = argparse.ArgumentParser(
        prog="python -m data_plane.bench engine", description="Measures the engine by itself."
    )
    engine.add_argument("--artifact", required=True, type=Path)
    engine.add_argument("--concurrency", type=_numbers, default=[1, 8, 32])
    engine.add_argument("--prompt-tokens", type=_numbers, default=[128, 512, 2048])
    engine.add_argument("--new-tokens", type=int, default=128)
    engine.add_argument("--threads", type=int, default=0, help="0: all cores")
    engine.add_argument("--repeats", type=int, default=1, help="medians of so many runs")
    engine.add_argument("--mode", choices=("cases", "prefix", "mixed"), default="cases")
    engine.add_argument(
        "--overlap", choices=("auto", "on", "off"), default="auto", help="prepare a step while the one before it runs"
    )
    engine.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return engine.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """0, or 1 with a sentence on stderr."""
    options = _arguments(arguments)
    try:
        return _measure(options)
    except (ValueError, MemoryError) as error:
        print(f"The engine cannot be measured so: {error}", file=sys.stderr)
        return 1


def _measure(options: argparse.Namespace) -> int:
    streams = max(options.concurrency) if options.mode == "cases" else 32
    longest = max(options.prompt_tokens) + options.new_tokens if options.mode == "cases" else 0
    artifact = open_mapped(options.artifact)
    config = artifact.config
    # room for the largest case, so that none is preempted
    wanted = (streams * (longest + 32) if longest else 32768) * config.kv_elements_per_token * 4
    sizes = LoadOptions(
        max_num_seqs=max(32, streams),
        kv_cache_bytes=wanted,
        threads=options.threads,
        overlap=None if options.overlap == "auto" else options.overlap == "on",
    )
    loaded = load(options.artifact, sizes)
    if options.mode != "cases":
        result = (run_prefix if options.mode == "prefix" else run_mixed)(loaded)
        print(json.dumps(result) if options.output == "json" else _lines(result))
        return 0
    threads = options.threads or len(os.sched_getaffinity(0))
    machine = measure_machine(artifact, threads)
    if options.output == "table":
        print(_introduction(loaded, machine, options.artifact.name), flush=True)
    cases = _run_all(loaded, options, machine, work_of(artifact))
    if options.output == "json":
        told = {"cases": cases, "machine": asdict(machine) if machine else None, "path": loaded.path}
        print(json.dumps(told | {"artifact": options.artifact.name, "quantization": config.quantization}))
    return 0


def _run_all(loaded: Loaded, options: argparse.Namespace, machine: Machine | None, work: Work) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for prompt_tokens in options.prompt_tokens:
        for concurrency in options.concurrency:
            runs = [_run(loaded, concurrency, prompt_tokens, options) for _ in range(options.repeats)]
            middle = sorted(runs, key=lambda run: run.decode_tps)[len(runs) // 2]
            case: dict[str, Any] = asdict(middle)
            case |= {name: median(getattr(run, name) for run in runs) for name in RATES if name != "step_ms"}
            case["step_ms"] = middle.step_ms
            case["spread"] = {
                name: [min(getattr(run, name) for run in runs), max(getattr(run, name) for run in runs)]
                for name in ("prefill_tps", "decode_tps", "ttft_ms")
            }
            case["bound_ratio"] = bound_ratio(machine, work, middle)
            prefill_bound = machine.gmacs * 1e9 / work.multiply_adds if machine else None
            case["prefill_bound_ratio"] = case["prefill_tps"] / prefill_bound if prefill_bound else None
            cases.append(case)
            if options.output == "table":
                print(_row(case), flush=True)
    return cases


def _run(loaded: Loaded, concurrency: int, prompt_tokens: int, options: argparse.Namespace) -> CaseResult:
    total, done = concurrency * options.new_tokens, 0
    shows = sys.stderr.isatty()

    def on_tokens(count: int) -> None:
        nonlocal done
        done += count
        if shows:
            end = "\n" if done == total else ""
            label = f"\r{concurrency} streams, {prompt_tokens} + {options.new_tokens} tokens: {done}/{total}"
            print(label, end=end, file=sys.stderr, flush=True)

    return run_case(loaded, concurrency, prompt_tokens, options.new_tokens, on_tokens)


def _introduction(loaded: Loaded, machine: Machine | None, name: str) -> str:
    lines = [f"{name[:19]}, {loaded.model_config.quantization}, {loaded.path}"]
    if machine is not None:
        lines.append(
            f"{machine.cpu}: reads {machine.read_gbps:.1f} GB/s, multiplies {machine.gmacs:.1f} billion pairs a second "
            f"on {machine.threads} threads; 'of bound' is our decode rate against what these two allow"
        )
    heads = ("streams", "prompt", "prefill/s", "decode/s", "ttft ms", "itl p50", "itl p99", "MB", "of bound")
    steps = "  step ms: matmul attention sampling rest packing host (hidden)"
    return "\n".join([*lines, "", " ".join(f"{head:>9}" for head in heads) + steps])


def _row(case: dict[str, Any]) -> str:
    bound = "-" if case["bound_ratio"] is None else f"{case['bound_ratio']:.0%}"
    numbers = [case["prefill_tps"], case["decode_tps"], case["ttft_ms"], case["itl_p50_ms"], case["itl_p99_ms"]]
    cells = [str(case["concurrency"]), str(case["prompt_tokens"]), *[f"{number:.1f}" for number in numbers]]
    cells += [f"{case['resident_mb']:.0f}", bound]
    parts = [case["step_ms"].get(part) for part in ("matmul", "attention", "sampling", "rest", "packing", "host")]
    split = " ".join("-" if part is None else f"{part:.2f}" for part in parts) + f" ({case['hidden_ms']:.2f})"
    return " ".join(f"{cell:>9}" for cell in cells) + "           " + split


def _lines(result: dict[str, float]) -> str:
    return "\n".join(f"{name:>14}  {value:.3f}" for name, value in result.items())
