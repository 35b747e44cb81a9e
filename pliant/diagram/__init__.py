"""A traced network in words and as a picture: its text form and hash, and its neural circuit diagram."""

from pliant.diagram.diagram import Diagram as Diagram
from pliant.diagram.diagram import diagram as diagram
from pliant.diagram.text import graph_hash as graph_hash
from pliant.diagram.text import to_text as to_text
