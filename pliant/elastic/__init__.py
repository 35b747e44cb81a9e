"""Elastic networks: one set of parameters, many nested sub-networks."""

from pliant.elastic.elastic import Elastic as Elastic
from pliant.elastic.elastic import elastic as elastic
from pliant.elastic.generate import decoder as decoder
from pliant.elastic.generate import generate as generate
from pliant.elastic.onepass import OnePass as OnePass
from pliant.elastic.onepass import one_pass as one_pass
from pliant.elastic.rebuild import to_module as to_module
from pliant.elastic.separate import separate as separate
