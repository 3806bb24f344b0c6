"""Other modules of srl do not import srl.llm or its optional packages."""

import subprocess
import sys

PROGRAM = """
import pkgutil, sys
import srl, srl.cli
for name in ("training.run", "sweep.plan", "report.status", "report.runs"):
    __import__(f"srl.{name}")
print([name for name in sys.modules if name.split(".")[0] in ("transformers", "trl", "peft", "accelerate")])
print([name for name in sys.modules if name.startswith("srl.llm")])
"""


def test_other_modules_do_not_import_language_models():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
