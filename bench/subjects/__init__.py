"""The systems under test: one module each, this table is their order in every report."""

from bench.subjects import bare_envoy, direct, litellm, omnihub, portkey, relay, smg
from bench.subjects.base import Subject

SUBJECTS: dict[str, Subject] = {
    module.SUBJECT.name: module.SUBJECT
    for module in (direct, bare_envoy, relay, omnihub, smg, portkey, litellm)
}
