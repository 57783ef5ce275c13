"""Files through the public port, in one process and in many."""

from __future__ import annotations

import io

import httpx
from PIL import Image

from tests.support.suite import Suite


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_file_goes_in_and_comes_out_through_the_edge(suite: Suite) -> None:
    headers = {"authorization": f"Bearer {suite.key}"}
    data = picture()
    with httpx.Client(base_url=suite.url, timeout=20) as client:
        answer = client.post("/files", content=data, headers=headers)
        assert answer.status_code == 201, answer.text
        file = answer.json()["file"]
        assert file["url"].startswith(f"{suite.url}/files/")
        assert client.get(file["url"]).content == data
        part = client.get(file["url"], headers={"range": "bytes=0-7"})
        assert (part.status_code, part.content) == (206, data[:8])
        form = client.post("/files", files={"file": ("a.png", data, "image/png")}, headers=headers)
        assert form.status_code == 201, form.text
        listed = client.get("/api/files", headers=headers).json()["files"]
        assert file["fileId"] in {each["fileId"] for each in listed}
        refused = client.post("/files", content=b"<html></html>", headers=headers)
        assert (refused.status_code, refused.json()["error"]["reason"]) == (415, "UNSUPPORTED_MEDIA")
        assert client.post("/files", content=data).status_code == 401
        assert client.put("/files", content=data).status_code == 405
        notified = client.post("/webhooks/nobody", content=b"{}")
        assert notified.headers["content-type"] == "application/json"
        assert notified.json()["error"]["reason"] in ("NOT_IMPLEMENTED", "NOT_FOUND")
        verified = client.post(f"/api/files/{file['fileId']}:verify", json={}, headers=headers)
        assert verified.json()["state"] == "absent"


def test_an_image_made_by_a_job_carries_provenance(suite: Suite) -> None:
    headers = {"authorization": f"Bearer {suite.key}"}
    with httpx.Client(base_url=suite.url, timeout=60, headers=headers) as client:
        wanted = {"input": {"image": {"prompt": "a boat", "width": 64, "height": 64}}, "waitS": 30}
        job = client.post("/api/generate", json=wanted).json()["job"]
        assert job["state"] == "succeeded", job
        (output,) = job["outputs"]
        verified = client.post(f"/api/files/{output['fileId']}:verify", json={}).json()
        assert verified["state"] == "valid", verified
        assert "algorithmicMedia" in verified["manifestJson"]
        assert httpx.get(output["url"]).content[:4] == b"\x89PNG"
