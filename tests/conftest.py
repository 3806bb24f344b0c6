"""Settings that every test shares."""

from multiprocessing import get_context

import torch as th

from srl.sweep.engines.local import PRELOADED

# Results are compared to the bit, and the tests share few cores
th.set_num_threads(1)
# SB3's SubprocVecEnv starts the same fork server as a sweep: if it comes first, each task imports torch again
get_context("forkserver").set_forkserver_preload(PRELOADED)
