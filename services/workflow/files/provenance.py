"""C2PA: what the platform makes says so, signed, and can be checked. See https://c2pa.org."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID, INVALID, ABSENT = "valid", "invalid", "absent"
# Made by a trained model, or by rules.
MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RULES = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
YEARS = 10
# Nobody outside knows the certificate that is made at the first start.
UNTRUSTED = "signingCredential.untrusted"
_SIGNED = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/gif",
        "image/avif",
        "image/tiff",
        "image/svg+xml",
        "video/mp4",
        "video/quicktime",
        "audio/wav",
        "audio/mpeg",
        "audio/flac",
        "audio/mp4",
    }
)
# Reading again what has just been written costs as much as writing it.
_SIGNING = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """What a file says of its origin."""

    state: str
    manifest_json: str = ""
    problems: list[str] = field(default_factory=list)


class Provenance:
    """Signs with a certificate chain and its key, both PEM. Without, nothing is signed."""

    def __init__(self) -> None:
        self._signer: c2pa.Signer | None = None
        self._context: c2pa.Context | None = None

    def open(self, chain_pem: bytes, key_pem: bytes) -> None:
        """Take the certificate. Raises ValueError when it cannot sign."""
        try:
            info = c2pa.C2paSignerInfo(
                alg=_algorithm(key_pem), sign_cert=chain_pem, private_key=key_pem, ta_url=None
            )
            self._signer = c2pa.Signer.from_info(info)
            self._context = c2pa.Context(settings=c2pa.Settings.from_dict(_SIGNING))
        except c2pa.C2paError as error:
            raise ValueError(f"the certificate for provenance cannot sign: {error}") from None

    async def sign(self, data: bytes, mime: str, made_by: str, synthetic: bool) -> bytes:
        """Return a file with its provenance in it; as it is where its format has no place for one."""
        if self._signer is None or mime not in _SIGNED:
            return data
        try:
            return await asyncio.to_thread(self._sign, data, mime, made_by, synthetic)
        except c2pa.C2paError as error:
            _logger.warning("provenance_not_written %s %s", mime, error)
            return data

    def _sign(self, data: bytes, mime: str, made_by: str, synthetic: bool) -> bytes:
        assert self._signer is not None
        action = {
            "action": "c2pa.created",
            "digitalSourceType": RULES if synthetic else MODEL,
            "softwareAgent": {"name": made_by},
        }
        manifest = {
            "claim_generator_info": [{"name": "OmniHub"}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        with c2pa.Builder(json.dumps(manifest), context=self._context) as builder:
            builder.sign(self._signer, mime, io.BytesIO(data), signed)
        return signed.getvalue()

    async def verify(self, data: bytes, mime: str) -> Found:
        """Return what a file says of its origin, and whether it is true."""
        return await asyncio.to_thread(_verified, data, mime)

    def close(self) -> None:
        """Let go of the key."""
        if self._signer is not None:
            self._signer.close()
            self._signer = None


def _verified(data: bytes, mime: str) -> Found:
    if mime not in _SIGNED:
        return Found(ABSENT, problems=[f"{mime} has no place for provenance"])
    try:
        with c2pa.Reader(mime, io.BytesIO(data)) as reader:
            state = reader.get_validation_state()
            results = reader.get_validation_results() or {}
            manifest = json.loads(reader.json())
    except c2pa.C2paError as error:
        if str(error).startswith("ManifestNotFound"):
            return Found(ABSENT)
        return Found(INVALID, problems=[str(error)])
    problems = _problems(results)
    active = manifest.get("manifests", {}).get(manifest.get("active_manifest", ""), {})
    return Found(VALID if state in ("Valid", "Trusted") else INVALID, json.dumps(active), problems)


def _problems(results: Any) -> list[str]:
    failures = results.get("activeManifest", {}).get("failure", [])
    return [f"{each.get('code', '')}: {each.get('explanation', '')}" for each in failures]


def _algorithm(key_pem: bytes) -> bytes:
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the private key for provenance cannot be read: {error}") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        names = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}
        if key.curve.name in names:
            return names[key.curve.name]
    raise ValueError("the private key for provenance is of a kind that C2PA does not sign with")


def development_certificate() -> bytes:
    """Return a new certificate chain and its key, PEM, separated by a NUL: the format signs with no less."""
    authority, signer = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("OmniHub development authority", authority, authority, authority=True)
    leaf = _certificate("OmniHub", signer, authority, authority=False)
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (leaf, root))
    key = signer.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain + b"\0" + key


def read_certificate(chain_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    """Return a chain and its key from files. Raises ValueError."""
    try:
        return chain_file.read_bytes(), key_file.read_bytes()
    except OSError as error:
        raise ValueError(f"the certificate for provenance cannot be read: {error}") from None


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, *, authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("OmniHub development authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False)
        .add_extension(usage, True)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(issuer, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "OmniHub"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )
