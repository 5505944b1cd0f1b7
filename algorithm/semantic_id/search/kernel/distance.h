// 定义里的距离：float64、16 路、折半相加，不许 FMA；见 search/definition.py。
#pragma once

#include "book.h"

namespace {

SEMID_INLINE double fold_lanes(double *lane, int stride) {
    for (int half = kLanes / 2; half; half /= 2)
        for (int j = 0; j < half; ++j) lane[j * stride] += lane[(j + half) * stride];
    return lane[0];
}

// 码字相邻两个元素相隔 step。
double exact_distance(const float *code, int64_t step, int64_t width, const double *x) {
    double lane[kLanes] = {0.0};
    for (int64_t d = 0; d < width; ++d) {
        const double gap = x[d] - static_cast<double>(code[d * step]);
        const double square = gap * gap;
        lane[d % kLanes] += square;  // 末尾不足 16 个时补零与不补逐位相同：和不会是 −0.0
    }
    return fold_lanes(lane, 1);
}

// 定义里的距离，两边都按行连续；沿 16 路向量化，累加次序不变。
SEMID_INLINE double row_distance(const float *x, const float *code, int64_t width) {
    double lane[kLanes] = {0.0};
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const double gap = static_cast<double>(x[d + j]) - static_cast<double>(code[d + j]);
            const double square = gap * gap;
            lane[j] += square;
        }
    for (int j = 0; d < width; ++d, ++j) {
        const double gap = static_cast<double>(x[d]) - static_cast<double>(code[d]);
        const double square = gap * gap;
        lane[j] += square;
    }
    return fold_lanes(lane, 1);
}

// 面板里 32 个码字的距离；每 8 个码字一组，让编译器沿码字方向向量化，累加次序不变。
SEMID_INLINE void brute_panel(const float *panel, int64_t width, const double *x, double *far) {
    constexpr int kWide = 8;
    for (int first = 0; first < kPanel; first += kWide) {
        double lane[kLanes][kWide] = {{0.0}};
        for (int64_t start = 0; start < width; start += kLanes) {
            const int count = static_cast<int>(std::min<int64_t>(kLanes, width - start));
            for (int j = 0; j < count; ++j) {
                const float *code = panel + (start + j) * kPanel + first;
                for (int i = 0; i < kWide; ++i) {
                    const double gap = x[start + j] - static_cast<double>(code[i]);
                    const double square = gap * gap;
                    lane[j][i] += square;
                }
            }
        }
        for (int i = 0; i < kWide; ++i) far[first + i] = fold_lanes(&lane[0][i], kWide);
    }
}

}  // namespace
