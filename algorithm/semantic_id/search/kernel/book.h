// 各文件共用的宏、常数与结构：交给内核的码本与束、一种指令集要填的表。
#pragma once

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
    double top_norm, limit, slope, curve, eta, tau;  // 误差界的系数，见 search/definition.py
    double loss;              // 有 tiles 时：‖c − c̃‖ / ‖c‖ 的最大值
};

struct BeamLevel {
    const Book *book;
    const float *weight;  // (K, D) 行优先
    const int16_t *table; // (P, first, 32) 与此前各层码字的内积，定点数；nullptr 则逐路径直接乘
    const uint8_t *twin;  // (P * 32) 重复的码字与填充
    int64_t first;        // 此前各层码字数之和，即本层码字在「槽位」里的起点
};

struct Beam {
    const BeamLevel *levels;
    const float *gain;  // (各层码字总数) 每个槽位的 ‖q‖：内积 = 定点数 × gain × 面板的 step
    int64_t num_levels, size, width;
    double limit, slope, curve, eta, tau, drift, grain;  // 误差界的系数，见 search/beam.py
};

namespace {

constexpr int kPanel = 32, kMaxRows = 32, kLanes = 16;
constexpr double kVanishing = 0x1p-105;   // int16 的码字范数不到它的一律当作零，见 int16.h
constexpr int64_t kBlockBytes = 1 << 18;  // 一块行的瓦片，占 L2 的一半左右

// ---- 一种 float32 的指令集要提供什么 ----

// 算 R 行 × 一个面板：返回够得着门槛的行的位图，并写出这些行的 32 个得分与命中位图。
using TileFn = unsigned (*)(const float *panel, const float *bias, int64_t width, const float *x,
                            const float *threshold, float *scores, uint32_t *masks);
using DistanceFn = double (*)(const float *x, const float *code, int64_t width);
using BruteFn = void (*)(const float *panel, int64_t width, const double *x, double *far);

// 束搜索：一行的全部路径 × 一个面板，得分减表，与门槛比较，够得着的写出。
struct Sift {
    const float *scores;    // (32) z·c − ‖c‖²/2
    const int16_t *table;   // 本面板的一片 (first, 32)
    const float *gain;      // 各槽位的 ‖q‖
    const int32_t *slots;   // (paths, stride) 每条路径的槽位，前 depth 个有效
    const float *half;      // (paths) 门槛里各路径自己的部分，约为 E/2
    int64_t stride;
    int depth, paths;
    float bar, step;        // 门槛里与路径无关的部分；面板的定点单位
    int *which;             // 输出：够得着的路径
    uint32_t *masks;        // 输出：它们的命中位图
    float *out;             // 输出：它们的 32 个得分
};

using SiftFn = int (*)(const Sift &);

struct Plain {
    int rows;             // 满瓦片的行数
    const TileFn *tiles;  // 下标是行数 − 1
    BruteFn brute;
    DistanceFn distance;
    SiftFn sift;
};

template <class Fn, class Trait, int... R>
const Fn *tiles_of(std::integer_sequence<int, R...>) {
    static const Fn tiles[] = {Trait::template tile<R + 1>...};
    return tiles;
}

// float32 的特征（trait）→ 它的表。
template <class Trait>
const Plain &plain_of() {
    using Rows = std::make_integer_sequence<int, Trait::kRows>;
    static const Plain plain = {Trait::kRows, tiles_of<TileFn, Trait>(Rows()), Trait::brute, Trait::distance, Trait::sift};
    return plain;
}

// 低精度的特征另有 Rows（打包与相乘）；float32 的没有。
struct NoRows {
    static constexpr bool kNarrow = false, kAlways = false;
};
struct NoSession {
    NoSession() {}
};

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

}  // namespace
