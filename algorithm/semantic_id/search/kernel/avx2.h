// AVX2 与 FMA 的 float32 特征。
#pragma once

#include "distance.h"

namespace {

struct Avx2 {
    static constexpr int kRows = 6;
    using Float32 = Avx2;
    using Rows = NoRows;
    using Session = NoSession;

    static bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

    // 6 行 × 16 码字 = 12 个 ymm 累加器；一个面板分两半走。
    template <int R>
    __attribute__((target("avx2,fma"))) static unsigned tile(const float *panel, const float *bias, int64_t width,
                                                             const float *x, const float *threshold, float *scores,
                                                             uint32_t *masks) {
        unsigned hits = 0;
        for (int r = 0; r < R; ++r) masks[r] = 0;
        for (int first = 0; first < kPanel; first += 16) {
            __m256 left[R], right[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                left[r] = _mm256_loadu_ps(bias + first), right[r] = _mm256_loadu_ps(bias + first + 8);
            const float *code = panel + first, *value = x;
            for (int64_t d = 0; d < width; ++d, code += kPanel, value += R) {
                const __m256 code_left = _mm256_loadu_ps(code), code_right = _mm256_loadu_ps(code + 8);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const __m256 v = _mm256_broadcast_ss(value + r);
                    left[r] = _mm256_fmadd_ps(v, code_left, left[r]);
                    right[r] = _mm256_fmadd_ps(v, code_right, right[r]);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m256 bar = _mm256_broadcast_ss(threshold + r);
                const uint32_t mask = _mm256_movemask_ps(_mm256_cmp_ps(left[r], bar, _CMP_GE_OQ)) |
                                      _mm256_movemask_ps(_mm256_cmp_ps(right[r], bar, _CMP_GE_OQ)) << 8;
                _mm256_storeu_ps(scores + r * kPanel + first, left[r]);
                _mm256_storeu_ps(scores + r * kPanel + first + 8, right[r]);
                masks[r] |= mask << first;
                hits |= static_cast<unsigned>(mask != 0) << r;
            }
        }
        return hits;
    }

    __attribute__((target("avx2"))) static double distance(const float *x, const float *code, int64_t width) {
        return row_distance(x, code, width);
    }

    __attribute__((target("avx2"))) static void brute(const float *panel, int64_t width, const double *x, double *far) {
        brute_panel(panel, width, x, far);
    }

    __attribute__((target("avx2,fma"))) static int sift(const Sift &s) {
        const __m256 step = _mm256_set1_ps(s.step);
        int found = 0;
        for (int k = 0; k < s.paths; ++k) {
            __m256 v[4];
            for (int i = 0; i < 4; ++i) v[i] = _mm256_setzero_ps();
            for (int j = 0; j < s.depth; ++j) {
                const int64_t slot = s.slots[k * s.stride + j];
                const auto *product = reinterpret_cast<const __m128i *>(s.table + slot * kPanel);
                const __m256 gain = _mm256_set1_ps(s.gain[slot]);
                for (int i = 0; i < 4; ++i) {
                    const __m256i whole = _mm256_cvtepi16_epi32(_mm_loadu_si128(product + i));
                    v[i] = _mm256_fmadd_ps(gain, _mm256_cvtepi32_ps(whole), v[i]);
                }
            }
            for (int i = 0; i < 4; ++i) v[i] = _mm256_fnmadd_ps(step, v[i], _mm256_loadu_ps(s.scores + 8 * i));
            const __m256 bar = _mm256_set1_ps(std::max(s.bar + s.half[k], -FLT_MAX));
            uint32_t mask = 0;
            for (int i = 0; i < 4; ++i)
                mask |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v[i], bar, _CMP_GE_OQ))) << 8 * i;
            if (__builtin_expect(mask != 0, 0)) {
                for (int i = 0; i < 4; ++i) _mm256_storeu_ps(s.out + found * kPanel + 8 * i, v[i]);
                s.which[found] = k, s.masks[found++] = mask;
            }
        }
        return found;
    }
};

}  // namespace
