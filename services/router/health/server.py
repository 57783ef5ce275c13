"""Serves omnihub.router.v1.ProviderHealthService: message in, measurements, message out."""

from __future__ import annotations

import time

from omnihub.router.v1 import provider_health_service_pb2 as pb

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc import Call, RpcError
from services.router.domain.catalogue import Target
from services.router.domain.sketch import Sketch, Tally
from services.router.health.health import Health
from services.router.health.measurements import MINUTES
from services.router.health.sharing import HealthSharing
from services.router.health.store import HealthStore, Minute

PAGE_SIZE = 100
_LARGEST = 2**32 - 1


class ProviderHealthServer:
    """See the contract in omnihub/router/v1/provider_health_service.proto."""

    def __init__(self, health: Health, sharing: HealthSharing, store: HealthStore, instance_id: str) -> None:
        self._health = health
        self._sharing = sharing
        self._store = store
        self._instance_id = instance_id

    async def get_provider_health(
        self, request: pb.GetProviderHealthRequest, call: Call
    ) -> pb.GetProviderHealthResponse:
        """Return what all replicas have measured of late, and the circuits as this one sees them."""
        window = request.window_minutes or MINUTES
        # What this process has measured since it last wrote belongs to it, too.
        await self._sharing.write()
        minutes = await self._store.minutes(int(time.time() // 60) - window + 1, request.provider)
        tallies: dict[Target, Tally] = {}
        for each in minutes:
            tallies.setdefault(each.target, Tally()).include(each.tally)
        for target in self._health.troubled():
            if request.provider in ("", target.provider):
                tallies.setdefault(target, Tally())
        response = pb.GetProviderHealthResponse(
            window_minutes=window, replicas=len({each.instance_id for each in minutes})
        )
        for target in sorted(tallies, key=lambda each: each.name):
            response.targets.append(self._describe(target, tallies[target]))
        return response

    def _describe(self, target: Target, tally: Tally) -> pb.TargetHealth:
        state, pause_ms, reason = self._health.state(target)
        elsewhere = self._sharing.opened_elsewhere
        return pb.TargetHealth(
            target=target.name,
            provider=target.provider,
            metrics=_metrics(tally),
            breaker=state,
            pause_ms=min(_LARGEST, pause_ms),
            breaker_reason=reason if state != "closed" else "",
            opened_elsewhere=max(elsewhere(target.name), elsewhere(target.provider)),
        )

    async def list_provider_metrics(
        self, request: pb.ListProviderMetricsRequest, call: Call
    ) -> pb.ListProviderMetricsResponse:
        """Return a page of minutes."""
        after = None
        if request.page_token:
            minute, target = decode_page_token(request.page_token, 2)
            if not (minute.isascii() and minute.isdigit() and len(minute) < 12):
                raise RpcError("INVALID_ARGUMENT", "page_token: send next_page_token of the page before")
            after = int(minute), target
        size = request.page_size or PAGE_SIZE
        bounds = {
            "first": -(-getattr(request, "from").seconds // 60) if request.HasField("from") else None,
            "before": -(-request.to.seconds // 60) if request.HasField("to") else None,
        }
        found = await self._store.history(
            size + 1, provider=request.provider, target=request.target, after=after, **bounds
        )
        page = found[:size]
        token = ""
        if len(found) > size:
            token = encode_page_token(str(page[-1].minute), page[-1].target.name)
        return pb.ListProviderMetricsResponse(minutes=map(_minute, page), next_page_token=token)


def _minute(each: Minute) -> pb.MinuteMetrics:
    message = pb.MinuteMetrics(
        target=each.target.name, provider=each.target.provider, metrics=_metrics(each.tally)
    )
    message.minute.seconds = each.minute * 60
    return message


def _metrics(tally: Tally) -> pb.ProviderMetrics:
    return pb.ProviderMetrics(
        attempts=min(_LARGEST, tally.attempts),
        successes=min(_LARGEST, tally.successes),
        failures=min(_LARGEST, tally.failures),
        cancelled=min(_LARGEST, tally.cancelled),
        success_rate=round(tally.success_rate, 6),
        latency_ms=_percentiles(tally.latency),
        first_token_ms=_percentiles(tally.first_token),
    )


def _percentiles(sketch: Sketch) -> pb.Percentiles:
    return pb.Percentiles(
        p50=sketch.percentile(0.5), p95=sketch.percentile(0.95), p99=sketch.percentile(0.99)
    )
