"""Which public names has zeroi2v?

The module of a name is imported when the name is first used, so `import zeroi2v` takes no time.
"""

from typing import TYPE_CHECKING

from zeroi2v.version import __version__ as __version__

__all__ = [
    "Prediction",
    "Predictor",
    "VideoClassifier",
    "ZeroI2VError",
    "cost",
    "create_model",
    "load",
    "load_official",
    "partly_covered_towers",
    "supported_towers",
]

if TYPE_CHECKING:
    from zeroi2v.deploy.predict import Prediction, Predictor
    from zeroi2v.errors import ZeroI2VError
    from zeroi2v.measure.cost import cost
    from zeroi2v.models.build import create_model
    from zeroi2v.models.loading import load
    from zeroi2v.models.official import load_official
    from zeroi2v.models.towers import partly_covered_towers, supported_towers
    from zeroi2v.models.video import VideoClassifier
else:
    _HOMES = {
        "Prediction": "zeroi2v.deploy.predict",
        "Predictor": "zeroi2v.deploy.predict",
        "VideoClassifier": "zeroi2v.models.video",
        "ZeroI2VError": "zeroi2v.errors",
        "cost": "zeroi2v.measure.cost",
        "create_model": "zeroi2v.models.build",
        "load": "zeroi2v.models.loading",
        "load_official": "zeroi2v.models.official",
        "partly_covered_towers": "zeroi2v.models.towers",
        "supported_towers": "zeroi2v.models.towers",
    }

    def __getattr__(name):
        """The value of a public name.

        Python calls this function for a name that the module does not hold. The value is stored in
        the module, so the function runs once for each name.
        """
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        return [*__all__, "__version__"]
