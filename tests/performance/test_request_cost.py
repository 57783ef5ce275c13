"""What a request costs, beside bare Envoy in the same run. `make test` runs it after all others, alone."""

import pytest

from bench.regression import ENVOY_RATIO_BOUND, measure

pytestmark = [pytest.mark.alone, pytest.mark.timeout(180)]


async def test_a_request_costs_no_more_than_a_stated_multiple_of_bare_envoy():
    found = await measure()
    text = f"{found:.1f} times bare Envoy's CPU per request; at most {ENVOY_RATIO_BOUND:g} is allowed"
    assert found <= ENVOY_RATIO_BOUND, text
