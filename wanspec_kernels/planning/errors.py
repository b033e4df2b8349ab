"""What ends a plan.

PlanError(ValueError)      the plan's file is malformed
└── UnsupportedError       it is well-formed, and asks for what the model cannot answer
"""


class PlanError(ValueError):
    """Names the place in the file, what was expected and what came."""


class UnsupportedError(PlanError):
    """Says what the model does not support, and what would help."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
