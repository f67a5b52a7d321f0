"""The digits and the network of the package's tests."""

from tests.conftest import _trained, digits, model

__all__ = ["_trained", "digits", "model"]
