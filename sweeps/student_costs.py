"""What the students of a search cost before they are trained: parameters, multiply-adds, time of an image."""

import json
import math

from kdtrain.data import info_of
from kdtrain.models.cost import cost, latency
from sweeps import searched
from sweeps.plan import Study
from sweeps.schema import OBJECTIVES
from sweeps.store import Store
from sweeps.tables import SearchTable

LATENCY_SECONDS = 0.5  # for which a student is timed
LATENCIES = "latencies.json"  # file of a sweep: times are compared, so each is measured once
Costs = dict[str, dict[str, float]]  # by student: the columns of a row


def student_costs(study: Study, table: SearchTable, own: Store, measure: bool) -> Costs:
    """The costs of all students of a study.

    Times only if the spec weighs them: those that the sweep's store has; with `measure` the others are measured, and
    stored. Else they are NaN.
    """
    info = info_of(study.example.data)
    size = (info.num_classes, info.image_size, info.in_channels)
    found: Costs = {}
    for name in dict.fromkeys(searched.students(study.space)):
        its = cost(name, *size)
        found[name] = {"student_params": its.params, "student_macs": its.multiply_adds}
    if found and "latency_ms" in (*table.objectives, *table.limits):
        known: dict[str, float] = json.loads(own.read_bytes(LATENCIES) or "{}")
        absent = [name for name in found if name not in known]
        if absent and measure:
            known |= {name: latency(name, *size, seconds=LATENCY_SECONDS).median for name in absent}
            own.write_bytes(json.dumps(known).encode(), LATENCIES)
        for name, costs in found.items():
            costs["latency_ms"] = known.get(name, math.nan)
    return found


def excess(costs: dict[str, float], limits: dict[str, float]) -> float:
    """By how much costs exceed limits, as shares of them; 0 within."""
    return sum(max(0.0, costs[OBJECTIVES[name][0]] / limit - 1) for name, limit in limits.items())
