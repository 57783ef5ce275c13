"""What is verified for people who do not exist."""

from __future__ import annotations

from argon2 import extract_parameters

from services.auth.passwords import Passwords


async def test_nobody_takes_as_long_as_somebody_and_has_no_password() -> None:
    passwords = Passwords(threads=1, memory_kib=64, passes=3)
    try:
        known = await passwords.hash("right")
        assert extract_parameters(passwords._nobody) == extract_parameters(known)
        assert await passwords.verify(known, "right")
        assert not await passwords.verify(known, "wrong")
        assert not await passwords.verify(None, "right")
        assert not passwords.is_outdated(passwords._nobody)
    finally:
        passwords.close()
