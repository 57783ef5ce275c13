"""A provider for OmniHub in Python: `python provider.py 127.0.0.1:7001`. It repeats what it is told."""

import asyncio
import sys

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from omnihub.common.v1 import chat_pb2, stream_pb2
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1 import provider_service_pb2_grpc as rpc

PROVIDER, MODEL = "sample-python", "parrot"
# Requests hold images and long conversations; gRPC's own limit of 4 MiB is too small.
OPTIONS = [(f"grpc.max_{way}_message_length", 64 * 2**20) for way in ("receive", "send")]
# What this model cannot take: content is refused, wishes are dropped in the receipt.
REFUSED = ("tools", "response_schema_json")
DROPPED = (
    *("temperature", "top_p", "seed", "tool_choice", "parallel_tool_calls", "reasoning_effort"),
    *("top_k", "user"),
)


async def fail(context, code, reason, message, field="", **metadata):
    """End the call with an error as the contract wants it: ErrorInfo, and BadRequest for a wrong field."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="omnihub", metadata=metadata)
    status = status_pb2.Status(code=code.value[0], message=message, details=[any_pb2.Any()])
    status.details[0].Pack(info)
    if field:
        bad_request = error_details_pb2.BadRequest()
        bad_request.field_violations.add(field=field, description=message)
        status.details.add().Pack(bad_request)
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


async def check_provider(name, context, field="provider"):
    """Refuse a provider that is missing or not ours."""
    if not name:
        await fail(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", "name a provider", field)
    if name != PROVIDER:
        await fail(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"there is only {PROVIDER}")


async def check_attempt(attempt, context):
    """Refuse what cannot be answered, before anything is spent. Returns the receipt."""
    await check_provider(attempt.provider, context, "attempt.provider")
    about = {"provider": attempt.provider, "model": attempt.model}
    about |= {"phase": "before_first_byte", "retryable": "false"}
    if not attempt.model:
        code = grpc.StatusCode.INVALID_ARGUMENT
        await fail(context, code, "INVALID_ARGUMENT", "name a model", "attempt.model", **about)
    if attempt.model != MODEL:
        code = grpc.StatusCode.NOT_FOUND
        await fail(context, code, "MODEL_NOT_FOUND", f"there is only {MODEL}", **about)
    sent = {field.name for field, _ in attempt.chat.ListFields()} | set(attempt.chat.extension_json)
    dropped = [name for name in (*DROPPED, *attempt.chat.extension_json) if name in sent]
    media = any(
        part.WhichOneof("kind") in ("image", "audio", "video", "document")
        for message in attempt.chat.messages
        for part in message.parts
    )
    refused = [name for name in REFUSED if name in sent] + ["messages"] * media + dropped * attempt.strict
    if refused:
        code, message = grpc.StatusCode.INVALID_ARGUMENT, f"{MODEL} cannot take {refused[0]}"
        await fail(context, code, "PARAMETER_UNSUPPORTED", message, refused[0], **about)
    outcomes = {name: "forwarded" for name in ("max_tokens", "stop") if name in sent}
    outcomes |= dict.fromkeys(dropped, "dropped")
    return [chat_pb2.ParameterReceipt(name=name, outcome=outcome) for name, outcome in outcomes.items()]


def answer(attempt):
    """Return words, finish and usage. A word is a token here."""
    said = [m.content or " ".join(part.text.text for part in m.parts) for m in attempt.chat.messages]
    words = said[-1].split(" ") if said else []
    text = " ".join(words)
    for stop in attempt.chat.stop:
        text = text.partition(stop)[0] if stop else text
    words = text.split(" ")
    limit = attempt.chat.max_tokens or attempt.output_cap or len(words)
    finish = chat_pb2.Finish(reason="length" if len(words) > limit else "stop")
    words = words[:limit]
    read = sum(len(text.split(" ")) for text in said)
    return words, finish, chat_pb2.Usage(input_total=max(1, read), output_total=len(words))


class Provider(rpc.ProviderServiceServicer):
    """One method for each rpc. What is not offered may stay unwritten: gRPC says UNIMPLEMENTED."""

    async def GetCapabilities(self, request, context):
        offered = pb.ProviderCapabilities(provider=PROVIDER, adapter="sample", features=["chat", "stream"])
        offered.synthetic = True  # Rules, not a model. Leave it out when you speak to one.
        return pb.GetCapabilitiesResponse(providers=[offered])

    async def ListModels(self, request, context):
        await check_provider(request.provider, context)
        return pb.ListModelsResponse(models=[pb.ProviderModel(model=MODEL, display_name="Parrot")])

    async def CheckHealth(self, request, context):
        await check_provider(request.provider, context)
        return pb.CheckHealthResponse(healthy=True)

    async def Chat(self, request, context):
        receipt = await check_attempt(request.attempt, context)
        words, finish, usage = answer(request.attempt)
        message = chat_pb2.Message(role="assistant", content=" ".join(words))
        return pb.ChatResponse(message=message, finish=finish, usage=usage, model=MODEL, receipt=receipt)

    async def StreamChat(self, request, context):
        receipt = await check_attempt(request.attempt, context)
        words, finish, usage = answer(request.attempt)
        yield pb.StreamChatResponse(start=pb.StreamStart(model=MODEL, receipt=receipt))
        part = chat_pb2.Part(text=chat_pb2.TextPart())
        yield pb.StreamChatResponse(part_start=stream_pb2.PartStart(index=0, part=part))
        for number, word in enumerate(words):
            # A caller who leaves cancels this task: close the connection to your model in a `finally`.
            delta = stream_pb2.PartDelta(index=0, text=word if number == 0 else f" {word}")
            yield pb.StreamChatResponse(part_delta=delta)
        yield pb.StreamChatResponse(part_stop=stream_pb2.PartStop(index=0))
        yield pb.StreamChatResponse(end=pb.StreamEnd(finish=finish, usage=usage))


async def main(address):
    """Serve until told to stop."""
    server = grpc.aio.server(options=OPTIONS)
    rpc.add_ProviderServiceServicer_to_server(Provider(), server)
    serving = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    await serving.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    await server.start()
    print(f"{PROVIDER} listens on {address}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7001"))
