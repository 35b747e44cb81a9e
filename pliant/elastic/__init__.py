"""Elastic networks: one set of parameters, many nested sub-networks."""

from pliant.elastic.elastic import Elastic as Elastic
from pliant.elastic.elastic import elastic as elastic
from pliant.elastic.rebuild import to_module as to_module
