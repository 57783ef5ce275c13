"""Hosts that look public and are not, in every way of writing that is known."""

from __future__ import annotations

import ipaddress

import pytest

from services.common.addresses import RefusedHostError, check_addresses, is_public
from services.common.foreign import ForeignClient
from services.common.rpc import RpcError

HOSTILE = [
    # Plain.
    "https://127.0.0.1/",
    "https://127.8.9.10/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.100.100.200/",
    "https://0.0.0.0/",
    "https://255.255.255.255/",
    "https://224.0.0.1/",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://240.0.0.1/",
    # Other bases, and fewer parts.
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0x7f.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://00127.0.0.1/",
    "https://3232235777/",
    "https://2852039166/",
    "https://127.0.0.0x1/",
    "https://4294967297/",
    # Dots and letters that are folded.
    "https://127.0.0.1./",
    "https://localhost./",
    "https://example.com./",
    "https://127。0。0。1/",
    "https://127\uff0e0\uff0e0\uff0e1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://ⓛocalhost/",
    "https://%31%32%37.0.0.1/",
    # IPv6 and what it wraps.
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[0:0:0:0:0:ffff:a9fe:a9fe]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::a9fe:a9fe]/",
    "https://[64:ff9b:1::1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[2001:db8::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[2600::5efe:7f00:1]/",
    # Names of private networks.
    "https://localhost/",
    "https://metadata/",
    "https://metadata.google.internal/",
    "https://printer.local/",
    "https://x.localhost/",
    # Other schemes, ports, credentials.
    "http://example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "//example.com/",
    "example.com",
    "https://example.com:22/",
    "https://example.com:8443/",
    "https://example.com:0/",
    "https://example.com:99999/",
    "https://user@example.com/",
    "https://user:secret@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com\\@127.0.0.1/",
    "https://127.0.0.1\\@example.com/",
    # Not addresses at all.
    "",
    "https://",
    "https:///path",
    " https://example.com/",
    "https://example.com/\r\nHost: x",
    "https://exa mple.com/",
    "https://exa\tmple.com/",
    "https://example..com/",
    "https://[::1/",
    "https://" + "a" * 5000 + ".com/",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(RpcError) as refused:
        ForeignClient().check(url)
    assert refused.value.reason == "URL_REFUSED"
    assert refused.value.message


def test_there_are_enough_of_them() -> None:
    assert len(set(HOSTILE)) >= 40


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a?b=c#d",
        "https://EXAMPLE.com",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://bücher.example/",
        "https://v3b.fal.media/files/a/b.png",
        "https://example.com:443/",
    ],
)
def test_public_addresses_are_taken(url: str) -> None:
    ForeignClient().check(url)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("100.64.0.1", False),
        ("192.88.99.1", False),
        ("2002:808:808::", False),
        ("2001::1", False),
        ("3fff::1", False),
        ("100::1", False),
        ("5f00::1", False),
    ],
)
def test_addresses_that_names_resolve_to(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


def test_one_private_address_is_enough() -> None:
    with pytest.raises(RefusedHostError, match=r"10\.0\.0\.1"):
        check_addresses("example.com", ["8.8.8.8", "10.0.0.1"])
