"""Settings that every test shares."""

import torch as th

# Results are compared to the bit, and the tests share few cores
th.set_num_threads(1)
