// 最近码字搜索的编译路径：与 search/prepared.py 同一定义、同一误差界，逐位相同的结果，只是更快。
//
// 做法：码本按 32 个码字一组打包成 [d][32] 的面板（驻留 L1），若干行打包成 [d][R] 的瓦片（一块行驻留 L2）；
// R×32 个得分整个留在寄存器里累加，乘完当场与该行的门槛比较，只有少数够得着的得分才离开寄存器进入候选表。
// 得分 h = −‖c‖²/2 + x·c 只负责提名，裁决按 search/prepared.py 开头的 float64 定义：16 路、折半相加、不许 FMA。
// 因此必须以 -ffp-contract=off 编译；提名用的 FMA 都是显式的 intrinsics，不受它影响。
//
// 得分只负责提名，所以可以更粗而更快：int16 定点数（`int16.cpp`，AVX2 与 AVX-512 VNNI，约两倍），或 bfloat16 的
// 瓦片乘法（`amx.cpp`，十几倍）。误差界随之放宽，候选多一些，裁决的定义不变，所以编号逐位相同。
//
// 指令集在运行时挑选，同一个二进制到处能用。没有 OpenMP：线程由 Python 一侧开，每个线程各算各的行块。
// 假定输入有限（由 Python 的门口负责）；违反时答案无意义，但不会越界。

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#if defined(__FAST_MATH__) || FLT_EVAL_METHOD != 0
#error "needs strict IEEE arithmetic; without this extension the NumPy path is used"
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#define SEMID_X86 1
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 对自己的 intrinsics 头文件误报
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define SEMID_AMX 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#ifdef _WIN32
#define SEMID_API extern "C" __declspec(dllexport)
#else
#define SEMID_API extern "C" __attribute__((visibility("default")))
#endif
#ifdef __GNUC__
#define SEMID_INLINE inline __attribute__((always_inline))
#else
#define SEMID_INLINE inline
#endif

// 与 Python 一侧的 ctypes.Structure 逐字段对应。
struct Book {
    const float *table;       // 面板 (P, D, 32)；有 tiles 时是按行存放的 (P * 32, D)
    const void *tiles;        // AMX：(P, C, 2, 16, 32) 的 bfloat16，C 段宽度各 32；int16：(P, ⌈D/2⌉ + 1, 32) 的 int32，每个是
                              // 相邻两维，末行是各码字的 s（float32）；其余路径是 nullptr
    const float *bias;        // (P * 32) −‖c‖²/2；填充与重复的码字是 −inf
    const float *norm;        // (P * 32) ‖c‖ 的上界
    const float *panel_norm;  // (P) 面板内 ‖c‖ 的最大值
    int64_t size, width, num_panels;
    double top_norm, limit, slope, curve, eta, tau;  // 误差界的系数，见 search/prepared.py
    double loss;              // 有 tiles 时：‖c − c̃‖ / ‖c‖ 的最大值
};

namespace {

constexpr int kPanel = 32, kMaxRows = 32, kLanes = 16;
constexpr double kVanishing = 0x1p-105;   // int16 的码字范数不到它的一律当作零，见 int16.cpp
constexpr int64_t kBlockBytes = 1 << 18;  // 一块行的瓦片，占 L2 的一半左右

struct Candidate {
    double high;  // 得分 + 误差界
    int64_t code;
};

struct Row {
    double low, rest, pull;    // 已知的最好下界；误差界里与码字无关的部分；‖c‖ 的系数
    double lost, compact_low;  // 因候选表满而丢掉的最大 high；上次整理候选表时的 low
    int count;
    bool brute;                // 范数太大，得分会溢出：按定义逐一比较
};

// 一块行里每 R 行一片瓦片；门槛计算要按行向量化，所以这两个数组单独放。
struct Tile {
    alignas(64) float base[kMaxRows];  // low − rest，向下舍入
    alignas(64) float pull[kMaxRows];
};

// 算 R 行 × 一个面板：返回够得着门槛的行的位图，并写出这些行的 32 个得分与命中位图。
using TileFn = unsigned (*)(const float *panel, const float *bias, int64_t width, const float *x,
                            const float *threshold, float *scores, uint32_t *masks);
using DistanceFn = double (*)(const float *x, const float *code, int64_t width);
using BruteFn = void (*)(const float *panel, int64_t width, const double *x, double *far);

// ---- 定义：float64、16 路、折半相加 ----

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

double distance_generic(const float *x, const float *code, int64_t width) { return row_distance(x, code, width); }

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

// ---- 提名：各指令集的瓦片乘积 ----

template <int R>
unsigned tile_generic(const float *panel, const float *bias, int64_t width, const float *x, const float *threshold,
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

void brute_generic(const float *panel, int64_t width, const double *x, double *far) {
    brute_panel(panel, width, x, far);
}

#ifdef SEMID_X86
// 14 行 × 32 码字 = 28 个 zmm 累加器，余下 4 个放两段码字与广播。
template <int R>
__attribute__((target("avx512f"))) unsigned tile_avx512(const float *panel, const float *bias, int64_t width,
                                                        const float *x, const float *threshold, float *scores,
                                                        uint32_t *masks) {
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

// 6 行 × 16 码字 = 12 个 ymm 累加器；一个面板分两半走。
template <int R>
__attribute__((target("avx2,fma"))) unsigned tile_avx2(const float *panel, const float *bias, int64_t width,
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

__attribute__((target("avx512f"))) double distance_avx512(const float *x, const float *code, int64_t width) {
    return row_distance(x, code, width);
}

__attribute__((target("avx2"))) double distance_avx2(const float *x, const float *code, int64_t width) {
    return row_distance(x, code, width);
}

__attribute__((target("avx512f"))) void brute_avx512(const float *panel, int64_t width, const double *x, double *far) {
    brute_panel(panel, width, x, far);
}

__attribute__((target("avx2"))) void brute_avx2(const float *panel, int64_t width, const double *x, double *far) {
    brute_panel(panel, width, x, far);
}
#endif

#ifdef SEMID_X86
const DistanceFn kDistances[] = {distance_generic, distance_avx2, distance_avx512};
#else
const DistanceFn kDistances[] = {distance_generic};
#endif

struct Isa {
    int rows;             // 满瓦片的行数
    const TileFn *tiles;  // 下标是行数 − 1
    BruteFn brute;
};

const TileFn kGeneric[] = {tile_generic<1>, tile_generic<2>, tile_generic<3>, tile_generic<4>};
#ifdef SEMID_X86
const TileFn kAvx2[] = {tile_avx2<1>, tile_avx2<2>, tile_avx2<3>, tile_avx2<4>, tile_avx2<5>, tile_avx2<6>};
const TileFn kAvx512[] = {tile_avx512<1>,  tile_avx512<2>,  tile_avx512<3>,  tile_avx512<4>, tile_avx512<5>,
                          tile_avx512<6>,  tile_avx512<7>,  tile_avx512<8>,  tile_avx512<9>, tile_avx512<10>,
                          tile_avx512<11>, tile_avx512<12>, tile_avx512<13>, tile_avx512<14>};
const Isa kIsas[] = {{4, kGeneric, brute_generic}, {6, kAvx2, brute_avx2}, {14, kAvx512, brute_avx512}};
constexpr int kAvx512Isa = 2, kAmxIsa = 3, kInt16Isa = 4;  // 后两个另走一条路：AMX；int16 的 AVX2，再加一是 AVX-512
#else
const Isa kIsas[] = {{4, kGeneric, brute_generic}};
#endif

// ---- 候选表 ----

// 最低的一位是第几位；mask 不为零。
SEMID_INLINE int first_of(uint32_t mask) {
#ifdef __GNUC__
    return __builtin_ctz(mask);
#else
    int m = 0;
    while (!(mask >> m & 1)) ++m;
    return m;
#endif
}

// 低精度的乘积给误差界里 ‖c‖ 的系数另添多少：|x·c − x̃·c̃| ÷ ‖c‖，norm、loss 是 ‖x‖ 与 ‖x − x̃‖ 的上界。
SEMID_INLINE double narrow_slope(const Book &book, double norm, double loss) {
    return 1.001 * (loss + book.loss * (norm + loss));
}

// 一块行的门槛与候选：各种乘积只管给出够得着门槛的得分，够不够得着、留下谁，都在这里。
class Shortlist {
protected:
    Shortlist(const Book &book, int unit, int most, int64_t capacity)
        : book_(book), unit_(unit), most_(most), rows_(capacity), tiles_((capacity + unit - 1) / unit),
          list_(new Candidate[capacity * most]) {}

    int64_t rows_in(int64_t t, int64_t count) const { return std::min<int64_t>(unit_, count - t * unit_); }
    Candidate *list(int64_t i) const { return list_.get() + i * most_; }

    // 第 i 行开始：norm 是 ‖x‖ 的上界，loss 是提名的乘积在 x 一侧另外丢掉的精度 ‖x − x̃‖ 的上界。
    void open(int64_t i, double norm, double loss) {
        Row &row = rows_[i];
        row.rest = book_.eta * norm * norm + book_.tau * (1 + norm + book_.top_norm) + kVanishing * norm;
        row.pull = book_.slope * norm + narrow_slope(book_, norm, loss);
        row.low = row.lost = row.compact_low = -std::numeric_limits<double>::infinity();
        row.count = 0;
        row.brute = !(norm <= book_.limit && book_.top_norm <= book_.limit);
        Tile &tile = tiles_[i / unit_];
        tile.base[i % unit_] = row.brute ? FLT_MAX : -FLT_MAX;
        tile.pull[i % unit_] = std::nextafter(static_cast<float>(row.pull), FLT_MAX);
    }

    // 某个面板对各行的门槛；只许偏低，多减 2⁻²¹ 倍以盖住这几步的舍入。
    float bar(int64_t p, const Tile &tile, int r) const {
        const float top = book_.panel_norm[p];
        const float value = tile.base[r] - (static_cast<float>(book_.curve) * top + tile.pull[r]) * top;
        return std::max(value - std::fabs(value) * 0x1p-21f, -FLT_MAX);
    }

    double bound(const Row &row, int64_t code) const {
        const double norm = book_.norm[code];
        return (book_.curve * norm + row.pull) * norm + row.rest;
    }

    // 命中的得分按各自码字的界细看：先用最高分抬高门槛（开头几个面板几乎全部命中），再收下够得着的。
    void collect(int64_t p, int64_t i, const float *scores, uint32_t mask) {
        Row &row = rows_[i];
        if (row.brute) return;
        Tile &tile = tiles_[i / unit_];
        const int r = static_cast<int>(i % unit_);
        int top = first_of(mask);
        for (uint32_t rest = mask; rest; rest &= rest - 1)
            if (const int m = first_of(rest); scores[m] > scores[top]) top = m;
        raise(tile, r, row, scores[top] - bound(row, p * kPanel + top));
        const float least = bar(p, tile, r);
        for (; mask; mask &= mask - 1) {
            const int m = first_of(mask);
            if (!(scores[m] >= least)) continue;
            const double margin = bound(row, p * kPanel + m), high = scores[m] + margin;
            raise(tile, r, row, scores[m] - margin);
            if (high < row.low) continue;
            if (row.count == most_ && row.low > row.compact_low) compact(i);
            if (row.count == most_)
                row.lost = std::max(row.lost, high);
            else
                list(i)[row.count++] = {high, p * kPanel + m};
        }
    }

    static void raise(Tile &tile, int r, Row &row, double low) {
        if (!(low > row.low)) return;
        row.low = low;
        tile.base[r] = std::nextafter(static_cast<float>(low - row.rest), -FLT_MAX);
    }

    void compact(int64_t i) {
        Row &row = rows_[i];
        int kept = 0;
        for (int m = 0; m < row.count; ++m)
            if (list(i)[m].high >= row.low) list(i)[kept++] = list(i)[m];
        row.count = kept;
        row.compact_low = row.low;
    }

    // 这一行的候选是否齐全；丢过够得着的候选（或没有候选）就不齐。
    bool complete(int64_t i) {
        Row &row = rows_[i];
        compact(i);
        return !row.brute && row.lost < row.low && row.count > 0;
    }

    const Book &book_;
    const int unit_, most_;  // 一片瓦片几行；一行至多记几个候选
    std::vector<Row> rows_;
    std::vector<Tile> tiles_;

private:
    std::unique_ptr<Candidate[]> list_;
};

// ---- 一块行，float32 乘积 ----

// 码本的面板 [d][32]。低精度提名的码本按行存放，用到哪个面板才拼哪个。
class Panels {
public:
    explicit Panels(const Book &book) : book_(book), spare_(book.tiles ? book.width * kPanel : 0) {}

    const float *operator()(int64_t p) {
        if (!book_.tiles) return book_.table + p * book_.width * kPanel;
        for (int64_t m = 0; p != held_ && m < kPanel; ++m)
            for (int64_t d = 0; d < book_.width; ++d)
                spare_[d * kPanel + m] = book_.table[(p * kPanel + m) * book_.width + d];
        held_ = p;
        return spare_.data();
    }

private:
    const Book &book_;
    std::vector<float> spare_;
    int64_t held_ = -1;
};

class Block : private Shortlist {
public:
    Block(const Book &book, const Isa &isa, int64_t capacity)
        : Shortlist(book, isa.rows, kList, capacity), isa_(isa), packed_(capacity * book.width), wide_(book.width),
          panel_(book) {}

    void run(const float *x, int64_t row_stride, int64_t column_stride, int64_t count, int64_t *out) {
        for (int64_t i = 0; i < count; ++i) pack(x + i * row_stride, column_stride, i, count);
        for (int64_t p = 0; p < book_.num_panels; ++p)
            for (int64_t t = 0; t * unit_ < count; ++t) nominate(p, t, count);
        bool any = false;
        for (int64_t i = 0; i < count; ++i) any |= !settle(i, count, out);
        if (any) brute_force(count, out);
    }

private:
    static constexpr int kList = 32;

    void pack(const float *source, int64_t column_stride, int64_t i, int64_t count) {
        const int64_t t = i / unit_, rows = rows_in(t, count);
        float *target = packed_.data() + t * unit_ * book_.width + i % unit_;
        for (int64_t d = 0; d < book_.width; ++d) target[d * rows] = source[d * column_stride];
        open(i, upper_norm(target, rows), 0.0);
    }

    // ‖x‖ 的上界；分 8 路累加，免得每一步都等上一步的加法延迟。
    double upper_norm(const float *x, int64_t step) const {
        double part[8] = {0.0};
        int64_t d = 0;
        for (; d + 8 <= book_.width; d += 8)
            for (int j = 0; j < 8; ++j) part[j] += static_cast<double>(x[(d + j) * step]) * x[(d + j) * step];
        for (; d < book_.width; ++d) part[0] += static_cast<double>(x[d * step]) * x[d * step];
        for (int j = 1; j < 8; ++j) part[0] += part[j];
        return std::sqrt(part[0]) * (1 + 1e-6);
    }

    void nominate(int64_t p, int64_t t, int64_t count) {
        alignas(64) float threshold[kMaxRows], scores[kMaxRows * kPanel];
        uint32_t masks[kMaxRows];
        const int64_t rows = rows_in(t, count);
        for (int r = 0; r < unit_; ++r) threshold[r] = bar(p, tiles_[t], r);
        unsigned hits = isa_.tiles[rows - 1](panel_(p), book_.bias + p * kPanel, book_.width,
                                             packed_.data() + t * unit_ * book_.width, threshold, scores, masks);
        for (; hits; hits &= hits - 1) {
            const int r = first_of(hits);
            collect(p, t * unit_ + r, scores + r * kPanel, masks[r]);
        }
    }

    const double *wide_row(int64_t i, int64_t count) {
        const int64_t t = i / unit_, rows = rows_in(t, count);
        const float *source = packed_.data() + t * unit_ * book_.width + i % unit_;
        for (int64_t d = 0; d < book_.width; ++d) wide_[d] = source[d * rows];
        return wide_.data();
    }

    double distance(const double *x, int64_t code) const {
        if (book_.tiles) return exact_distance(book_.table + code * book_.width, 1, book_.width, x);
        const float *panel = book_.table + code / kPanel * kPanel * book_.width;
        return exact_distance(panel + code % kPanel, kPanel, book_.width, x);
    }

    // 唯一候选即答案，多个候选按定义裁决；候选不齐则返回 false，留给逐一比较。
    bool settle(int64_t i, int64_t count, int64_t *out) {
        Row &row = rows_[i];
        row.brute = !complete(i);
        if (row.brute) return false;
        out[i] = list(i)[0].code;
        if (row.count == 1) return true;
        const double *x = wide_row(i, count);
        double least = std::numeric_limits<double>::infinity();
        for (int m = 0; m < row.count; ++m) {  // 候选按编号递增进表，严格小于即取最低编号
            const double far = distance(x, list(i)[m].code);
            if (far < least) least = far, out[i] = list(i)[m].code;
        }
        return true;
    }

    // 候选挤爆的行与全部码字按定义比较；面板在外层，几百行一起时码本只读一遍。
    void brute_force(int64_t count, int64_t *out) {
        std::vector<int64_t> rows;
        for (int64_t i = 0; i < count; ++i)
            if (rows_[i].brute) rows.push_back(i), out[i] = 0, rows_[i].low = std::numeric_limits<double>::infinity();
        double far[kPanel];
        for (int64_t p = 0; p < book_.num_panels; ++p)
            for (const int64_t i : rows) {
                isa_.brute(panel_(p), book_.width, wide_row(i, count), far);
                const int64_t members = std::min<int64_t>(kPanel, book_.size - p * kPanel);
                for (int64_t m = 0; m < members; ++m)
                    if (far[m] < rows_[i].low) rows_[i].low = far[m], out[i] = p * kPanel + m;
            }
    }

    const Isa &isa_;
    std::vector<float> packed_;
    std::vector<double> wide_;
    Panels panel_;
};

// ---- 一块行，低精度的乘积：Rows 负责打包与相乘 ----

template <class Rows>
class NarrowBlock : private Shortlist {
public:
    NarrowBlock(const Book &book, int plain, int64_t capacity, Rows rows)
        : Shortlist(book, rows.unit(), kList, capacity), plain_(plain), packed_(std::move(rows)), wide_(book.width) {}

    void run(const float *x, int64_t row_stride, int64_t column_stride, int64_t count, int64_t *out) {
        for (int64_t i = 0; i < count; ++i) {
            double norm, loss;
            packed_.pack(x + i * row_stride, column_stride, i, count, &norm, &loss);
            open(i, norm, loss);
        }
        const auto bars = [&](int64_t p, int64_t first, int64_t, float *line) {
            for (int r = 0; r < unit_; ++r) line[r] = bar(p, tiles_[first / unit_], r);
        };
        packed_.multiply(book_, count, bars, [&](int64_t p, int64_t i, const float *scores, uint32_t mask) {
            collect(p, i, scores, mask);
        });
        std::vector<int64_t> crowded;
        for (int64_t i = 0; i < count; ++i)
            if (complete(i))
                out[i] = settle(i, x + i * row_stride, column_stride);
            else
                crowded.push_back(i);
        if (!crowded.empty()) again(crowded, x, row_stride, column_stride, out);
    }

private:
    static constexpr int kList = 128;  // 界宽得多，候选多些；逐个裁决 128 个仍比 float32 的乘积便宜

    int64_t settle(int64_t i, const float *x, int64_t column_stride) {
        const Candidate *candidates = list(i);
        if (rows_[i].count == 1) return candidates[0].code;
        for (int64_t d = 0; column_stride != 1 && d < book_.width; ++d) wide_[d] = x[d * column_stride];
        const float *row = column_stride == 1 ? x : wide_.data();
        int64_t best = candidates[0].code;
        double least = std::numeric_limits<double>::infinity();
        for (int m = 0; m < rows_[i].count; ++m) {  // 编号递增，严格小于即取最低编号
            const double far = kDistances[plain_](row, book_.table + candidates[m].code * book_.width, book_.width);
            if (far < least) least = far, best = candidates[m].code;
        }
        return best;
    }

    // 候选不齐的行：float32 的界窄得多，用它重做。
    void again(const std::vector<int64_t> &crowded, const float *x, int64_t row_stride, int64_t column_stride,
               int64_t *out) {
        const auto count = static_cast<int64_t>(crowded.size());
        std::vector<float> rows(count * book_.width);
        std::vector<int64_t> codes(count);
        for (int64_t n = 0; n < count; ++n)
            for (int64_t d = 0; d < book_.width; ++d)
                rows[n * book_.width + d] = x[crowded[n] * row_stride + d * column_stride];
        Book plain = book_;
        plain.loss = 0.0;  // float32 的乘积不丢这一份
        Block(plain, kIsas[plain_], count).run(rows.data(), book_.width, 1, count, codes.data());
        for (int64_t n = 0; n < count; ++n) out[crowded[n]] = codes[n];
    }

    const int plain_;
    Rows packed_;
    std::vector<float> wide_;
};

}  // namespace

#ifdef SEMID_X86
#include "int16.cpp"
#endif
#ifdef SEMID_AMX
#include "amx.cpp"
#endif
#include "beam.cpp"

SEMID_API int semid_version() { return 5; }

// 本机可用的指令集，一位一种：0 通用、1 AVX2、2 AVX-512、3 AMX、4 AVX2 的 int16、5 AVX-512 VNNI 的 int16。
SEMID_API int semid_isas() {
    int found = 1;
#ifdef SEMID_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1 << 1 | 1 << kInt16Isa;
    if (__builtin_cpu_supports("avx512f")) found |= 1 << kAvx512Isa;
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        found |= 1 << (kInt16Isa + 1);
#ifdef SEMID_AMX
    if (amx_allowed()) found |= 1 << kAmxIsa;
#endif
#endif
    return found;
}

// 把 codes 的第 i 行写进面板的第 rows[i] 个码字。
SEMID_API void semid_pack(const float *codes, const int64_t *rows, int64_t count, int64_t width, float *panels) {
    for (int64_t i = 0; i < count; ++i) {
        float *target = panels + rows[i] / kPanel * kPanel * width + rows[i] % kPanel;
        for (int64_t d = 0; d < width; ++d) target[d * kPanel] = codes[i * width + d];
    }
}

namespace {

// 一块几行：打包好的行占 L2 的一小半，又是瓦片行数的倍数。
int64_t capacity_of(int64_t count, int64_t unit, int64_t row_bytes) {
    const int64_t fit = std::min<int64_t>(kBlockBytes / row_bytes, 1024);
    return std::min(count, std::max<int64_t>(1, fit / unit) * unit);
}

template <class B>
void in_blocks(B &block, int64_t capacity, const float *x, int64_t row_stride, int64_t column_stride, int64_t count,
               int64_t *out) {
    for (int64_t start = 0; start < count; start += capacity)
        block.run(x + start * row_stride, row_stride, column_stride, std::min(capacity, count - start), out + start);
}

}  // namespace

#ifdef SEMID_AMX
// 把 codes 的第 i 行写成第 rows[i] 个码字的 bfloat16 瓦片。
SEMID_API void semid_pack_amx(const float *codes, const int64_t *rows, int64_t count, int64_t width, uint16_t *tiles) {
    const int64_t panel = amx_chunks(width) * 2 * kAmxTile;
    for (int64_t i = 0; i < count; ++i)
        amx_pack_code(codes + i * width, width, static_cast<int>(rows[i] % kPanel), tiles + rows[i] / kPanel * panel);
}
#endif

#ifdef SEMID_X86
// 把 codes 的第 i 行写成第 rows[i] 个码字的定点数；losses[i] 是 ‖c − c̃‖ / ‖c‖ 的上界。
SEMID_API int semid_pack_int16(const float *codes, const int64_t *rows, int64_t count, int64_t width, int isa,
                               int32_t *panels, double *losses) {
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80);  // 同 semid_nearest
    int status = 0;
    try {
        std::vector<float> spare(int16_spare(width));
        const int64_t panel = (int16_pairs(width) + 1) * kPanel;
        for (int64_t i = 0; i < count; ++i) {
            double norm, loss;
            int32_t *target = panels + rows[i] / kPanel * panel + rows[i] % kPanel;
            kInt16Isas[isa - kInt16Isa].pack(codes + i * width, width, spare.data(), target, kPanel, &norm, &loss);
            losses[i] = norm < kVanishing ? 0.0 : loss / norm * (1 + 1e-5);
        }
    } catch (const std::bad_alloc &) {
        status = 1;
    }
    _mm_setcsr(saved);
    return status;
}
#endif

// count 行的最近码字；步长以元素计。返回 0 成功，1 内存不足。
SEMID_API int semid_nearest(const Book *book, int isa, const float *x, int64_t row_stride, int64_t column_stride,
                            int64_t count, int64_t *out) {
#ifdef SEMID_X86
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80);  // 默认舍入、保留次正规数：调用方若改过浮点模式，不许影响 ID
#endif
    int status = 0;
    try {
#ifdef SEMID_AMX
        if (isa == kAmxIsa) {
            const int64_t capacity = capacity_of(count, kAmxRows, 2 * book->width);
            const AmxSession session;
            NarrowBlock<AmxRows> block(*book, kAvx512Isa, capacity, AmxRows(book->width, capacity));
            in_blocks(block, capacity, x, row_stride, column_stride, count, out);
        } else
#endif
#ifdef SEMID_X86
        if (isa >= kInt16Isa) {
            const Int16Isa &int16 = kInt16Isas[isa - kInt16Isa];
            const int64_t capacity = capacity_of(count, int16.rows, 2 * book->width);
            NarrowBlock<Int16Rows> block(*book, int16.plain, capacity, Int16Rows(int16, book->width, capacity));
            in_blocks(block, capacity, x, row_stride, column_stride, count, out);
        } else
#endif
        {
            const int64_t capacity = capacity_of(count, kIsas[isa].rows, 4 * book->width);
            Block block(*book, kIsas[isa], capacity);
            in_blocks(block, capacity, x, row_stride, column_stride, count, out);
        }
    } catch (const std::bad_alloc &) {
        status = 1;
    }
#ifdef SEMID_X86
    _mm_setcsr(saved);
#endif
    return status;
}

static PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

// 空模块：只为让 setuptools 按扩展模块构建与安装；函数经 ctypes 调用，调用期间不持有 GIL。
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&kModule); }
