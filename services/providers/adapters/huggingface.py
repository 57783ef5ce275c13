"""Hugging Face's router: OpenAI's chat completions, and the tasks of single models beside them."""

from __future__ import annotations

import re

import msgspec
from omnihub.provider.v1 import provider_service_pb2 as pb
from yarl import URL

from services.formats.documents import write_object
from services.providers.adapters.openai import OpenAIAdapter
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import UnsupportedError
from services.providers.embedding import embedding_inputs
from services.providers.receipts import embedding_receipt

# It becomes part of a path.
_MODEL = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


class HuggingFaceAdapter(OpenAIAdapter):
    """Chats go as they are; embeddings are the task `feature-extraction` of a model."""

    adapter = "huggingface"

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs. Their size is the model's own."""
        inputs, dimensions = embedding_inputs(request)
        if dimensions is not None:
            message = f"{self.name} cannot be asked for a number of dimensions"
            raise UnsupportedError(self.name, message, "dimensions")
        receipt = embedding_receipt(self.name, request, {})
        failures = self.failures(request.model)
        if not _MODEL.fullmatch(request.model):
            raise failures.of("MODEL_NOT_FOUND", "no model has such a name; expected owner/name")
        # Beside the chat completions, not below them.
        root = self.settings.base_url.rstrip("/").removesuffix("/v1")
        path = f"/hf-inference/models/{request.model}/pipeline/feature-extraction"
        body, limits = write_object({"inputs": inputs}), self.timeouts(request.timeouts)
        answer, _ = await self.fetch(URL(root + path, encoded=True), body, self.headers, limits, failures)
        try:
            vectors = msgspec.json.decode(answer, type=list[list[float]])
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Some models have a vector for each token; which of them would be the text's is not ours to say.
            raise failures.of(
                "PROVIDER_PROTOCOL", "its answer is no list of one vector for each text"
            ) from None
        if len(vectors) != len(inputs) or not all(vectors):
            message = f"returned {len(vectors)} vectors for {len(inputs)} inputs"
            raise failures.of("PROVIDER_PROTOCOL", message)
        response = pb.EmbedResponse(model=request.model, receipt=receipt)
        for values in vectors:
            response.embeddings.add(values=values)
        response.usage.CopyFrom(estimate_usage(sum(map(len, inputs)), 0))
        response.usage.output_total = 0
        return response
