"""The one error class for networks, files and folders that pliant cannot handle."""


class PliantError(Exception):
    """A network, file or folder that pliant cannot handle.

    Wrong *arguments* raise `ValueError` or `TypeError`; this class is for things that were given correctly but cannot
    be worked with: an operator without a rule, a damaged artifact, a run folder of another model.

    Args:
        problem: what is wrong, naming the value got.
        where: the place: operator and module, source line, file or folder.
        fix: the way out, as an instruction.
    """

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem, self.where, self.fix = problem, where, fix
        parts = [problem if where is None else f"{where}: {problem}"]
        if fix is not None:
            parts.append(fix)
        super().__init__(". ".join(part.rstrip(".") for part in parts))
