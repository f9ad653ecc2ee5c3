"""How near the predictor comes to published step times: experiments/plan/published.py measures it."""

import json
from importlib import resources
from typing import Any

from smoljax.plan.schedule import Rates

#: The roofline itself: no factor is fitted to the published runs.
RATES = Rates()


def error() -> dict[str, Any] | None:
    """`runs`, and predicted over published step time: `mean_abs` of its distance from 1, `low`, `high`; and `refused`,
    how many runs that were published it says do not fit.

    None where it has not been measured.
    """
    file = resources.files("smoljax.plan") / "predictor.json"
    return json.loads(file.read_text()) if file.is_file() else None
