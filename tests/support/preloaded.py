"""Everything a process of the suite imports, for the one that others come from."""

from __future__ import annotations

import gc
import importlib

from services.launcher import TARGETS

# What a start loads only when it needs it (`services.common.late`), most of them do.
_LATER = (
    "services.common.log",
    "services.common.telemetry",
    "services.common.migrations",
    "services.common.bus",
    "jsonschema",
    "referencing",
    "PIL.Image",
)

for _name in (
    "services.__main__",
    "tests.support.job_process",
    *_LATER,
    *{it.module for it in TARGETS.values()},
):
    importlib.import_module(_name)
# Pages that no collection touches stay shared.
gc.collect()
gc.freeze()
