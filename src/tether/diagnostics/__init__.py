"""What a model, its data and a run show: constants of the bounds, curvature, residues, drift; each with a figure."""

from tether.diagnostics import plots
from tether.diagnostics.curvature import Spectrum, extreme_eigenvalues, hessian, operator
from tether.diagnostics.descent import Optimum, optimality_gap, optimum
from tether.diagnostics.estimates import Estimate
from tether.diagnostics.landscape import Landscape
from tether.diagnostics.local import local_sgd_update, local_steps
from tether.diagnostics.newton import angle, leader_direction, newton_direction
from tether.diagnostics.noise import GradientStatistics, gradient_statistics, smoothness
from tether.diagnostics.relu import SemiLipschitz, Stage, semi_lipschitz, stage
from tether.diagnostics.runs import Drift, Snapshot, drift, snapshot
from tether.diagnostics.spectral import Energy, contributions, energy, lanczos_energy, spectral_density
from tether.diagnostics.taylor import Residue, residue, residues

__all__ = [
    "Drift",
    "Energy",
    "Estimate",
    "GradientStatistics",
    "Landscape",
    "Optimum",
    "Residue",
    "SemiLipschitz",
    "Snapshot",
    "Spectrum",
    "Stage",
    "angle",
    "contributions",
    "drift",
    "energy",
    "extreme_eigenvalues",
    "gradient_statistics",
    "hessian",
    "lanczos_energy",
    "leader_direction",
    "local_sgd_update",
    "local_steps",
    "newton_direction",
    "operator",
    "optimality_gap",
    "optimum",
    "plots",
    "residue",
    "residues",
    "semi_lipschitz",
    "smoothness",
    "snapshot",
    "spectral_density",
    "stage",
]
