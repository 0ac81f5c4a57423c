"""Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function"."""

from tether.papers.second_order import cpdf, curves, eigenvalues, residue  # noqa: F401  each registers its experiments
