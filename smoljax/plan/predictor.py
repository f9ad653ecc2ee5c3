"""How near the predictor comes to published step times (experiments/plan/published.py measures it)."""

from smoljax.plan.schedule import Rates

#: Shares of the published rates that the published runs reach, in the mean; see docs/plan.md.
RATES = Rates()
#: Predicted over published step time of those runs: smallest, mean, largest; None until measured.
ERROR: dict[str, float] | None = None
