"""Counting tokens: the first provider of a model that can be asked counts. Free, so nothing is reserved."""

from __future__ import annotations

from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import Call, RpcError
from services.router.admission import Admission
from services.router.domain.catalogue import AUTO
from services.router.domain.errors import NoCandidateError
from services.router.domain.shortlist import eligible
from services.router.execution.attempts import timeouts_of

# The request itself is at fault: another provider would say the same.
_FINAL = frozenset({"INVALID_ARGUMENT", "MALFORMED_BODY", "PARAMETER_UNSUPPORTED", "PROVIDER_REJECTED"})


class Counting:
    """Asks for counts."""

    def __init__(self, admission: Admission, providers: ProviderService) -> None:
        self._admission = admission
        self._providers = providers

    async def count(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        """Return the input tokens of a conversation. Raises routing errors of the domain, and RpcError."""
        catalogue = self._admission.catalogue
        models = eligible(request.chat.model or AUTO, catalogue, call.identity.allowed_models)
        targets = [(target, model) for model in models for target in model.targets]
        failure: Exception = NoCandidateError(
            "no model is configured that this key may use", model=request.chat.model
        )
        message = provider.CountTokensRequest()
        attempt = message.attempt
        attempt.chat.CopyFrom(request.chat)
        attempt.raw_body = request.raw_body
        attempt.wire_format = request.wire_format
        attempt.headers.update(request.options.headers)
        for target, model in targets:
            attempt.provider, attempt.model = target.provider, target.model
            attempt.timeouts.CopyFrom(timeouts_of(model.settings.timeouts))
            try:
                answer = await self._providers.count_tokens(message, call)
            except RpcError as error:
                if error.reason in _FINAL:
                    raise
                failure = error
                continue
            return pb.CountTokensResponse(
                input_tokens=answer.input_tokens,
                estimated=answer.estimated,
                model_used=target.name,
                provider=target.provider,
            )
        raise failure
