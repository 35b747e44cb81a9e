"""Search: which of a network's sub-networks are worth having, and the front they form."""

from pliant.search.blueprint import Blueprint as Blueprint
from pliant.search.front import Axis as Axis
from pliant.search.front import Front as Front
from pliant.search.front import Point as Point
from pliant.search.objectives import Objective as Objective
from pliant.search.outcome import Outcome as Outcome
from pliant.search.physical import Energy as Energy
from pliant.search.qualities import Robustness as Robustness
from pliant.search.search import search as search
from pliant.search.searchers import AskTell as AskTell
from pliant.search.searchers import Design as Design
from pliant.search.searchers import Evolution as Evolution
from pliant.search.searchers import Gp as Gp
from pliant.search.searchers import Linas as Linas
from pliant.search.searchers import Mcts as Mcts
from pliant.search.searchers import Nsga2 as Nsga2
from pliant.search.searchers import Proposer as Proposer
from pliant.search.searchers import Random as Random
from pliant.search.searchers import Ridge as Ridge
from pliant.search.searchers import Smbo as Smbo
from pliant.search.searchers import Tpe as Tpe
from pliant.search.settings import Rungs as Rungs
from pliant.search.settings import SearchSettings as SearchSettings
from pliant.search.trials import read_history as read_history
