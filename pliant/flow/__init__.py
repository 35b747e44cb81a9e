"""Networks whose way through their code depends on the data, taken apart into blocks and decisions."""

from pliant.flow.errors import Rejected as Rejected
from pliant.flow.explore import Flow as Flow
from pliant.flow.explore import State as State
from pliant.flow.explore import decides as decides
