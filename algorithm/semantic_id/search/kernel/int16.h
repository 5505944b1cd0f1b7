// 定点数的提名：行与码字各自按范数定标，舍入成 int16 再相乘，int32 累加；AVX2 与 AVX-512 VNNI 两个特征。
//
// 一条指令做两倍的乘加（AVX-512 VNNI 的 vpdpwssd；AVX2 用 vpmaddwd 加 vpaddd），面板也只有一半大。行 x̃ = s·q，q 是整数：
// - s ≥ ‖x‖ / (46300 − √H/2) 使 ‖q‖ < √2³¹，由柯西不等式，积的任何部分和都放得进 int32，累加因此一点不舍入；
// - s ≥ max|x| / 32767 使每个元素放得进 int16。
// 码字同样，每个码字自己的 s。误差界多出的两项与 bfloat16 的相同（`amx.h`），只是窄十倍：一个元素的舍入误差
// 平均是 s/√12，于是 ‖x − x̃‖ ≈ ‖x‖·√(H/12)/46300，256 维时是万分之一。换回 float32 的几步各舍入一次，γ 盖得住。
// 范数不到 2⁻¹⁰⁵ 的码字不计相对误差，算它全丢了：界里另添 2⁻¹⁰⁵‖x‖（kVanishing）。
// 裁决、候选过多的行怎么重做，也与 AMX 相同（NarrowBlock）。

#pragma once

#include "avx2.h"
#include "avx512.h"

namespace {

using Int16TileFn = unsigned (*)(const int32_t *panel, const float *bias, int64_t pairs, const int32_t *x,
                                 const float *threshold, float *scores, uint32_t *masks);
// 连续的一行 → 相隔 step 的一对对 int16，末尾跟着 s；返回 ‖x‖ 与 ‖x − x̃‖ 的上界。spare 要有 int16_spare 那么长。
using Int16PackFn = void (*)(const float *x, int64_t width, float *spare, int32_t *target, int64_t step, double *norm,
                             double *loss);

inline int64_t int16_pairs(int64_t width) { return (width + 1) / 2; }
inline int64_t int16_spare(int64_t width) { return 2 * (width + kLanes); }

// 先补零到 16 的倍数，再分 16 路、折半相加：编译器沿路向量化。float64 里平方不会溢出，也不会下溢。
SEMID_INLINE void pack_int16(const float *x, int64_t width, float *spare, int32_t *target, int64_t step, double *norm,
                             double *loss) {
    const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
    std::copy_n(x, width, spare);
    std::fill(spare + width, spare + padded, 0.0f);
    double square[kLanes] = {0.0}, lost[kLanes] = {0.0};
    float top[kLanes] = {0.0f}, *whole = spare + padded;
    for (int64_t d = 0; d < padded; d += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const double value = spare[d + j];
            square[j] += value * value;
        }
    for (int64_t d = 0; d < padded; d += kLanes)
        for (int j = 0; j < kLanes; ++j) top[j] = std::fabs(spare[d + j]) > top[j] ? std::fabs(spare[d + j]) : top[j];
    *norm = std::sqrt(fold_lanes(square, 1)) * (1 + 1e-6);
    const double room = 46300 - 0.5 * std::sqrt(static_cast<double>(width));
    const double most = *std::max_element(top, top + kLanes);
    const auto scale = static_cast<float>(std::max({*norm / room, most / 32767, 0x1p-125}) * (1 + 0x1p-20));
    const float inverse = 1.0f / scale;
    const int64_t pairs = int16_pairs(width);
    constexpr float kRound = 12582912.0f;  // 1.5·2²³：加上再减去，就近取偶
    for (int64_t d = 0; d < padded; ++d) {
        const float value = spare[d] * inverse;
        const float clipped = value > 32767.0f ? 32767.0f : value < -32767.0f ? -32767.0f : value;
        whole[d] = clipped + kRound - kRound;
    }
    for (int64_t d = 0; d < padded; d += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const double gap = static_cast<double>(spare[d + j]) - static_cast<double>(whole[d + j]) * scale;
            lost[j] += gap * gap;
        }
    for (int64_t pair = 0; pair < pairs; ++pair)
        target[pair * step] = (static_cast<int32_t>(whole[2 * pair]) & 0xffff) +
                              static_cast<int32_t>(whole[2 * pair + 1]) * 65536;
    *loss = std::sqrt(fold_lanes(lost, 1)) * (1 + 1e-6);
    std::memcpy(target + pairs * step, &scale, sizeof scale);
}

// 累加器用自己的向量类型：__m512i 带 may_alias，GCC 12 会把它的数组留在栈上。
typedef int32_t Wide16 __attribute__((vector_size(64)));
typedef int32_t Wide8 __attribute__((vector_size(32)));

struct Int16 {
    int rows;  // 满瓦片的行数
    const Int16TileFn *tiles;
    Int16PackFn pack;
};

// int16 的特征（trait）→ 它的表。
template <class Trait>
const Int16 &int16_of() {
    using Rows = std::make_integer_sequence<int, Trait::kRows>;
    static const Int16 int16 = {Trait::kRows, tiles_of<Int16TileFn, Trait>(Rows()), Trait::pack_row};
    return int16;
}

// 打包成定点数的若干行：每 R 行一片 [维的对][R]，末尾 R 个 s。
class Int16Rows {
public:
    static constexpr bool kNarrow = true, kAlways = false;  // 束搜索可以查内积表

    Int16Rows(const Int16 &isa, int64_t width, int64_t capacity)
        : isa_(isa), width_(width), pairs_(int16_pairs(width)), spare_(int16_spare(width)), wide_(width),
          data_(capacity * (pairs_ + 1)) {}

    // 第 i 行，一共 count 行；最后一片可以不满。
    void pack(const float *x, int64_t column_stride, int64_t i, int64_t count, double *norm, double *loss) {
        for (int64_t d = 0; column_stride != 1 && d < width_; ++d) wide_[d] = x[d * column_stride];
        const int64_t t = i / isa_.rows;
        int32_t *target = data_.data() + t * isa_.rows * (pairs_ + 1) + i % isa_.rows;
        isa_.pack(column_stride == 1 ? x : wide_.data(), width_, spare_.data(), target, rows_in(t, count), norm, loss);
    }

    // 第 t 片 × 第 p 个面板，见 TileFn。
    unsigned tile(const Book &book, int64_t p, int64_t t, int64_t count, const float *line, float *scores,
                  uint32_t *masks) const {
        return isa_.tiles[rows_in(t, count) - 1](panel(book, p), book.bias + p * kPanel, pairs_,
                                                 data_.data() + t * isa_.rows * (pairs_ + 1), line, scores, masks);
    }

    // count 行 × 整个码本，同 AmxRows::multiply。
    template <class Bars, class Collect>
    void multiply(const Book &book, int64_t count, const Bars &bars, const Collect &collect) const {
        alignas(64) float scores[kMaxRows * kPanel], line[kMaxRows];
        uint32_t masks[kMaxRows];
        for (int64_t p = 0; p < book.num_panels; ++p)
            for (int64_t t = 0; t * isa_.rows < count; ++t) {
                bars(p, t * isa_.rows, rows_in(t, count), line);
                for (unsigned hits = tile(book, p, t, count, line, scores, masks); hits; hits &= hits - 1) {
                    const int r = first_of(hits);
                    collect(p, t * isa_.rows + r, scores + r * kPanel, masks[r]);
                }
            }
    }

    int unit() const { return isa_.rows; }

private:
    int64_t rows_in(int64_t t, int64_t count) const { return std::min<int64_t>(isa_.rows, count - t * isa_.rows); }

    const int32_t *panel(const Book &book, int64_t p) const {
        return static_cast<const int32_t *>(book.tiles) + p * (pairs_ + 1) * kPanel;
    }

    const Int16 &isa_;
    const int64_t width_, pairs_;
    std::vector<float> spare_;
    std::vector<float> wide_;
    std::vector<int32_t> data_;
};

// 把 codes 的第 i 行写成第 rows[i] 个码字的定点数；losses[i] 是 ‖c − c̃‖ / ‖c‖ 的上界。
template <class Trait>
struct Int16Packing {
    static void pack(const float *codes, const int64_t *rows, int64_t count, int64_t width, void *target,
                     double *losses) {
        std::vector<float> spare(int16_spare(width));
        const int64_t panel = (int16_pairs(width) + 1) * kPanel;
        for (int64_t i = 0; i < count; ++i) {
            double norm, loss;
            int32_t *words = static_cast<int32_t *>(target) + rows[i] / kPanel * panel + rows[i] % kPanel;
            Trait::pack_row(codes + i * width, width, spare.data(), words, kPanel, &norm, &loss);
            losses[i] = norm < kVanishing ? 0.0 : loss / norm * (1 + 1e-5);
        }
    }
};

struct Avx512Int16 : Int16Packing<Avx512Int16> {
    static constexpr int kRows = 14;
    using Float32 = Avx512;
    using Rows = Int16Rows;
    using Session = NoSession;

    static bool supported() { return Avx512::supported() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl"); }
    static Rows rows(int64_t width, int64_t capacity) { return Int16Rows(int16_of<Avx512Int16>(), width, capacity); }

    __attribute__((target("avx512f,avx512bw,avx512vl")))
    static void pack_row(const float *x, int64_t width, float *spare, int32_t *target, int64_t step, double *norm,
                         double *loss) {
        pack_int16(x, width, spare, target, step, norm, loss);
    }

    // 布置同 Avx512：14 行 × 32 码字 = 28 个 zmm 累加器。
    template <int R>
    __attribute__((target("avx512f,avx512vnni")))
    static unsigned tile(const int32_t *panel, const float *bias, int64_t pairs, const int32_t *x,
                         const float *threshold, float *scores, uint32_t *masks) {
        Wide16 left[R], right[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) left[r] = right[r] = Wide16{};
        for (int64_t d = 0; d < pairs; ++d, panel += kPanel, x += R) {
            const __m512i code_left = _mm512_loadu_si512(panel), code_right = _mm512_loadu_si512(panel + 16);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const __m512i value = _mm512_set1_epi32(x[r]);
                left[r] = reinterpret_cast<Wide16>(
                    _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(left[r]), value, code_left));
                right[r] = reinterpret_cast<Wide16>(
                    _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(right[r]), value, code_right));
            }
        }
        const __m512 scale_left = _mm512_loadu_ps(panel), scale_right = _mm512_loadu_ps(panel + 16);
        const __m512 bias_left = _mm512_loadu_ps(bias), bias_right = _mm512_loadu_ps(bias + 16);
        unsigned hits = 0;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 scale = _mm512_castsi512_ps(_mm512_set1_epi32(x[r])), bar = _mm512_set1_ps(threshold[r]);
            const __m512 low = _mm512_mul_ps(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(left[r])), scale);
            const __m512 high = _mm512_mul_ps(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(right[r])), scale);
            const __m512 a = _mm512_fmadd_ps(low, scale_left, bias_left), b = _mm512_fmadd_ps(high, scale_right, bias_right);
            const uint32_t mask = _mm512_cmp_ps_mask(a, bar, _CMP_GE_OQ) |
                                  static_cast<uint32_t>(_mm512_cmp_ps_mask(b, bar, _CMP_GE_OQ)) << 16;
            if (__builtin_expect(mask != 0, 0)) {
                _mm512_storeu_ps(scores + r * kPanel, a);
                _mm512_storeu_ps(scores + r * kPanel + 16, b);
                masks[r] = mask;
                hits |= 1u << r;
            }
        }
        return hits;
    }
};

struct Avx2Int16 : Int16Packing<Avx2Int16> {
    static constexpr int kRows = 6;
    using Float32 = Avx2;
    using Rows = Int16Rows;
    using Session = NoSession;

    static bool supported() { return Avx2::supported(); }
    static Rows rows(int64_t width, int64_t capacity) { return Int16Rows(int16_of<Avx2Int16>(), width, capacity); }

    __attribute__((target("avx2")))
    static void pack_row(const float *x, int64_t width, float *spare, int32_t *target, int64_t step, double *norm,
                         double *loss) {
        pack_int16(x, width, spare, target, step, norm, loss);
    }

    // 布置同 Avx2：6 行 × 16 码字 = 12 个 ymm 累加器，一个面板分两半走。
    template <int R>
    __attribute__((target("avx2,fma"))) static unsigned tile(const int32_t *panel, const float *bias, int64_t pairs,
                                                                 const int32_t *x, const float *threshold, float *scores, uint32_t *masks) {
        unsigned hits = 0;
        for (int r = 0; r < R; ++r) masks[r] = 0;
        for (int first = 0; first < kPanel; first += 16) {
            Wide8 left[R], right[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) left[r] = right[r] = Wide8{};
            const int32_t *code = panel + first, *value = x;
            for (int64_t d = 0; d < pairs; ++d, code += kPanel, value += R) {
                const __m256i code_left = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(code));
                const __m256i code_right = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(code + 8));
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const __m256i v = _mm256_set1_epi32(value[r]);
                    left[r] += reinterpret_cast<Wide8>(_mm256_madd_epi16(v, code_left));
                    right[r] += reinterpret_cast<Wide8>(_mm256_madd_epi16(v, code_right));
                }
            }
            const __m256 scale_left = _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(code)));
            const __m256 scale_right = _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(code + 8)));
            const __m256 bias_left = _mm256_loadu_ps(bias + first), bias_right = _mm256_loadu_ps(bias + first + 8);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m256 scale = _mm256_castsi256_ps(_mm256_set1_epi32(value[r]));
                const __m256 bar = _mm256_broadcast_ss(threshold + r);
                const __m256 low = _mm256_mul_ps(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(left[r])), scale);
                const __m256 high = _mm256_mul_ps(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(right[r])), scale);
                const __m256 a = _mm256_fmadd_ps(low, scale_left, bias_left);
                const __m256 b = _mm256_fmadd_ps(high, scale_right, bias_right);
                const uint32_t mask = _mm256_movemask_ps(_mm256_cmp_ps(a, bar, _CMP_GE_OQ)) |
                                      _mm256_movemask_ps(_mm256_cmp_ps(b, bar, _CMP_GE_OQ)) << 8;
                _mm256_storeu_ps(scores + r * kPanel + first, a);
                _mm256_storeu_ps(scores + r * kPanel + first + 8, b);
                masks[r] |= mask << first;
                hits |= static_cast<unsigned>(mask != 0) << r;
            }
        }
        return hits;
    }
};

}  // namespace
