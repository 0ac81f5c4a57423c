"""Numbers that the papers prove: bounds and what they ask for, best elasticities, largest periods, costs of rounds.

Plain functions of floats or arrays. Each says which equation it is, in which units, and under which conditions; where
one does not hold, the `ValueError` has the largest value with which it would. Nothing here looks at a model or at data:
the constants (smoothness, noise, ...) are given.
"""

from tether.theory.communication import RoundCost, round_costs
from tether.theory.cooperative import (
    CooperativeBound,
    cooperative_bound,
    horizon_learning_rate,
    largest_learning_rate,
    largest_period,
    network_error,
    zeta_threshold,
)
from tether.theory.directions import angle_improvement, largest_cosine_ratio
from tether.theory.leader import check_leader_step, leader_limit, leader_step_bound, stale_leader_factor
from tether.theory.local_gd import (
    LocalGDBound,
    bregman_divergence,
    consensus_distance,
    local_gd_bound,
    local_gd_fixed_point,
    local_gd_learning_rate,
    sigma_dif_squared,
    sigma_f_squared,
)
from tether.theory.second_order import descent_energy, eigen_energy, newton_update, update_gain
from tether.theory.stationary import elastic_stationary_point, hill
from tether.topology import best_elasticity, check_mixing_matrix, elastic_limit, elastic_zeta, zeta

__all__ = [
    "CooperativeBound",
    "LocalGDBound",
    "RoundCost",
    "angle_improvement",
    "best_elasticity",
    "bregman_divergence",
    "check_leader_step",
    "check_mixing_matrix",
    "consensus_distance",
    "cooperative_bound",
    "descent_energy",
    "eigen_energy",
    "elastic_limit",
    "elastic_stationary_point",
    "elastic_zeta",
    "hill",
    "horizon_learning_rate",
    "largest_cosine_ratio",
    "largest_learning_rate",
    "largest_period",
    "leader_limit",
    "leader_step_bound",
    "local_gd_bound",
    "local_gd_fixed_point",
    "local_gd_learning_rate",
    "network_error",
    "newton_update",
    "round_costs",
    "sigma_dif_squared",
    "sigma_f_squared",
    "stale_leader_factor",
    "update_gain",
    "zeta",
    "zeta_threshold",
]
