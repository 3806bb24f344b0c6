"""Settings shared by all tests."""

from multiprocessing import get_context

import torch as th

from srl.sweep.engines.local import PRELOADED

# Results must be bitwise identical, and the tests share few cores
th.set_num_threads(1)
# SubprocVecEnv and sweeps share a fork server: if SB3 starts it first, each task imports torch again
get_context("forkserver").set_forkserver_preload(PRELOADED)
