"""What a plugin says about itself: capabilities, health, models. Nothing here asks a model."""

from __future__ import annotations

from collections.abc import Sequence

from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.providers.conformance.kit import QUICK_S, Group, SkippedError, Subject, require
from services.providers.conformance.words import FEATURES
from services.providers.domain.clauses import BreachError

GROUP = Group("capabilities")
REPEATS = 10
SERVICE = "omnihub.provider.v1.ProviderService"


async def ask_capabilities(subject: Subject) -> Sequence[pb.ProviderCapabilities]:
    """Return what the server says it serves. Raises BreachError."""
    reply = await subject.probe.call("get_capabilities", pb.GetCapabilitiesRequest(), QUICK_S)
    require(reply.status.ok, "CAP-1", f"GetCapabilities ended with {reply.status}")
    providers: Sequence[pb.ProviderCapabilities] = reply.message.providers
    require(bool(providers), "CAP-1", "GetCapabilities names no provider")
    return providers


@GROUP.check("CAP-1", "CAP-2")
async def are_words_of_the_contract(subject: Subject) -> None:
    """Capabilities use the contract's words."""
    names = [each.provider for each in await ask_capabilities(subject)]
    require(all(names), "CAP-2", "a provider has no name")
    require(len(set(names)) == len(names), "CAP-2", f"a provider is named twice: {names}")
    strange = sorted(set(subject.capabilities.features) - FEATURES)
    require(not strange, "CAP-2", f"features that the contract does not have: {', '.join(strange)}")
    formats = [each for each in subject.capabilities.wire_formats if each not in WireFormat.values()[1:]]
    require(not formats, "CAP-2", f"wire formats that the contract does not have: {formats}")


@GROUP.check("CAP-3")
async def stay_the_same(subject: Subject) -> None:
    """Capabilities do not change by being asked for."""
    first = {each.provider: each for each in await ask_capabilities(subject)}
    for number in range(2, REPEATS + 1):
        again = {each.provider: each for each in await ask_capabilities(subject)}
        require(again == first, "CAP-3", f"call {number} of {REPEATS} had another answer")


@GROUP.check("HEALTH-1")
async def check_health(subject: Subject) -> None:
    """CheckHealth answers, repeatedly."""
    for _ in range(REPEATS):
        request = pb.CheckHealthRequest(provider=subject.provider)
        reply = await subject.probe.call("check_health", request, 6 * QUICK_S)
        require(reply.status.ok, "HEALTH-1", f"CheckHealth ended with {reply.status}; say it in `detail`")
        if not reply.message.healthy:
            detail = reply.message.detail
            require(bool(detail), "HEALTH-1", "not healthy, but `detail` does not say why")
            raise BreachError("HEALTH-1", f"says that it is not healthy: {detail}")


@GROUP.check("HEALTH-2")
async def grpc_health(subject: Subject) -> None:
    """grpc.health.v1, where it is served."""
    answers = {name: await subject.probe.health(name, QUICK_S) for name in ("", SERVICE)}
    if set(answers.values()) <= {"UNIMPLEMENTED", "NOT_FOUND"}:
        raise SkippedError("grpc.health.v1 is not served")
    for name, answer in answers.items():
        held = answer in ("SERVING", "NOT_FOUND")
        require(held, "HEALTH-2", f"grpc.health.v1 says {answer} of {name or 'the server'!r} while it serves")


@GROUP.check("MODEL-1", "MODEL-2")
async def models(subject: Subject) -> None:
    """ListModels answers, and the same again."""
    request = pb.ListModelsRequest(provider=subject.provider)
    first: list[str] | None = None
    for number in range(1, 4):
        reply = await subject.probe.call("list_models", request, 6 * QUICK_S)
        require(reply.status.ok, "MODEL-1", f"ListModels ended with {reply.status}")
        names = [each.model for each in reply.message.models]
        require(all(names), "MODEL-1", "a model has no name")
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "MODEL-1", f"listed more than once: {', '.join(twice)}")
        require(first in (None, names), "MODEL-2", f"call {number} had another answer")
        first = names
