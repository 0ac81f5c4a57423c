"""Mixing with an anchor: how fast workers and anchor come together, and the elasticity at which they do so fastest.

Elastic averaging adds a row z to the m workers; its mixing matrix, with W that of the workers among themselves, is

    W' = [[(1 - alpha) W, alpha 1], [alpha 1^T, 1 - m alpha]]

(Wang & Joshi, "Cooperative SGD" (2021), eq. 31; with W = I eq. 11, EASGD). Its eigenvalues are 1, 1 - (m + 1) alpha,
and (1 - alpha) times those of W besides the one of consensus.
"""

from __future__ import annotations


def elastic_zeta(alpha: float, workers: int, zeta: float | None = None) -> float:
    """The zeta of elastic averaging's mixing matrix: the factor by which a round shrinks differences.

    zeta' = max(|1 - alpha| zeta, |1 - (m + 1) alpha|)              (Cooperative SGD, eq. 22 and, with zeta, 33)

    Below 1, where workers and anchor come together, for 0 < alpha < 2/(m+1); no other elasticity is refused.

    Args:
        alpha: elasticity.
        workers: number of workers m.
        zeta: that of the workers' own mixing matrix W. Default: 1, workers that hear from the anchor only (EASGD).

    Examples:
        >>> round(elastic_zeta(0.2, workers=8), 12), round(elastic_zeta(0.23, workers=8), 12)
        (0.8, 1.07)
    """
    _check(workers, zeta)
    return max(abs(1 - alpha) * (1 if zeta is None else zeta), abs(1 - (workers + 1) * alpha))


def best_elasticity(workers: int, zeta: float | None = None) -> float:
    """The elasticity at which workers and anchor come together fastest.

    alpha* = (1 + zeta) / (m + 1 + zeta),    zeta'* = m zeta / (m + 1 + zeta)

    (Cooperative SGD, theorem 4; EASGD has zeta = 1, so alpha* = 2/(m+2) and zeta'* = m/(m+2), lemma 1.)

    Args:
        workers: number of workers m.
        zeta: that of the workers' own mixing matrix W, in [0, 1]. Default: 1, workers that hear from the anchor only.

    Raises:
        ValueError: if there is no worker, or zeta is outside [0, 1].

    Examples:
        >>> best_elasticity(workers=8)
        0.2
        >>> ring = (1 + 2 * math.cos(math.pi / 4)) / 3  # eight workers, who give each neighbour a third: 0.804738
        >>> round(elastic_zeta(best_elasticity(8, ring), 8, ring), 6)
        0.656611
    """
    _check(workers, zeta)
    own = 1 if zeta is None else zeta
    return (1 + own) / (workers + 1 + own)


def check_elasticity(alpha: float, limit: float, best: float) -> None:
    """Raise `ValueError` unless 0 < alpha < limit, naming the best value."""
    if not 0 < alpha < limit:
        raise ValueError(
            f"alpha={alpha:.6g}: workers and anchor come together only for 0 < alpha < {limit:.6g}; "
            f"alpha={best:.6g} mixes fastest"
        )


def elastic_limit(workers: int) -> float:
    """The elasticity below which workers and anchor come together: 2/(m+1), with or without neighbours (lemma 1).

    Examples:
        >>> round(elastic_limit(workers=8), 6)
        0.222222
    """
    return 2 / (workers + 1)


def _check(workers: int, zeta: float | None) -> None:
    if workers < 1:
        raise ValueError(f"workers={workers}: there must be at least 1")
    if zeta is not None and not 0 <= zeta <= 1:
        raise ValueError(f"zeta={zeta:.6g}: a mixing matrix whose workers do not drift apart has it in [0, 1]")
