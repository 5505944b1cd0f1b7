"""主成分的方向：码本投影与二维地图都从这里取。数组进，数组出，只依赖 NumPy。"""

from __future__ import annotations

import numpy as np

__all__ = ["principal_axes"]


def principal_axes(covariance: np.ndarray, count: int) -> np.ndarray:
    """协方差（或它的倍数）最大的几个主成分。

    LAPACK 不保证特征向量的符号，所以每个方向定成绝对值最大的分量为正：换一台机器，投影与地图不会翻转。

    Args:
        covariance: (D, D) float64，对称。
        count: 要几个方向；多于 D 时给 D 个。

    Returns:
        (D, min(D, count)) float64，列正交归一，方差从大到小。

    Examples:
        >>> principal_axes(np.array([[1.0, 0.0], [0.0, 4.0]]), 1).tolist()
        [[0.0], [1.0]]
    """
    _, axes = np.linalg.eigh(covariance)  # 特征值升序
    axes = axes[:, ::-1][:, :count]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return axes * np.sign(largest)
