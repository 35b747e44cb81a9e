"""The command line: `pliant demo|look|train|search|compile|probes|serve|simulate|load|report|methods`."""

from pliant.cli.app import app as app
from pliant.cli.app import main as main
