"""Which models can be in service, which are, and how that changes while requests are answered."""

from service.models.model import Model
from service.models.registry import Registered, Registry
from service.models.state import MemoryModelStates, ModelState, ModelStates
from service.models.switch import Models

__all__ = ["MemoryModelStates", "Model", "ModelState", "ModelStates", "Models", "Registered", "Registry"]
