"""Jobs through the public port: one process with everything, and a batch to its end."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.suite import Suite, select_pause


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    running = Suite(tmp_path_factory.mktemp("suite"))
    running.start()
    yield running
    running.stop()


def test_a_batch_is_made_and_dead_letters_are_shown(suite: Suite) -> None:
    headers = {"Authorization": f"Bearer {suite.key}"}
    with httpx.Client(base_url=suite.url, headers=headers, timeout=30) as client:
        item = {"input": {"image": {"prompt": "a boat"}}}
        made = client.post("/api/generate/batch", json={"items": [item] * 3, "maxConcurrency": 2})
        assert made.status_code == 200, made.text
        job_id = made.json()["job"]["jobId"]
        for _ in range(300):
            job = client.get(f"/api/generations/{job_id}").json()["job"]
            if job["state"] not in ("queued", "running"):
                break
            select_pause(0.1)
        assert (job["state"], job["items"]["succeeded"]) == ("succeeded", 3), job
        refused = client.post("/api/generate/batch", json={"items": [item, {"input": {}}]})
        assert refused.status_code == 400
        assert "items[1]" in refused.json()["error"]["message"]
    shown = suite.run("jobs", "dead-letters")
    assert (shown.returncode, shown.stdout) == (0, "no dead letters\n"), shown.stderr
    unknown = suite.ask("jobs", "redrive", "dead_unknown")
    assert unknown.returncode == 2
    assert "NOT_FOUND" in unknown.stderr
