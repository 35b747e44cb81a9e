"""Deployment: trained networks become artifacts that run without torch."""

from pliant.deploy.compile import compile as compile
from pliant.deploy.single import single_file as single_file
from pliant.deploy.verify import verify as verify
