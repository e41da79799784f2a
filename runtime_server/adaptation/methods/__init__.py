"""The methods: the published one that trains a teacher along, ours, and those that they are compared with."""

from __future__ import annotations

from collections.abc import Callable

from runtime_server.adaptation.classifier import Classifier
from runtime_server.adaptation.methods.adaptation_method import Method
from runtime_server.adaptation.methods.blended import Blended
from runtime_server.adaptation.methods.cema import Cema
from runtime_server.adaptation.methods.eata import Eata
from runtime_server.adaptation.methods.joint import Joint
from runtime_server.adaptation.methods.sar import Sar
from runtime_server.adaptation.methods.tent import Tent

ALONE: dict[str, Callable[[Classifier], Method]] = {"tent": Tent, "eata": Eata, "sar": Sar}
"""Methods without a teacher."""

__all__ = ["ALONE", "Blended", "Cema", "Eata", "Joint", "Method", "Sar", "Tent"]
