"""Laws and a zoo of networks: what pliant promises, to be checked on your networks as on ours."""

from pliant.testing.check import Judgement as Judgement
from pliant.testing.check import Verdict as Verdict
from pliant.testing.check import check as check
from pliant.testing.check import check_network as check_network
from pliant.testing.check import zoo_subjects as zoo_subjects
from pliant.testing.laws import LAWS as LAWS
from pliant.testing.subject import LawBroken as LawBroken
from pliant.testing.subject import Subject as Subject
from pliant.testing.zoo import ZOO as ZOO
