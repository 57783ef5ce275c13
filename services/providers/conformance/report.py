"""What the kit prints and writes: lines for people, JSON and JUnit for machines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from services.providers.conformance.kit import Result
from services.providers.domain.clauses import CLAUSES

_MARKS = {"pass": "pass", "fail": "FAIL", "skip": "skip"}


def line_of(result: Result) -> str:
    """Return one line for a check, and for a failure one more with the clause that is broken."""
    line = f"{_MARKS[result.state]}  {result.provider}  {result.check}  [{' '.join(result.clauses)}]"
    if result.state == "skip":
        return f"{line}  {result.detail}"
    if result.state == "fail":
        clause = result.clauses[0]
        return f"{line}\n      {clause}: {CLAUSES[clause]}\n      found: {result.detail}"
    return line


def summary_of(results: Sequence[Result]) -> str:
    """Return the last line."""
    counts = Counter(result.state for result in results)
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"


def to_json(address: str, results: Sequence[Result]) -> str:
    """Return the whole report as JSON."""
    counts = Counter(result.state for result in results)
    checks = [
        {
            "provider": result.provider,
            "check": result.check,
            "state": result.state,
            "clauses": {clause: CLAUSES[clause] for clause in result.clauses},
            "detail": result.detail,
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    summary = {"passed": counts["pass"], "failed": counts["fail"], "skipped": counts["skip"]}
    return json.dumps({"address": address, "summary": summary, "checks": checks}, indent=2) + "\n"


def to_junit(results: Sequence[Result]) -> str:
    """Return the report as JUnit XML, one suite for each provider."""
    root = ElementTree.Element("testsuites")
    for provider in dict.fromkeys(result.provider for result in results):
        own = [result for result in results if result.provider == provider]
        counts = Counter(result.state for result in own)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"omnihub.provider.{_visible(provider)}",
            tests=str(len(own)),
            failures=str(counts["fail"]),
            skipped=str(counts["skip"]),
            time=f"{sum(result.seconds for result in own):.3f}",
        )
        for result in own:
            _add_case(suite, result)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, result: Result) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=f"{_visible(result.provider)}.{result.check.partition('/')[0]}",
        name=result.check.partition("/")[2],
        time=f"{result.seconds:.3f}",
    )
    if result.state == "skip":
        ElementTree.SubElement(case, "skipped", message=_visible(result.detail))
    elif result.state == "fail":
        clause = result.clauses[0]
        failure = ElementTree.SubElement(case, "failure", type=clause, message=f"{clause}: {CLAUSES[clause]}")
        failure.text = _visible(result.detail)


def _visible(text: str) -> str:
    """Return text without what XML cannot hold: details quote what a plugin sent."""
    return "".join(character if character.isprintable() else "?" for character in text)
