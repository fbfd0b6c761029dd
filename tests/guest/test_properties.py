"""What holds for any input of the code that reads a guest's: frames, parts, messages, file names, records.

The oracles for arbitrary bytes are those of the fuzzer; here they get inputs that are nearly right.
"""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest_agent.frames import (
    HEADER,
    JUPYTER_KINDS,
    MAX_PAYLOAD,
    MORE,
    Decoder,
    FrameError,
    Kind,
    encode,
    encode_parts,
    pack_parts,
    unpack_parts,
)
from guest_agent.names import Patterns, TreeError, path_parts, tree_parts
from tests.fuzz import targets
from vm_kernel.errors import CheckpointError
from vm_kernel.guest.channel import FROM_GUEST
from vm_kernel.guest.messages import parse_guest
from vm_kernel.vm import checkpoints

settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci")

KINDS = st.sampled_from(sorted(FROM_GUEST))
TEXT = st.text(max_size=8) | st.sampled_from(["..", ".", "", "/", "\0", "\ud800", "\x1b[2J", "a/b", "done", "file"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**400)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
CHUNKS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


# ---- frames


@given(st.lists(st.tuples(KINDS, st.binary(max_size=60)), max_size=8), CHUNKS)
def test_messages_arrive_whatever_pieces_they_come_in(messages: list[tuple[Kind, bytes]], chunks: list[int]) -> None:
    data = b"".join(b"".join(encode(kind, body)) for kind, body in messages)
    assert targets.decoded(data, chunks) == ([(int(kind), body) for kind, body in messages], "")


@given(st.dictionaries(KINDS, st.lists(st.binary(max_size=20), min_size=1, max_size=5), min_size=1), CHUNKS, st.data())
def test_chunks_of_several_kinds_may_alternate(
    cut: dict[Kind, list[bytes]], chunks: list[int], data: st.DataObject
) -> None:
    left = {kind: [*pieces] for kind, pieces in cut.items()}
    stream = b""
    while left:
        kind = data.draw(st.sampled_from(sorted(left)))
        piece = left[kind].pop(0)
        if not left[kind]:
            del left[kind]
        stream += HEADER.pack(len(piece), kind, MORE if kind in left else 0, 0) + piece
    found, error = targets.decoded(stream, chunks)
    assert (dict(found), error) == ({int(kind): b"".join(pieces) for kind, pieces in cut.items()}, "")


FRAMES = st.lists(
    st.builds(
        lambda kind, body, flags, lie: HEADER.pack(max(0, len(body) + lie), kind, flags, 0) + body,
        KINDS | st.integers(0, 255),
        st.binary(max_size=30),
        st.sampled_from([0, 0, 0, 1, 1, 2]),
        st.sampled_from([0, 0, 0, 0, 1, -1, 10**6]),
    )
    | st.binary(max_size=12),
    max_size=8,
).map(b"".join)


@given(FRAMES)
def test_any_bytes_are_messages_or_one_error(data: bytes) -> None:
    targets.frames_target(data)


@given(KINDS, st.integers(1, 4), st.integers(-1, 1))
def test_limits_hold_to_the_byte(kind: Kind, frames: int, beyond: int) -> None:
    limit = frames * 1000
    decoder = Decoder(FROM_GUEST, limit)
    sizes = [1000] * (frames - 1) + [1000 + beyond]
    data = b"".join(HEADER.pack(n, kind, MORE if at < frames - 1 else 0, 0) + bytes(n) for at, n in enumerate(sizes))
    if beyond > 0:
        with pytest.raises(FrameError):
            list(decoder.feed(data))
    else:
        assert [len(body) for _, body in decoder.feed(data)] == [limit + beyond]
        assert decoder.idle


@given(st.lists(st.binary(max_size=50), max_size=10), st.binary(max_size=40))
def test_parts_survive_and_nothing_else_is_taken_for_parts(parts: list[bytes], junk: bytes) -> None:
    assert unpack_parts(pack_parts(parts)) == parts
    frames = b"".join(b"".join(frame) for frame in encode_parts(Kind.IOPUB, parts))
    assert frames == b"".join(encode(Kind.IOPUB, pack_parts(parts)))
    targets.frames_target(junk)
    if junk:
        with pytest.raises(FrameError):
            unpack_parts(pack_parts(parts) + junk)


def test_large_parts_are_cut_where_one_would_expect() -> None:
    parts = [b"a", bytes(MAX_PAYLOAD), b"", bytes(7)]
    frames = b"".join(b"".join(frame) for frame in encode_parts(Kind.IOPUB, parts))
    assert frames == b"".join(encode(Kind.IOPUB, pack_parts(parts)))


# ---- messages


HEADERS = st.fixed_dictionaries({"msg_id": TEXT | VALUES, "msg_type": TEXT | VALUES})
PARENTS = st.fixed_dictionaries({}, optional={"msg_id": TEXT | VALUES})
CONTENTS = st.dictionaries(
    st.sampled_from(["name", "text", "data", "metadata", "transient", "traceback", "ename", "status", "wait"]), VALUES
)


@given(HEADERS | VALUES, PARENTS | VALUES, VALUES, CONTENTS | VALUES)
def test_a_message_is_taken_or_refused(header: Any, parent: Any, metadata: Any, content: Any) -> None:
    targets.messages_target(b"\0".join([b"t", *map(as_json, (header, parent, metadata, content))]))


@given(st.lists(st.binary(max_size=30), max_size=7).map(b"\0".join))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    targets.messages_target(data)


@given(CONTENTS, st.sampled_from(sorted(JUPYTER_KINDS)))
def test_an_honest_message_is_taken_as_it_is(content: dict[str, Any], kind: Kind) -> None:
    try:
        wanted = json.loads(json.dumps(content, allow_nan=False))
    except ValueError:
        return
    parts = [b"t", as_json({"msg_id": "m", "msg_type": "stream"}), as_json({"msg_id": "p"}), b"{}", as_json(wanted)]
    message = parse_guest([*parts])
    assert (message.content, message.parent_id, message.parts) == (wanted, "p", parts[1:])


@given(st.dictionaries(st.sampled_from(["protocol", "kernel_pid", "kernel_info", "error"]), SCALARS | VALUES))
def test_a_handshake_succeeds_or_fails_in_our_words(fields: dict[str, Any]) -> None:
    body = as_json(fields)
    targets.handshake_target(body)
    for kind in (Kind.HELLO, Kind.READY, Kind.PONG):
        targets.handshake_target(b"".join(encode(kind, body)))


# ---- files


@given(st.text(alphabet="ab./\0\n\ud800é", max_size=12))
def test_a_name_stays_below_its_folder(name: str) -> None:
    try:
        parts = tree_parts(name)
    except TreeError:
        pass
    else:
        assert "/".join(parts) == name
        assert os.path.normpath(name) == name
        assert not name.startswith(("/", ".."))
    try:
        absolute, parts = path_parts(name)
    except TreeError:
        return
    assert ".." not in parts
    assert absolute == name.startswith("/")


COMPONENT = st.lists(st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]"]), min_size=1, max_size=4).map("".join)


def meant(pattern: list[str], parts: list[str]) -> bool:
    """By trying everything."""
    if not pattern:
        return True
    if not parts:
        return False
    if pattern[0] == "**":
        return meant(pattern[1:] or ["*"], parts) or meant(pattern, parts[1:])
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and meant(pattern[1:], parts[1:])


@given(
    st.lists(COMPONENT.filter(lambda text: text != "**") | st.just("**"), min_size=1, max_size=4),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=5),
)
@settings(max_examples=600)
def test_patterns_mean_what_a_shell_means(pattern: list[str], parts: list[str]) -> None:
    pattern = [part if part == "**" else part.replace("**", "*").replace("**", "*") for part in pattern]
    assert Patterns(["/".join(pattern)]).match(parts) == meant(pattern, parts)


MESSAGES = st.fixed_dictionaries(
    {
        "id": st.just(1) | SCALARS,
        "t": st.sampled_from(["file", "data", "dir", "done", "skip", "begin", "error", "item"]),
    },
    optional={
        "name": TEXT | VALUES,
        "size": st.integers(-1, 20) | VALUES,
        "mode": SCALARS,
        "mtime_ns": SCALARS,
        "sha256": SCALARS,
        "bytes": SCALARS,
        "kind": VALUES,
        "reason": VALUES,
        "why": VALUES,
    },
)


@given(st.lists(st.tuples(MESSAGES, st.binary(max_size=10).filter(lambda data: b"\n" not in data)), max_size=6))
def test_files_arrive_where_they_belong_or_not_at_all(messages: list[tuple[dict[str, Any], bytes]]) -> None:
    targets.files_target(b"\n".join(as_json(fields) + b"\t" + data for fields, data in messages))


# ---- records on disk


MANIFESTS = st.fixed_dictionaries(
    {"format": st.just(1) | SCALARS, "size": st.just(0) | VALUES, "golden_key": SCALARS, "build_id": SCALARS},
    optional={"pause_ms": VALUES, "created_at": st.just("2026-01-01T00:00:00+00:00") | VALUES, "sha256": VALUES},
)


@given(MANIFESTS.map(as_json) | VALUES.map(as_json) | st.binary(max_size=20))
def test_a_checkpoint_is_one_or_is_refused(tmp_path_factory: pytest.TempPathFactory, manifest: bytes) -> None:
    folder = _folder(tmp_path_factory)
    (folder / "pages").write_bytes(b"")
    (folder / "manifest.json").write_bytes(manifest)
    try:
        found = checkpoints.load(folder, check=False)
    except CheckpointError:
        return
    assert found.size == 0


RUNS = st.lists(st.tuples(st.integers(-1, 8), st.integers(-1, 3)).map(lambda run: [4096 * run[0], 4096 * run[1]]))


@given((RUNS | VALUES).map(as_json) | st.just(b"[" * 10_000))
def test_runs_of_pages_are_in_order_or_refused(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = _folder(tmp_path_factory) / "runs"
    path.write_bytes(text)
    try:
        runs = checkpoints.read_runs(path)
    except ValueError:
        return
    end = 0
    for run in runs:
        assert run.offset >= end
        assert run.size > 0
        end = run.offset + run.size


def _folder(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    return folder
