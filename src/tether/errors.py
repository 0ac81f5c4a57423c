"""What can go wrong with a run that is nobody's mistake. Importing it does not import PyTorch."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or there are some and none can be gone on from."""


class RunFolderError(RuntimeError):
    """A run's folder could not be written, such as on a full disk. What was there is there still."""


class WorkerLostError(RuntimeError):
    """Another process has ended, or cannot be reached any more.

    Attributes:
        process: its number; None if it is torchrun's agent that is lost, where the group's store is.
    """

    def __init__(self, process: int | None, message: str):
        super().__init__(message)
        self.process = process
