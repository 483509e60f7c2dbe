"""The GGUF reader against damaged files: always one GgufError or WeightsError, never anything else."""

import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import write_gguf

from data_plane.weights.errors import GgufError, WeightsError
from data_plane.weights.gguf import GgufFile
from data_plane.weights.gguf_model import open_gguf_model
from data_plane.weights.layout import tensor_layout


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _file(path: Path, *, entries: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3) -> Path:
    raw = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join([*entries, *tensors])
    path.write_bytes(raw + bytes(-len(raw) % 32) + bytes(data))
    return path


def _u32(key: str, value: int) -> bytes:
    return _string(key) + struct.pack("<II", 4, value)


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_file(tmp_path: Path, version: int) -> None:
    path = _file(
        tmp_path / "a.gguf",
        entries=[
            _u32("n", 5),
            _string("flag") + struct.pack("<IB", 7, 1),
            _string("s") + struct.pack("<I", 8) + _string("é"),
        ],
        tensors=[_tensor("t", [8, 2], 0, 0)],
        data=64,
        version=version,
    )
    gguf = GgufFile(path)
    assert gguf.metadata == {"n": 5, "flag": True, "s": "é"}
    assert torch.equal(gguf.read("t", torch.float32), torch.zeros(2, 8))
    with pytest.raises(GgufError, match="no tensor 'u'"):
        gguf.read("u", torch.float32)


LIES = {
    "too many dimensions": ([], [_string("t") + struct.pack("<I", 5) + bytes(60)], "5 dimensions"),
    "no dimensions": ([], [_string("t") + struct.pack("<I", 0) + bytes(60)], "0 dimensions"),
    "dimension zero": ([], [_tensor("t", [0, 4], 0, 0)], "whole F32 blocks"),
    "huge dimensions": ([], [_tensor("t", [2**62, 2**62, 2**62, 2**62], 0, 0)], "would end at byte"),
    "unknown type": ([], [_tensor("t", [32], 31, 0)], "type 31"),
    "half a block": ([], [_tensor("t", [48], 2, 0)], "whole Q4_0 blocks"),
    "unaligned": ([], [_tensor("t", [4], 0, 4)], "no multiple of 32"),
    "beyond the end": ([], [_tensor("t", [4], 0, 2**40)], "would end at byte"),
    "twice the same": ([], [_tensor("t", [4], 0, 0), _tensor("t", [4], 0, 32)], "tensor 't' twice"),
    "overlapping": ([], [_tensor("t", [16], 0, 0), _tensor("u", [8], 0, 32)], "overlap"),
    "key twice": ([_u32("n", 1), _u32("n", 2)], [], "key 'n' twice"),
    "alignment odd": ([_u32("general.alignment", 48)], [], "alignment is 48"),
    "alignment zero": ([_u32("general.alignment", 0)], [], "alignment is 0"),
    "alignment large": ([_u32("general.alignment", 1 << 20)], [], "alignment is"),
    "unknown value type": ([_string("k") + struct.pack("<I", 13)], [], "unknown type 13"),
    "string beyond the end": ([_string("k") + struct.pack("<IQ", 8, 1 << 20)], [], "ends early"),
    "string without end": ([_string("k") + struct.pack("<IQ", 8, 2**64 - 1)], [], "more than the"),
    "array without end": ([_string("k") + struct.pack("<IIQ", 9, 4, 2**63)], [], "announces"),
    "array of strings": ([_string("k") + struct.pack("<IIQ", 9, 8, 1 << 24)], [], "announces"),
    "array of arrays": ([_string("k") + struct.pack("<IIQ", 9, 9, 1)], [], "array of arrays"),
    "not UTF-8": ([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)], [], "not UTF-8"),
    "long key": ([_string("k" * 300) + struct.pack("<II", 4, 1)], [], "more than the 256"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(tmp_path: Path, lie: str) -> None:
    entries, tensors, sentence = LIES[lie]
    with pytest.raises(GgufError, match=sentence):
        GgufFile(_file(tmp_path / "a.gguf", entries=entries, tensors=tensors, data=64))


@pytest.mark.parametrize(
    ("lead", "sentence"),
    [
        (b"GGML" + bytes(20), "not with b'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "announces"),
        (b"GGUF" + struct.pack("<IQQ", 3, 60000, 60000), "announces"),
        (b"GGUF", "smallest"),
        (b"", "smallest"),
    ],
)
def test_leads_that_lie(tmp_path: Path, lead: bytes, sentence: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(lead)
    with pytest.raises(GgufError, match=sentence):
        GgufFile(path)


def test_a_folder_is_not_a_gguf(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="not a file"):
        GgufFile(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path)
    return path.read_bytes()


def _read_all(path: Path) -> int:
    model = open_gguf_model(path, "bfloat16")
    return sum(model.read_tensor(name).numel() for name in tensor_layout(model.config))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    keep=st.one_of(st.none(), st.floats(0, 1)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=5),
    head=st.booleans(),
)
def test_mutations_end_in_a_sentence_or_in_values(
    tmp_path: Path, sound: bytes, keep: float | None, flips: list[tuple[float, int]], head: bool
) -> None:
    """Half of the flips fall into the first 7 KB, where counts, lengths, types and offsets are."""
    raw = bytearray(sound)
    for place, mask in flips:
        raw[int(place * (min(len(raw), 7000 if head else len(raw)) - 1))] ^= mask
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(raw if keep is None else raw[: int(keep * len(raw))])
    try:
        assert _read_all(path) > 0
    except WeightsError as error:
        assert len(str(error)) > 20


def test_absurd_counts_allocate_nothing(tmp_path: Path) -> None:
    huge = _string("k") + struct.pack("<IIQ", 9, 4, (1 << 24) - 1)
    path = _file(tmp_path / "a.gguf", entries=[huge], tensors=[], data=1000)
    tracemalloc.start()
    try:
        with pytest.raises(GgufError):
            GgufFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
