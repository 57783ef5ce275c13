"""Settings: default < omnihub.toml < environment. Unknown keys are errors.

Each service declares its own frozen `Section`; services/settings.py nests them under one root.
Every field has its unit in its name and a description.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr


class Section(BaseModel):
    """Base of every group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _resolve_secret(value: Any) -> Any:
    """Read `env:NAME` and `file:/path`; anything else is the secret itself."""
    if not isinstance(value, str):
        return value
    kind, _, name = value.partition(":")
    if kind == "env":
        secret = os.environ.get(name)  # noqa: TID251 - this is where settings are read
        if secret is None:
            raise ValueError(f"the environment variable {name} is not set")
        return secret
    if kind == "file" and name.startswith("/"):
        try:
            return Path(name).read_text().strip()
        except OSError as error:
            raise ValueError(f"cannot read the secret file {name}: {error.strerror}") from None
    return value


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]
"""A secret: shown as stars everywhere, given literally, as `env:NAME` or as `file:/path`."""
