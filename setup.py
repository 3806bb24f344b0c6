"""Packaging of symmetric-rl. The environment that scripts/setup.sh makes is pinned in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return `__version__` of srl/__init__.py as text: importing srl would need what is not installed yet."""
    found = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "srl" / "__init__.py").read_text("utf-8"), re.MULTILINE
    )
    if found is None:
        raise RuntimeError('srl/__init__.py has no line like: __version__ = "1.2.3"')
    return found[1]


README = ROOT / "README.md"
# Python 3.11 or later, for transformers 5 and TRL
LANGUAGE_MODELS = [
    f"{requirement}; python_version >= '3.11'"
    for requirement in (
        "transformers>=5.24,<6",
        "accelerate>=1.15,<2",
        "peft>=0.21,<1",
        "datasets>=5,<6",
        "tokenizers>=0.23,<1",
        "safetensors>=0.8,<1",
    )
]

setup(
    name="symmetric-rl",
    version=read_version(),
    description="Symmetric RL losses for Stable-Baselines3, and the experiments that compare them",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The srl developers",
    license_expression="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    # What `from srl import SPPO` needs, and no more
    install_requires=[
        "torch>=2.8,<3",
        "stable-baselines3>=2.9,<3",
        "gymnasium>=1.4,<2",
        "numpy>=2,<3",
    ],
    extras_require={
        # The commands: environments, run directories and sweeps
        "experiments": [
            "gymnasium[box2d,mujoco]>=1.4,<2",
            "ale-py>=0.12,<1",
            "mujoco>=3.2,<5",
            "tensorboard>=2.20,<3",
            # The headless build has the same cv2 and needs no libGL on the machine
            "opencv-python-headless>=4.10,<6",
            "pydantic>=2.10,<3",
            "PyYAML>=6,<7",
            "rich>=13,<16",
            "scipy>=1.11,<2",
            # SB3's `progress_bar=True`
            "tqdm>=4.60,<5",
            "tyro>=1,<2",
        ],
        "dev": [
            "build",
            "import-linter>=2.15",
            "mypy>=2",
            "pytest>=8",
            "pytest-xdist>=3",
            "ruff",
            "sb3-contrib>=2.9,<3",
            "types-PyYAML",
            # The documentation site
            "furo",
            "myst-parser>=4",
            "sphinx>=8",
        ],
        # The discrete games of the study
        "minatar": ["minatar>=1.0.15,<2"],
        # MP4 files of `srl enjoy`
        "video": ["imageio-ffmpeg>=0.5,<1", "pillow>=10"],
        "llm": LANGUAGE_MODELS,
        "trl": [*LANGUAGE_MODELS, "trl>=1.12,!=1.15.*,<1.17; python_version >= '3.11'"],
        # In an environment of its own: it needs other versions of transformers
        "verl": ["verl>=0.9,<1"],
        "ray": ["ray>=2.9,<3", "grpcio>=1.60"],
        "slurm": ["submitit>=1.5,<2"],
        # srl tune; its plots
        "tune": ["optuna>=4.4,<6", "matplotlib>=3.9,<4"],
        # srl train --track, each alone: pip install wandb, mlflow-skinny or trackio
        "track": ["wandb>=0.20,<1", "mlflow-skinny>=3,<4", "trackio>=0.20,<1"],
        # srl push, srl pull
        "share": ["huggingface_hub>=1,<3"],
        # python -m srl.zoo
        "zoo": ["rl_zoo3>=2.9.2,<3", "optuna>=4.4,<6"],
        # rliable needs arch < 8, which needs pandas < 3
        "report": [
            "rliable>=1.2,<2",
            "pandas>=2.2,<3",
            "pyarrow>=16",
            "matplotlib>=3.9,<4",
            "jinja2>=3.1,<4",
            "pillow>=10",
        ],
    },
    entry_points={"console_scripts": ["srl = srl.__main__:main"]},
    # An installed copy finds the top-level configs/ beside its modules, as srl/configs/
    packages=[*find_packages(include=["srl", "srl.*"]), "srl.configs"],
    package_dir={"srl.configs": "configs"},
    package_data={"srl": ["py.typed", "report/templates/*"], "srl.configs": ["**/*.yml"]},
    zip_safe=False,
)
