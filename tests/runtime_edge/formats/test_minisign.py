import base64
import shutil
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.errors import SignatureError, UsageError
from runtime_edge.formats import minisign
from runtime_edge.formats.minisign import PublicKey, SecretKey, sign, verify

KEY = SecretKey(bytes(range(8)), bytes(range(32)))
program = pytest.mark.skipif(shutil.which("minisign") is None, reason="the minisign program is not installed")


@given(message=st.binary(max_size=300), comment=st.text(st.characters(codec="utf-8"), max_size=40))
def test_what_is_signed_verifies_and_the_comment_comes_back(message, comment):
    if not comment.isprintable():
        with pytest.raises(SignatureError):
            sign(message, KEY, comment)
    else:
        assert verify(message, sign(message, KEY, comment), KEY.public) == comment


def test_signing_twice_gives_the_same_signature():
    assert sign(b"manifest", KEY, "generation:1") == sign(b"manifest", KEY, "generation:1")


@given(message=st.binary(min_size=1, max_size=50), position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_message_is_refused(message, position, bit):
    changed = bytearray(message)
    changed[position % len(message)] ^= 1 << bit
    with pytest.raises(SignatureError, match=r"m\.json\.minisig: .* does not match"):
        verify(bytes(changed), sign(message, KEY, "generation:1"), KEY.public, "m.json.minisig")


def test_every_bit_of_a_signature_counts_but_those_of_the_untrusted_comment():
    signature = sign(b"manifest", KEY, "generation:1").encode()
    start = signature.index(b"\n")
    for position in range(start, len(signature)):
        for bit in range(8):
            changed = bytearray(signature)
            changed[position] ^= 1 << bit
            with pytest.raises(SignatureError):
                verify(b"manifest", changed.decode("latin-1"), KEY.public)


@given(st.text(max_size=300))
def test_text_that_is_no_signature_is_refused(text):
    with pytest.raises(SignatureError):
        verify(b"manifest", text, KEY.public)


def test_a_truncated_signature_is_refused():
    signature = sign(b"manifest", KEY, "generation:1")
    for length in range(len(signature) - 1):
        with pytest.raises(SignatureError):
            verify(b"manifest", signature[:length], KEY.public)


def test_another_key_is_refused_and_both_are_named():
    other = SecretKey(b"\x01" * 8, bytes(32))
    with pytest.raises(SignatureError, match="signed by key 0706050403020100, but 0101010101010101 is trusted"):
        verify(b"manifest", sign(b"manifest", KEY, ""), other.public)


def test_a_key_with_the_same_id_is_refused():
    other = SecretKey(KEY.key_id, bytes(32))
    with pytest.raises(SignatureError, match="does not match"):
        verify(b"manifest", sign(b"manifest", KEY, ""), other.public)


@given(key_id=st.binary(min_size=8, max_size=8), seed=st.binary(min_size=32, max_size=32))
def test_keys_survive_their_files(key_id, seed):
    secret = SecretKey(key_id, seed)
    assert SecretKey.from_text(secret.to_text()) == secret
    assert PublicKey.from_text(secret.public.to_text()) == secret.public
    assert PublicKey.from_text(secret.public.to_text().splitlines()[1]) == secret.public


@given(st.text(max_size=300))
def test_text_that_is_no_key_is_refused(text):
    for kind in (SecretKey, PublicKey):
        with pytest.raises(SignatureError, match="given"):
            kind.from_text(text, "given")


def test_a_damaged_secret_key_is_refused():
    head, body, _ = KEY.to_text().split("\n")
    blob = bytearray(base64.b64decode(body))
    for position in [*range(6), *range(54, 158)]:
        changed = bytearray(blob)
        changed[position] ^= 1
        with pytest.raises(SignatureError):
            SecretKey.from_text(f"{head}\n{base64.b64encode(changed).decode()}\n")


def test_an_encrypted_secret_key_is_refused_with_what_to_do():
    head, body, _ = KEY.to_text().split("\n")
    blob = bytearray(base64.b64decode(body))
    blob[2:4] = b"Sc"
    with pytest.raises(SignatureError, match="encrypted; make an unencrypted key with `minisign -G -W`"):
        SecretKey.from_text(f"{head}\n{base64.b64encode(blob).decode()}\n")


def test_a_key_pair_is_written_for_its_owner_alone(tmp_path):
    public = minisign.write_key_pair(KEY, tmp_path / "signing.key")
    assert stat.S_IMODE((tmp_path / "signing.key").stat().st_mode) == 0o600
    assert minisign.read_secret_key(tmp_path / "signing.key") == KEY
    assert minisign.read_public_key(public) == KEY.public


def test_a_key_pair_never_overwrites_anything(tmp_path):
    with pytest.raises(UsageError, match=r"\.pub"):
        minisign.write_key_pair(KEY, tmp_path / "signing.pub")
    (tmp_path / "signing.pub").write_text("somebody's")
    with pytest.raises(UsageError, match=r"signing\.pub: exists"):
        minisign.write_key_pair(KEY, tmp_path / "signing.key")
    assert (tmp_path / "signing.pub").read_text() == "somebody's"
    assert not (tmp_path / "signing.key").exists()


def test_files_that_cannot_be_keys_are_refused_by_name(tmp_path):
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff\xfe\x00")
    large.write_bytes(b"A" * 5000)
    for path in (tmp_path / "missing", tmp_path, binary, large):
        for read in (minisign.read_secret_key, minisign.read_public_key):
            with pytest.raises(SignatureError, match=str(path)):
                read(path)


@program
def test_the_minisign_program_verifies_ours(tmp_path):
    (tmp_path / "message").write_bytes(b"manifest")
    (tmp_path / "signature").write_text(sign(b"manifest", KEY, "generation:7 encoder:é"))
    (tmp_path / "key.pub").write_text(KEY.public.to_text())
    verified = _minisign("-V", "-Q", "-p", "key.pub", "-m", "message", "-x", "signature", cwd=tmp_path)
    assert verified.stdout == "generation:7 encoder:é\n"
    (tmp_path / "message").write_bytes(b"manifesto")
    with pytest.raises(subprocess.CalledProcessError):
        _minisign("-V", "-Q", "-p", "key.pub", "-m", "message", "-x", "signature", cwd=tmp_path)


@program
@pytest.mark.parametrize("kind", [["-H"], ["-l"]], ids=["prehashed", "legacy"])
def test_we_verify_the_minisign_programs(tmp_path, kind):
    _minisign("-G", "-W", "-p", "key.pub", "-s", "key", cwd=tmp_path)
    (tmp_path / "message").write_bytes(b"manifest")
    _minisign("-S", *kind, "-s", "key", "-m", "message", "-t", "generation:7", "-x", "signature", cwd=tmp_path)
    public = minisign.read_public_key(tmp_path / "key.pub")
    assert minisign.read_secret_key(tmp_path / "key").public == public
    assert verify(b"manifest", minisign.read_signature(tmp_path / "signature"), public) == "generation:7"


@program
def test_the_minisign_program_signs_with_our_key(tmp_path):
    public = minisign.write_key_pair(KEY, tmp_path / "key")
    (tmp_path / "message").write_bytes(b"manifest")
    _minisign("-S", "-s", "key", "-m", "message", "-t", "by hand", "-x", "signature", cwd=tmp_path)
    signature = minisign.read_signature(tmp_path / "signature")
    assert verify(b"manifest", signature, minisign.read_public_key(public)) == "by hand"


def _minisign(*arguments, cwd):
    return subprocess.run(["minisign", *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=30)
