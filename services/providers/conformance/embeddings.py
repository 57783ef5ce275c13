"""Embeddings: order, size, usage."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omnihub.provider.v1 import provider_service_pb2 as pb

from services.providers.conformance.failures import check_details
from services.providers.conformance.kit import CALL_TIMEOUT_S, Group, SkippedError, Subject, require
from services.providers.domain.clauses import BreachError

GROUP = Group("embeddings")
TEXTS = ("the harbour at night", "a proof in linear algebra")
DIMENSIONS = 64
# Vendors do not return the very same numbers twice.
ALIKE = 0.999
REFUSALS = ("PROVIDER_REJECTED", "PARAMETER_UNSUPPORTED", "INVALID_ARGUMENT")


async def _embed(subject: Subject, inputs: Sequence[str]) -> pb.EmbedResponse:
    model = await subject.embedding_model()
    request = pb.EmbedRequest(provider=subject.provider, model=model, inputs=inputs)
    reply = await subject.probe.call("embed", request, CALL_TIMEOUT_S)
    if not reply.status.ok:
        raise BreachError("EMBED-1", f"Embed ended with {reply.status}")
    response: pb.EmbedResponse = reply.message
    return response


def _likeness(one: Sequence[float], other: Sequence[float]) -> float:
    norm = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / norm if norm else 0.0


@GROUP.check("EMBED-1", needs=["embed"])
async def keep_the_order(subject: Subject) -> None:
    """One vector for each input, where it was."""
    one, other = TEXTS
    response = await _embed(subject, [one, other, one])
    vectors = [list(each.values) for each in response.embeddings]
    require(len(vectors) == 3, "EMBED-1", f"{len(vectors)} vectors for 3 inputs")
    sizes = {len(vector) for vector in vectors}
    require(
        len(sizes) == 1 and 0 not in sizes, "EMBED-1", f"vectors of different or no size: {sorted(sizes)}"
    )
    swapped = [list(each.values) for each in (await _embed(subject, [other, one])).embeddings]
    require(len(swapped) == 2, "EMBED-1", f"{len(swapped)} vectors for 2 inputs")
    if _likeness(vectors[0], vectors[1]) > ALIKE:
        raise SkippedError("the model does not tell the two texts apart")
    held = (
        _likeness(vectors[0], vectors[2]) > ALIKE
        and _likeness(vectors[0], swapped[1]) > ALIKE
        and _likeness(vectors[1], swapped[0]) > ALIKE
    )
    require(held, "EMBED-1", "the vectors do not follow the order of the inputs")


@GROUP.check("EMBED-2", needs=["embed"])
async def keep_the_size(subject: Subject) -> None:
    """The size that was asked for, or a refusal."""
    model = await subject.embedding_model()
    request = pb.EmbedRequest(provider=subject.provider, model=model, inputs=TEXTS, dimensions=DIMENSIONS)
    reply = await subject.probe.call("embed", request, CALL_TIMEOUT_S)
    if not reply.status.ok:
        check_details(reply.status)
        require(reply.status.reason in REFUSALS, "EMBED-2", f"`dimensions` ended with {reply.status}")
        return
    sizes = {len(each.values) for each in reply.message.embeddings}
    require(sizes == {DIMENSIONS}, "EMBED-2", f"asked for {DIMENSIONS} dimensions, got {sorted(sizes)}")


@GROUP.check("EMBED-3", needs=["embed"])
async def report_usage(subject: Subject) -> None:
    """What was read is counted."""
    response = await _embed(subject, TEXTS)
    require(response.HasField("usage"), "EMBED-3", "`usage` is missing")
    require(response.usage.input_total > 0, "EMBED-3", "`usage.input_total` is 0")
