"""Digests tell whatever differs, and those that were written with SHA-256 are still known."""

from __future__ import annotations

import hashlib

import earlier
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystudy.finetune.digests import are_bytes_of, are_tensors_of, bytes_digest, tensors_digest

WEIGHTS = [
    ("a", torch.arange(6.0).reshape(2, 3)),
    ("b", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
    ("n", torch.tensor(7)),
]

OTHERS = {
    "a value": [("a", torch.arange(6.0).reshape(2, 3) + 1e-6), *WEIGHTS[1:]],
    "a shape": [("a", torch.arange(6.0).reshape(3, 2)), *WEIGHTS[1:]],
    "a type": [*WEIGHTS[:2], ("n", torch.tensor(7, dtype=torch.int32))],
    "a type of as many bytes": [WEIGHTS[0], ("b", torch.tensor([1.5, -2.0], dtype=torch.float16)), WEIGHTS[2]],
    "a name": [("c", WEIGHTS[0][1]), *WEIGHTS[1:]],
    "the order": [WEIGHTS[1], WEIGHTS[0], WEIGHTS[2]],
    "how many": WEIGHTS[:2],
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_differs_is_told(what: str) -> None:
    digest = tensors_digest(WEIGHTS)
    assert len(digest) == 32
    assert are_tensors_of(WEIGHTS, digest)
    assert tensors_digest(OTHERS[what]) != digest
    assert not are_tensors_of(OTHERS[what], digest)


def test_where_a_tensor_lies_does_not_matter() -> None:
    apart = torch.arange(12.0).reshape(3, 4).T[::2].T  # neither contiguous nor alone in its memory
    assert tensors_digest([("a", apart)]) == tensors_digest([("a", apart.clone())])


def test_weights_are_known_by_their_sha_256_too() -> None:
    assert are_tensors_of(WEIGHTS, earlier.tensors_digest(WEIGHTS))
    for others in OTHERS.values():
        assert not are_tensors_of(others, earlier.tensors_digest(WEIGHTS))


@given(parts=st.lists(st.binary(max_size=50), max_size=5), at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_bytes_are_known_by_either_digest_until_a_bit_of_them_flips(parts: list[bytes], at: int, bit: int) -> None:
    data = b"".join(parts)
    digests = bytes_digest(parts), hashlib.sha256(data).hexdigest()[:32]
    assert all(are_bytes_of(data, digest) for digest in digests)
    if data:
        place = at % len(data)
        damaged = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        assert not any(are_bytes_of(damaged, digest) for digest in digests)
