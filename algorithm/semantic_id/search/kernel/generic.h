// 通用的特征：标准 C++，编译器自己向量化。新的 float32 指令集照它的样子提供 kRows、supported、tile、distance、brute、sift。
#pragma once

#include "distance.h"

namespace {

struct Generic {
    static constexpr int kRows = 4;  // 与 search/isa.py 的 tile_rows 一致
    using Float32 = Generic;         // 候选挤不下的行、逐一比较与裁决用哪一种 float32
    using Rows = NoRows;
    using Session = NoSession;

    static bool supported() { return true; }

    template <int R>
    static unsigned tile(const float *panel, const float *bias, int64_t width, const float *x, const float *threshold,
                          float *scores, uint32_t *masks) {
        constexpr int kWide = 8;
        for (int r = 0; r < R; ++r) masks[r] = 0;
        for (int first = 0; first < kPanel; first += kWide) {
            float acc[R][kWide];
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < kWide; ++i) acc[r][i] = bias[first + i];
            for (int64_t d = 0; d < width; ++d)
                for (int r = 0; r < R; ++r)
                    for (int i = 0; i < kWide; ++i) acc[r][i] += x[d * R + r] * panel[d * kPanel + first + i];
            for (int r = 0; r < R; ++r)
                for (int i = 0; i < kWide; ++i) {
                    scores[r * kPanel + first + i] = acc[r][i];
                    masks[r] |= static_cast<uint32_t>(acc[r][i] >= threshold[r]) << (first + i);
                }
        }
        unsigned hits = 0;
        for (int r = 0; r < R; ++r) hits |= static_cast<unsigned>(masks[r] != 0) << r;
        return hits;
    }

    static double distance(const float *x, const float *code, int64_t width) { return row_distance(x, code, width); }

    static void brute(const float *panel, int64_t width, const double *x, double *far) {
        brute_panel(panel, width, x, far);
    }

    static int sift(const Sift &s) {
        int found = 0;
        for (int k = 0; k < s.paths; ++k) {
            float *value = s.out + found * kPanel, sum[kPanel] = {0.0f};
            for (int j = 0; j < s.depth; ++j) {
                const int64_t slot = s.slots[k * s.stride + j];
                const float gain = s.gain[slot];
                for (int i = 0; i < kPanel; ++i) sum[i] += gain * s.table[slot * kPanel + i];
            }
            for (int i = 0; i < kPanel; ++i) value[i] = s.scores[i] - s.step * sum[i];
            const float bar = std::max(s.bar + s.half[k], -FLT_MAX);
            uint32_t mask = 0;
            for (int i = 0; i < kPanel; ++i) mask |= static_cast<uint32_t>(value[i] >= bar) << i;
            if (mask) s.which[found] = k, s.masks[found++] = mask;
        }
        return found;
    }
};

}  // namespace
