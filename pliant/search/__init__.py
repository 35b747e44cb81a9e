"""Search: which of a network's sub-networks are worth having, and the front they form."""

from pliant.search.front import Axis as Axis
from pliant.search.front import Front as Front
from pliant.search.front import Point as Point
from pliant.search.objectives import Objective as Objective
from pliant.search.proposers import Design as Design
from pliant.search.proposers import Proposer as Proposer
from pliant.search.proposers import Random as Random
from pliant.search.proposers import Ridge as Ridge
from pliant.search.proposers import Tpe as Tpe
from pliant.search.search import SearchSettings as SearchSettings
from pliant.search.search import search as search
