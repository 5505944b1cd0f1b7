// AVX-512 的 float32 特征。
#pragma once

#include "distance.h"

namespace {

struct Avx512 {
    static constexpr int kRows = 14;
    using Float32 = Avx512;
    using Rows = NoRows;
    using Session = NoSession;

    static bool supported() { return __builtin_cpu_supports("avx512f"); }

    // 14 行 × 32 码字 = 28 个 zmm 累加器，余下 4 个放两段码字与广播。
    template <int R>
    __attribute__((target("avx512f")))
    static unsigned tile(const float *panel, const float *bias, int64_t width, const float *x, const float *threshold,
                         float *scores, uint32_t *masks) {
        __m512 left[R], right[R];
        const __m512 bias_left = _mm512_loadu_ps(bias), bias_right = _mm512_loadu_ps(bias + 16);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) left[r] = bias_left, right[r] = bias_right;
        for (int64_t d = 0; d < width; ++d, panel += kPanel, x += R) {
            const __m512 code_left = _mm512_loadu_ps(panel), code_right = _mm512_loadu_ps(panel + 16);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const __m512 value = _mm512_set1_ps(x[r]);
                left[r] = _mm512_fmadd_ps(value, code_left, left[r]);
                right[r] = _mm512_fmadd_ps(value, code_right, right[r]);
            }
        }
        unsigned hits = 0;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 bar = _mm512_set1_ps(threshold[r]);
            const uint32_t mask = _mm512_cmp_ps_mask(left[r], bar, _CMP_GE_OQ) |
                                  static_cast<uint32_t>(_mm512_cmp_ps_mask(right[r], bar, _CMP_GE_OQ)) << 16;
            if (__builtin_expect(mask != 0, 0)) {
                _mm512_storeu_ps(scores + r * kPanel, left[r]);
                _mm512_storeu_ps(scores + r * kPanel + 16, right[r]);
                masks[r] = mask;
                hits |= 1u << r;
            }
        }
        return hits;
    }

    __attribute__((target("avx512f"))) static double distance(const float *x, const float *code, int64_t width) {
        return row_distance(x, code, width);
    }

    __attribute__((target("avx512f")))
    static void brute(const float *panel, int64_t width, const double *x, double *far) {
        brute_panel(panel, width, x, far);
    }

    __attribute__((target("avx512f"))) static int sift(const Sift &s) {
        const __m512 left = _mm512_loadu_ps(s.scores), right = _mm512_loadu_ps(s.scores + 16);
        const __m512 step = _mm512_set1_ps(s.step);
        int found = 0;
        for (int k = 0; k < s.paths; ++k) {
            __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
            const int32_t *slot = s.slots + k * s.stride;
            for (int j = 0; j < s.depth; ++j) {
                const auto *product = reinterpret_cast<const __m256i *>(s.table + static_cast<int64_t>(slot[j]) * kPanel);
                const __m512 gain = _mm512_set1_ps(s.gain[slot[j]]);
                a = _mm512_fmadd_ps(gain, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(product))), a);
                b = _mm512_fmadd_ps(gain, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(product + 1))), b);
            }
            a = _mm512_fnmadd_ps(step, a, left), b = _mm512_fnmadd_ps(step, b, right);
            const __m512 bar = _mm512_set1_ps(std::max(s.bar + s.half[k], -FLT_MAX));
            const uint32_t mask = _mm512_cmp_ps_mask(a, bar, _CMP_GE_OQ) |
                                  static_cast<uint32_t>(_mm512_cmp_ps_mask(b, bar, _CMP_GE_OQ)) << 16;
            if (__builtin_expect(mask != 0, 0)) {
                _mm512_storeu_ps(s.out + found * kPanel, a);
                _mm512_storeu_ps(s.out + found * kPanel + 16, b);
                s.which[found] = k, s.masks[found++] = mask;
            }
        }
        return found;
    }
};

}  // namespace
