"""What a caller wants, and what the response cache says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Raw
from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, WireFormat
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer

from services.router.domain.estimate import input_sizes

# Parts of a message that are paid as text is; all others may have a price of their own.
_PLAIN_KINDS = frozenset({"text", "tool_call", "reasoning", "refusal", None})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants. Read from the message once: each look at a bytes field copies it."""

    chat: ChatInput
    feature: str
    """chat, stream or embed: what a provider must offer."""
    raw_body: bytes = b""
    wire_format: WireFormat.ValueType = WireFormat.WIRE_FORMAT_UNSPECIFIED
    options: pb.CallOptions = field(default_factory=pb.CallOptions)
    max_tokens: int = 0
    """The caller's own limit of output tokens for each choice; 0 without one."""
    choices: int = 1
    stateful: bool = False
    """The provider knows more of the conversation than the body holds."""
    vendor_bound: bool = False
    """Only a provider that keeps state can serve it."""
    previous: str = ""
    """Id of the stored answer it goes on from."""
    pinned: str = ""
    """The provider that keeps it."""
    stores: bool = False
    """The provider keeps the answer."""
    background: bool = False
    """The answer may come later, under its id."""
    json: bool = False
    """The answer is to be a JSON document: half of one cannot be gone on with."""
    tools: bool = False
    """A foreign body offers tools."""
    messages: Raw = field(default_factory=Raw)
    """The conversation of a foreign body, undecoded."""
    task: str = ""
    """What kind of work the rpc itself says this is; empty when it does not."""
    service_tier: str = ""
    """The tier the caller wants to be served in."""
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def input_sizes(self) -> tuple[int, int]:
        """Return the most tokens the input can have, and about how many it has.

        Kept: prices and limits both ask, and looking through 100 kB takes as long as planning its route.
        """
        if not self._sizes:
            # A body without facts is an embedding's, which has no tools.
            self._sizes.append(input_sizes(self.raw_body, self.chat, tools=self.tools))
        return self._sizes[0]

    @property
    def media(self) -> bool:
        """Tell whether input or output may be other than text: rather once too often."""
        if self.raw_body:
            return b"audio" in self.raw_body or b"image" in self.raw_body
        parts = (part.WhichOneof("kind") for message in self.chat.messages for part in message.parts)
        return any(kind not in _PLAIN_KINDS for kind in parts) or bool(self.chat.extension_json)

    @property
    def modality(self) -> str:
        """Return the kind of work, as usage is grouped."""
        return "embeddings" if self.feature == "embed" else "chat"


@dataclass(frozen=True, slots=True)
class Look:
    """What the response cache says of a request."""

    key: str = ""
    """Under which its answer is kept; empty when it is not."""
    ttl_s: int = 0
    answer: CachedAnswer | None = None
    """What it is answered with, again."""
    receipt: ParameterReceipt | None = None
    """Why the cache was asked for in vain."""

    @property
    def state(self) -> str:
        """Return hit, miss or off."""
        if self.answer is not None:
            return "hit"
        return "miss" if self.key else "off"
