"""Train PyTorch models with workers that mostly compute on their own and communicate rarely.

Everything is the matrix X: row i is worker i's model. A local step moves each row by its own gradient, a round moves
rows toward one another, and a method says what a round does. The public names are in `__init__.pyi`; they are loaded
when first used, because importing PyTorch takes longer than printing the command's help.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
