"""What is signed is believed, and nothing else; the arithmetic of leases."""

import base64
import secrets

from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.nodes.credentials import PREFIX, Claims, sign, verify
from control_plane.nodes.lease import LeaseTerms
from data_plane.node.tenure import ASKING, ENDING, KNOCKING
from data_plane.wire.peers import peer_token, reader_of

SECRET = secrets.token_hex(32)
CLAIMS = Claims("node", "tenant", 3, 1_000.0)


def test_a_credential_is_what_was_signed() -> None:
    assert verify(sign(CLAIMS, SECRET), SECRET) == CLAIMS
    assert verify(sign(CLAIMS, SECRET), secrets.token_hex(32)) is None
    assert verify(sign(Claims("node", "tenant", 3, 1_000.0, audience="else"), SECRET), SECRET) is None


@given(st.integers(min_value=0), st.characters(codec="ascii"))
def test_a_changed_credential_is_none(at: int, character: str) -> None:
    good = sign(CLAIMS, SECRET)
    at %= len(good)
    changed = good[:at] + character + good[at + 1 :]
    assert verify(changed, SECRET) == (CLAIMS if changed == good else None)


@settings(max_examples=50)
@given(st.text(max_size=200))
def test_whatever_is_presented_is_answered(text: str) -> None:
    assert verify(text, SECRET) is None
    assert verify(PREFIX + text, SECRET) is None
    assert reader_of(text, "agent-token") is None


def test_claims_of_another_shape_are_none() -> None:
    text = PREFIX + base64.urlsafe_b64encode(b'{"node": 7}').decode().rstrip("=")
    signed = sign(CLAIMS, SECRET)
    assert verify(f"{text}.{signed.partition('.')[2]}", SECRET) is None


def test_a_peers_token_is_for_one_reader_and_one_agent() -> None:
    token = peer_token("agent-token", "node-1")
    assert reader_of(token, "agent-token") == "node-1"
    assert reader_of(token, "another") is None
    assert reader_of(token.replace("node-1", "node-2"), "agent-token") is None
    assert "agent-token" not in token


@given(st.floats(min_value=1, max_value=3600))
def test_a_node_has_ended_all_before_it_is_lost(lease_s: float) -> None:
    ended_s = lease_s * (1 + ASKING + KNOCKING + ENDING)
    spare_s = LeaseTerms(lease_s).silence_s - ended_s
    assert spare_s >= lease_s * 0.09, "what is left for clocks that differ and for a busy machine"
