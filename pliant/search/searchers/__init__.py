"""Searchers: what to measure next. Each is a pure function of the seed and of what was measured; see `contract`."""

from pliant.search.searchers.contract import AskTell as AskTell
from pliant.search.searchers.contract import Proposer as Proposer
from pliant.search.searchers.design import Design as Design
from pliant.search.searchers.evolution import Evolution as Evolution
from pliant.search.searchers.linas import Linas as Linas
from pliant.search.searchers.mcts import Mcts as Mcts
from pliant.search.searchers.nsga2 import Nsga2 as Nsga2
from pliant.search.searchers.random_search import Random as Random
from pliant.search.searchers.ridge import Ridge as Ridge
from pliant.search.searchers.samplers import Gp as Gp
from pliant.search.searchers.samplers import Tpe as Tpe
from pliant.search.searchers.smbo import Smbo as Smbo

__all__ = ["Design", "Evolution", "Gp", "Linas", "Mcts", "Nsga2", "Random", "Ridge", "Smbo", "Tpe"]
"""Searchers by name; `AskTell` and `Proposer` are what they have in common."""
