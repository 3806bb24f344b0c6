"""Tests that need missing extras are skipped with a reason."""

from importlib.util import find_spec

import pytest

#: Packages that each test module needs besides torch.
NEEDS = {
    "test_offline": ("transformers",),
    "test_sppo_trainer": ("transformers", "accelerate", "peft"),
    "test_grpo_trainer": ("transformers", "trl", "peft"),
    "test_run": ("transformers", "accelerate"),
    "test_cli": ("transformers", "accelerate"),
    "test_tasks": ("transformers", "accelerate", "datasets"),
}


class Missing(pytest.Module):
    """A skipped test module whose packages are not installed."""

    def _getobj(self):
        missing = [name for name in NEEDS[self.path.stem] if find_spec(name) is None]
        pytest.skip(f"{', '.join(missing)}: not installed", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if all(find_spec(name) for name in NEEDS.get(module_path.stem, ())):
        return None
    return Missing.from_parent(parent, path=module_path)
