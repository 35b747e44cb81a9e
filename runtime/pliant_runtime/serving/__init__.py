"""Serving a family under a latency promise: larger sub-networks when idle, smaller ones under load, nothing lost.

`Controller` decides, without clock or tasks; `simulate` runs it in a simulation, `workers` behind HTTP, `load` puts
load on it; `command` is all of this for a command line.
"""

from pliant_runtime.serving.controller import Controller as Controller
from pliant_runtime.serving.controller import Settings as Settings
from pliant_runtime.serving.controller import Shed as Shed
from pliant_runtime.serving.controller import Ticket as Ticket
from pliant_runtime.serving.controller import Work as Work
from pliant_runtime.serving.table import Table as Table
