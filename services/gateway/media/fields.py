"""The fields of a request, from JSON or from a form: read one by one, and what nobody has read travels on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaFile

from services.formats.documents import from_decode_error
from services.formats.errors import invalid, malformed
from services.gateway.exchange import Exchange
from services.gateway.media.form import MULTIPART, Form, text_of

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_LISTED = "[]"
_TRUE, _FALSE = ("true", "1"), ("false", "0")


class Fields:
    """The fields of a request. Reading one takes it; `null` counts as not sent."""

    def __init__(self, values: Mapping[str, Any], files: Mapping[str, Sequence[MediaFile]]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._files = dict(files)
        self.receipt: list[ParameterReceipt] = []
        """What became of fields that the facade itself has no use for."""

    def text(self, name: str, default: str = "", *, required: bool = False) -> str:
        """Return a text."""
        value = self._values.pop(name, default)
        if not isinstance(value, str):
            raise invalid(name, "expected a text")
        if required and not value:
            raise invalid(name, "is missing")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str = "") -> str:
        """Return one of some words."""
        value = self.text(name, default)
        if value not in allowed and value != default:
            raise invalid(name, f"expected one of {', '.join(allowed)}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number, or None when it was not sent."""
        value = self._values.pop(name, None)
        if value is None:
            return None
        try:
            found = float(value) if isinstance(value, int | float | str) else low - 1
        except ValueError:
            found = low - 1
        if isinstance(value, bool) or not low <= found <= high:
            raise invalid(name, f"expected a number from {low:g} to {high:g}")
        return found

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number, or None when it was not sent."""
        found = self.number(name, low, high)
        if found is not None and found != int(found):
            raise invalid(name, f"expected a whole number from {low} to {high}")
        return None if found is None else int(found)

    def flag(self, name: str) -> bool:
        """Return a truth value; false when it was not sent."""
        value = self._values.pop(name, False)
        word = str(value).lower()
        if word not in (*_TRUE, *_FALSE):
            raise invalid(name, "expected true or false")
        return word in _TRUE

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; one alone counts as a list."""
        value = self._values.pop(name, None)
        found = [value] if isinstance(value, str) else value or []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise invalid(name, "expected a list of texts")
        return found

    def reference(self, name: str) -> str:
        """Return a name, written as it is or as an object with `id`."""
        value = self._values.get(name)
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            self._values[name] = value["id"]
        return self.text(name)

    def size(self, name: str = "size") -> tuple[int, int]:
        """Return width and height in pixels; zeros for `auto` and when it was not sent."""
        text = self.text(name)
        if text in ("", "auto"):
            return 0, 0
        found = _SIZE.fullmatch(text)
        if found is None:
            raise invalid(name, "expected WIDTHxHEIGHT in pixels, such as 1024x1024, or auto")
        return int(found[1]), int(found[2])

    def files(self, *names: str) -> list[MediaFile]:
        """Return the files sent under any of these names, in a form or as references in JSON."""
        found: list[MediaFile] = []
        for name in names:
            found += self._files.pop(name, ())
            value = self._values.pop(name, None)
            if value is not None:
                references = value if isinstance(value, list) else [value]
                found += [_referred(name, reference) for reference in references]
        return found

    def file(self, name: str) -> MediaFile | None:
        """Return the one file of a name, or None. Raises FormatError when there are more."""
        found = self.files(name)
        if len(found) > 1:
            raise invalid(name, "expected one file")
        return found[0] if found else None

    def unused(self, name: str, detail: str) -> None:
        """Take a field that has no meaning here, and say so."""
        if self._values.pop(name, None) is not None:
            self.receipt.append(ParameterReceipt(name=name, outcome="dropped", detail=detail))

    def rest_json(self) -> str:
        """Return what nobody has read, as a JSON object; empty when there is nothing."""
        for name in self._files:
            raise invalid(name, "no file is expected under this name")
        return self.left_json()

    def left_json(self) -> str:
        """Return the values nobody has read, as a JSON object; empty when there are none."""
        return msgspec.json.encode(self._values).decode() if self._values else ""


def _referred(name: str, reference: Any) -> MediaFile:
    """Return a file that a JSON document names. Raises FormatError."""
    if isinstance(reference, str):
        reference = {"image_url": reference}
    if isinstance(reference, dict):
        file_id, url = reference.get("file_id"), reference.get("image_url") or reference.get("url")
        if isinstance(file_id, str) and file_id:
            return MediaFile(file_id=file_id)
        if isinstance(url, str) and url:
            return _from_url(name, url)
    raise invalid(name, "expected an object with file_id or image_url")


def _from_url(name: str, url: str) -> MediaFile:
    if not url.startswith("data:"):
        return MediaFile(url=url)
    head, _, encoded = url[5:].partition(",")
    if not head.endswith(";base64"):
        raise invalid(name, "expected a data URL in base64")
    try:
        data = msgspec.json.decode(f'"{encoded}"', type=bytes)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise invalid(name, "expected a data URL in base64") from None
    return MediaFile(data=data, mime=head.removesuffix(";base64"))


async def read_fields(exchange: Exchange, limit: int, file_limit: int) -> Fields:
    """Read a body of either kind. Raises RpcError and FormatError."""
    content_type = exchange.headers.get("content-type", "")
    if content_type.lower().startswith(MULTIPART):
        return await read_form(exchange, limit, file_limit)
    body = await exchange.read_body(limit)
    try:
        values = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    except RecursionError:
        raise malformed("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise malformed("expected an object")
    return Fields(values, {})


async def read_form(exchange: Exchange, limit: int, file_limit: int) -> Fields:
    """Read a form. Raises RpcError and FormatError."""
    form = Form(exchange.headers.get("content-type", ""), file_limit)
    await exchange.read_into(form.write, limit)
    values: dict[str, Any] = {}
    files: dict[str, list[MediaFile]] = {}
    for part in form.finish():
        name = part.name.removesuffix(_LISTED)
        if part.filename is None:
            _put(values, name, text_of(part), listed=name != part.name)
        elif part.filename or part.data:
            # A browser sends a field without a choice as an empty file without a name.
            files.setdefault(name, []).append(part.file())
    return Fields(values, files)


def _put(values: dict[str, Any], name: str, text: str, *, listed: bool) -> None:
    """Add a text; a name that comes again, or ends in brackets, makes a list."""
    if name in values:
        known = values[name]
        values[name] = [*(known if isinstance(known, list) else [known]), text]
    else:
        values[name] = [text] if listed else text
