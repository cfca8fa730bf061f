"""The declared studies. To add one, write a module here that defines `STUDIES`."""

import importlib
import pkgutil

from experiments.study.arms import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for module in pkgutil.iter_modules(__path__)
    for study in importlib.import_module(f"{__name__}.{module.name}").STUDIES
}
