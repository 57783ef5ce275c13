"""A vendor that keeps responses, over real HTTP: background, cancel, delete, input items, events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.fault_server import Disconnect, Head, Recorded, Send, Step, answer, sse

USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 29,
}
MISSING = {"error": {"message": "Response not found.", "type": "invalid_request_error", "code": None}}


class ResponseVendor:
    """Answers as its model's name says: `m` at once; in the background only once it is in `finished`."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.finished: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.polls = 0

    def finish(self, response_id: str) -> None:
        """Let an answer in the background end."""
        self.finished.add(response_id)

    def respond(self, request: Recorded) -> Sequence[Step]:
        """Answer one request."""
        parts = urlsplit(request.path)
        segments = parts.path.removeprefix("/v1/responses").strip("/").split("/")
        if request.method == "POST" and segments == [""]:
            return self._create(request.json())
        kept = self.kept.get(segments[0])
        if kept is None:
            return answer(MISSING, 404)
        operation = (request.method, segments[1] if len(segments) > 1 else "")
        query = parse_qs(parts.query)
        if operation == ("DELETE", ""):
            del self.kept[segments[0]]
            return answer({"id": segments[0], "object": "response.deleted", "deleted": True})
        if operation == ("POST", "cancel"):
            kept["status"] = "cancelled"
            return answer(kept)
        if operation == ("GET", "input_items"):
            item = {"id": "msg_in", "type": "message", "role": "user", "status": "completed"}
            content = [{"type": "input_text", "text": query.get("order", ["none"])[0]}]
            document = {"object": "list", "data": [{**item, "content": content}], "has_more": False}
            return answer({**document, "first_id": "msg_in", "last_id": "msg_in"})
        if query.get("stream") == ["true"]:
            self.finish(segments[0])
            events = self.events(self._current(kept))
            after = int(query.get("starting_after", ["-1"])[0])
            return [Head(content_type="text/event-stream"), *map(Send, events[after + 1 :])]
        self.polls += 1
        return answer(self._current(kept))

    def _create(self, body: dict[str, Any]) -> Sequence[Step]:
        self.asked.append(body)
        response_id = f"resp_{len(self.asked)}"
        kept = self.kept[response_id] = {
            "id": response_id,
            "object": "response",
            "created_at": 1700000000,
            "model": body["model"],
            "status": "queued" if body.get("background") else "completed",
            "background": bool(body.get("background")),
            "error": None,
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "previous_response_id": body.get("previous_response_id"),
            "usage": None,
        }
        if not body.get("background"):
            self.finish(response_id)
        if body.get("stream"):
            events = self.events({**self._whole(kept)})
            if body.get("background"):
                # The caller's connection is cut in mid-answer; the answer goes on.
                return [Head(content_type="text/event-stream"), *map(Send, events[:5]), Disconnect()]
            return [Head(content_type="text/event-stream"), *map(Send, events)]
        return answer(self._current(kept))

    def _current(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Return a response as it stands."""
        if kept["id"] in self.finished and kept["status"] != "cancelled":
            kept.update(self._whole(kept))
        return kept

    def _whole(self, kept: dict[str, Any]) -> dict[str, Any]:
        content = [{"type": "output_text", "text": "Done at last.", "annotations": [], "logprobs": []}]
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
        return {**kept, "status": "completed", "output": [{**message, "content": content}], "usage": USAGE}

    def events(self, whole: dict[str, Any]) -> list[bytes]:
        """Return the events of a whole answer."""
        begun = {**whole, "status": "in_progress", "output": [], "usage": None}
        [message] = whole["output"]
        [content] = message["content"]
        place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        documents = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {**message, "status": "in_progress", "content": []},
            },
            {"type": "response.content_part.added", **place, "part": {**content, "text": ""}},
            *(
                {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
                for piece in ("Done ", "at ", "last.")
            ),
            {"type": "response.output_text.done", **place, "text": content["text"], "logprobs": []},
            {"type": "response.content_part.done", **place, "part": content},
            {"type": "response.output_item.done", "output_index": 0, "item": message},
            {"type": "response.completed", "response": whole},
        ]
        numbered = ({**document, "sequence_number": n} for n, document in enumerate(documents))
        return [sse(json.dumps(document).encode(), event=True) for document in numbered]
