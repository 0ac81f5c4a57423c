"""What to train by on a cluster: each method's time to a loss, predicted before anything is trained there.

A forecast is a short simulated run on the cluster's clock: what it trains is what real workers would train, and the
clock says when. `tether plan` does all of this for a config; in Python it is

    conditions = Conditions(workers=8, parameters=d, clock=tether.Clock(step=0.02, latency=0.03, bandwidth=100e6))
    candidates = standard_candidates({"local": tether.LocalSGD, "easgd": tether.EASGD}, conditions)
    plan = make_plan(candidates, conditions, train, steps=500)
    print(plan.recommended.name, plan.reason)

with a `train(candidate, steps)` of one's own that calls `tether.simulate` on `conditions.clock_of(candidate)`.
"""

from tether.planner.bounds import Constants, probe
from tether.planner.candidates import Candidate, Conditions, standard_candidates
from tether.planner.forecast import Course, Forecast, Train, course_of, forecast, training_loss
from tether.planner.machine import conditions_between, links_between, step_seconds
from tether.planner.plan import Plan, make_plan

__all__ = [
    "Candidate",
    "Conditions",
    "Constants",
    "Course",
    "Forecast",
    "Plan",
    "Train",
    "conditions_between",
    "course_of",
    "forecast",
    "links_between",
    "make_plan",
    "probe",
    "standard_candidates",
    "step_seconds",
    "training_loss",
]
