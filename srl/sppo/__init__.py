from srl.sppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from srl.sppo.sppo import SPPO

__all__ = ["SPPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
