"""The one error of artifacts."""


class ArtifactError(Exception):
    """An artifact that is damaged, was tampered with, or is of a kind this runtime does not run.

    Args:
        file: the file at fault, relative to the artifact or absolute.
        problem: what is wrong with it, naming the place inside the file and the value got.
    """

    def __init__(self, file: str, problem: str) -> None:
        self.file, self.problem = file, problem
        super().__init__(f"{file}: {problem}")
