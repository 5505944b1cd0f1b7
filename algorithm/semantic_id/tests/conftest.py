"""全部测试共用的设置。"""

import torch

# 测试机器可能很忙：OpenMP 的自旋等待会让两个线程比一个还慢几倍。线程数的影响由 test_search.py 专门测
torch.set_num_threads(1)
