"""Jobs through the public port: a batch to its end."""

from __future__ import annotations

import httpx

from tests.support.eventually import eventually
from tests.support.suite import Suite


def test_a_batch_is_made_and_dead_letters_are_shown(suite: Suite) -> None:
    headers = {"Authorization": f"Bearer {suite.key}"}
    with httpx.Client(base_url=suite.url, headers=headers, timeout=30) as client:
        item = {"input": {"image": {"prompt": "a boat"}}}
        made = client.post("/api/generate/batch", json={"items": [item] * 3, "maxConcurrency": 2})
        assert made.status_code == 200, made.text
        job_id = made.json()["job"]["jobId"]
        job = eventually(
            lambda: client.get(f"/api/generations/{job_id}").json()["job"],
            lambda seen: seen["state"] not in ("queued", "running"),
            120,
        )
        assert (job["state"], job["items"]["succeeded"]) == ("succeeded", 3), job
        refused = client.post("/api/generate/batch", json={"items": [item, {"input": {}}]})
        assert refused.status_code == 400
        assert "items[1]" in refused.json()["error"]["message"]
    shown = suite.run("jobs", "dead-letters")
    assert (shown.returncode, shown.stdout) == (0, "no dead letters\n"), shown.stderr
    unknown = suite.ask("jobs", "redrive", "dead_unknown")
    assert unknown.returncode == 2
    assert "NOT_FOUND" in unknown.stderr
