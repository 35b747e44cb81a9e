"""What a run found, as one self-contained HTML page; and the catalogue of methods."""

from pliant.report.collect import collect as collect
from pliant.report.collect import write_report as write_report
from pliant.report.contents import Contents as Contents
from pliant.report.look import look_page as look_page
from pliant.report.look import write_look as write_look
from pliant.report.methods import Method as Method
from pliant.report.methods import catalogue as catalogue
from pliant.report.page import page as page
from pliant.report.picture import pareto_svg as pareto_svg
from pliant.report.program import write_program_page as write_program_page
