from srl.sa2c.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from srl.sa2c.sa2c import SA2C

__all__ = ["SA2C", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
