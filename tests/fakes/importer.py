"""Stands in for `python -m data_plane.weights import`: speaks its protocol, without weights. The last part of the
source says how it ends: `ok`, `slow` (a minute of progress), `fatal`, `flaky`, `crash`, `garbage`, `silent`, `gated`
(the quality gate refuses int4 unless forced), `other` (another source than the first time), `deaf` (it knows no
quantization)."""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

DIGEST = "sha256:" + "ab" * 32
RESULT = {
    "type": "result",
    "artifact": DIGEST,
    "architecture": "llama",
    "parameters": 134_515_008,
    "context_length": 2048,
    "vocab_size": 49152,
    "chat_template": "{{ messages }}" * 6000,
    "licence": "apache-2.0",
    "source_bytes": 98_000_000,
    "source_sha256": "cd" * 32,
    "artifact_bytes": 5_000_000_000,
    "dtype": "bfloat16",
    "kv_bytes_per_token": 23040,
    "shape": {"num_layers": 30, "hidden_size": 576},
}


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--source", "--artifacts", "--scratch"):
        parser.add_argument(name, required=True)
    parser.add_argument("--quantization", choices=("none", "int8", "int4", "fp8", "auto"), default="none")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    kind = arguments.source.rpartition("/")[2]
    scratch = Path(arguments.scratch)
    (scratch / "pid").write_text(str(os.getpid()))
    with (Path(arguments.artifacts) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    say(type="progress", stage="download", done=0, total=100)
    if kind == "slow":
        # slow only the first time, so that the job's second attempt ends
        if len((Path(arguments.artifacts) / "starts").read_text().splitlines()) == 1:
            for done in range(1, 600):
                say(type="progress", stage="download", done=done, total=600)
                time.sleep(0.1)
    elif kind == "fatal":
        say(type="failure", message="The file is truncated at byte 12.", fatal=True)
        return 1
    elif kind == "flaky":
        say(type="failure", message="The connection was reset.", fatal=False)
        return 1
    elif kind == "crash":
        print("Traceback: boom", file=sys.stderr)
        os.abort()
    elif kind == "garbage":
        print("Downloading...", flush=True)
    elif kind == "silent":
        return 0
    elif kind == "gated" and arguments.quantization == "int4" and not arguments.force:
        say(type="failure", message="int4 has 1.09 times the perplexity, more than 1.06; use --force.", fatal=True)
        return 1
    print(json.dumps(result(kind, arguments.quantization)), flush=True)
    return 0


def result(kind: str, quantization: str) -> Mapping[str, object]:
    made = {"auto": "int8", **({"int8": "none"} if kind == "deaf" else {})}.get(quantization, quantization)
    if made != "none":
        say(type="progress", stage="quantize", done=50, total=100)
        say(type="progress", stage="evaluate", done=1, total=32)
    say(type="progress", stage="write", done=100, total=100)
    if made == "none":
        return RESULT
    quality = {"perplexity_ratio": 1.09 if made == "int4" else 1.004, "mean_kl": 0.002, "greedy_agreement": 0.96}
    return {
        **RESULT,
        "artifact": "sha256:" + {"int8": "8", "int4": "4", "fp8": "f"}[made] * 64,
        "artifact_bytes": 2_500_000_000,
        "source_sha256": "00" * 32 if kind == "other" else RESULT["source_sha256"],
        "quantization": made,
        "quality": quality,
        "speed": {"decode_1_tps": 180.0, "prefill_tps": 4000.0, "score": 600.0},
    }


if __name__ == "__main__":
    sys.exit(main())
