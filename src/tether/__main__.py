"""`python -m tether`, for torchrun: `torchrun --nproc-per-node 4 -m tether train CONFIG`."""

from tether.cli import main

if __name__ == "__main__":
    main()
