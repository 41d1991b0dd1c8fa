"""Every test computes on one thread: small tensors gain nothing by more, and suites that share cores lose much."""

import torch

torch.set_num_threads(1)
