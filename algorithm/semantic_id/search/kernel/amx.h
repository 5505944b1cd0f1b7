// AMX 的提名：行与码字先舍入成 bfloat16 再用瓦片乘法相乘，float32 累加；AMX 的特征。
//
// 一条 TDPBF16PS 做 16 × 16 × 32 次乘加，是 AVX-512 的十几倍，代价是 bfloat16 只有 8 位尾数。误差界因此多两项：
//     |x·c − x̃·c̃| ≤ ‖x − x̃‖‖c‖ + (‖x‖ + ‖x − x̃‖)‖c − c̃‖
// 两个舍入误差都按实际的算（最坏情形的四成左右），码本一侧取各码字 ‖c − c̃‖/‖c‖ 的最大值。两个 bfloat16 的积在 float32
// 里是准确的，累加仍是每步舍入一次，所以 search/definition.py 的 γ 照旧；AMX 把次正规数当作零，由 τ 覆盖。
// 候选仍按 float64 的定义裁决，码字因此另按行存放一份；候选过多的行改用 float32 的瓦片重做，再不行才逐一比较（NarrowBlock）。

#pragma once

#include "avx512.h"

namespace {

constexpr int kAmxRows = 32, kAmxWide = 32, kAmxTile = 512;  // 一片两个瓦片共几行；一段多宽；一个瓦片几个 bfloat16

#define SEMID_AMX_TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl")))

// 处理器有 AMX，并且内核准许本进程使用（Linux 5.16 起要先申请，准许之后对所有线程有效）。
bool amx_allowed() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM、XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// 八个瓦片都是 16 行 × 64 字节；瓦片寄存器用完要归还，否则线程切换时一直要保存它们。
class AmxSession {
public:
    SEMID_AMX_TARGET AmxSession() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {0};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        asm volatile("" : : "m"(config));  // GCC 的 _tile_loadconfig 只声明读了开头 8 字节，别的字段会被优化掉
        _tile_loadconfig(&config);
    }
    SEMID_AMX_TARGET ~AmxSession() { _tile_release(); }
    AmxSession(const AmxSession &) = delete;
    AmxSession &operator=(const AmxSession &) = delete;
};

inline int64_t amx_chunks(int64_t width) { return (width + kAmxWide - 1) / kAmxWide; }

// 16 个 float32 → bfloat16，就近取偶；返回舍入误差。输入有限，进位至多到 inf，不会变成 NaN。
SEMID_AMX_TARGET inline __m512 round_to_bf16(__m512 value, __m256i *out) {
    const __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    *out = _mm512_cvtepi32_epi16(high);
    return _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
}

// 一行写进瓦片：target 是该行在第一段里的位置，各段相隔 kAmxTile。顺便给出 ‖x‖ 与 ‖x − x̃‖ 的上界。
SEMID_AMX_TARGET void amx_pack_row(const float *x, int64_t width, uint16_t *target, double *norm, double *loss) {
    __m512 square = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += 16) {
        const auto mask = static_cast<__mmask16>(width - d >= 16 ? 0xffff : (1 << (width - d)) - 1);
        const __m512 value = _mm512_maskz_loadu_ps(mask, x + d);
        __m256i half;
        const __m512 gap = round_to_bf16(value, &half);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(target + d / kAmxWide * kAmxTile + d % kAmxWide), half);
        square = _mm512_fmadd_ps(value, value, square), lost = _mm512_fmadd_ps(gap, gap, lost);
    }
    // float32 求和的误差 (H + 16)u 与平方的下溢 √H·2⁻⁶² 都加上，同 search/tiles.py
    const double slack = 1 + (width + 16) * 0x1p-24, least = std::sqrt(static_cast<double>(width)) * 0x1p-62;
    *norm = (std::sqrt(static_cast<double>(_mm512_reduce_add_ps(square))) + least) * slack;
    *loss = (std::sqrt(static_cast<double>(_mm512_reduce_add_ps(lost))) + least) * slack;
}

// 一个码字写进面板：B 瓦片要求相邻两维并排，[段][半边][维的对][16 个码字][2]；返回 ‖c − c̃‖ / ‖c‖。
double amx_pack_code(const float *code, int64_t width, int member, uint16_t *panel) {
    double square = 0.0, lost = 0.0;
    for (int64_t d = 0; d < width; ++d) {
        uint32_t bits;
        std::memcpy(&bits, code + d, sizeof bits);
        const int64_t tile = d / kAmxWide * 2 + member / 16, pair = d % kAmxWide / 2;
        const uint32_t half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, wide = half << 16;
        panel[tile * kAmxTile + pair * 32 + member % 16 * 2 + d % 2] = static_cast<uint16_t>(half);
        float rounded;
        std::memcpy(&rounded, &wide, sizeof rounded);
        const double value = code[d], gap = value - rounded;
        square += value * value, lost += gap * gap;
    }
    constexpr double kHalf = 0x1p-8;  // 舍入的相对误差；全是次正规数的码字也记这么多，其余由 τ 覆盖
    const double loss = std::sqrt(lost / square);
    return loss <= kHalf ? loss : kHalf;  // NaN 也是
}

// 16·HALVES 行 × 一个面板的得分；rows 是 HALVES 组瓦片，每组各段相连。
template <int HALVES>
SEMID_AMX_TARGET void amx_tile(const uint16_t *panel, const float *bias, int64_t chunks, const uint16_t *rows,
                               float *scores) {
    asm volatile("" : : : "memory");  // GCC 的 _tile_loadd 没有声明自己读内存，之前的写不许挪到后面
    _tile_loadd(0, bias, 0);          // 步长为 0：每一行都从同样的偏置开始
    _tile_loadd(1, bias + 16, 0);
    if (HALVES == 2) {
        _tile_loadd(2, bias, 0);
        _tile_loadd(3, bias + 16, 0);
    }
    const uint16_t *lower = rows + chunks * kAmxTile;
    for (int64_t c = 0; c < chunks; ++c, panel += 2 * kAmxTile) {
        _tile_loadd(4, rows + c * kAmxTile, 64);
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + kAmxTile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (HALVES == 2) {
            _tile_loadd(5, lower + c * kAmxTile, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, scores, 4 * kPanel);
    _tile_stored(1, scores + 16, 4 * kPanel);
    if (HALVES == 2) {
        _tile_stored(2, scores + 16 * kPanel, 4 * kPanel);
        _tile_stored(3, scores + 16 * kPanel + 16, 4 * kPanel);
    }
}

// 32 行的得分与各自的门槛比较：返回够得着的行的位图，并写出命中位图。
SEMID_AMX_TARGET unsigned amx_sift(const float *scores, const float *threshold, uint32_t *masks) {
    unsigned hits = 0;
#pragma GCC unroll 4
    for (int r = 0; r < kAmxRows; ++r, scores += kPanel) {
        const __m512 line = _mm512_set1_ps(threshold[r]), left = _mm512_load_ps(scores);
        const uint32_t low = _mm512_cmp_ps_mask(left, line, _CMP_GE_OQ);
        const uint32_t high = _mm512_cmp_ps_mask(_mm512_load_ps(scores + 16), line, _CMP_GE_OQ);
        masks[r] = low | high << 16;
        hits |= static_cast<unsigned>(masks[r] != 0) << r;
    }
    return hits;
}

// 打包成瓦片的若干行。
class AmxRows {
public:
    static constexpr bool kNarrow = true, kAlways = true;  // 乘积比查内积表便宜

    AmxRows(int64_t width, int64_t capacity)
        : chunks_(amx_chunks(width)), width_(width), spare_(width),
          data_((capacity + kAmxRows - 1) / kAmxRows * kAmxRows * chunks_ * kAmxWide + kAmxWide) {
        const auto address = reinterpret_cast<uintptr_t>(data_.data());
        start_ = data_.data() + (64 - address % 64) % 64 / sizeof(uint16_t);
    }

    void pack(const float *x, int64_t column_stride, int64_t i, int64_t, double *norm, double *loss) {
        for (int64_t d = 0; column_stride != 1 && d < width_; ++d) spare_[d] = x[d * column_stride];
        uint16_t *target = start_ + i / 16 * chunks_ * kAmxTile + i % 16 * kAmxWide;
        amx_pack_row(column_stride == 1 ? x : spare_.data(), width_, target, norm, loss);
    }

    // count 行 × 整个码本：每片 32 行的得分先由 bars(p, first, rows, 门槛) 定门槛，够得着的交给 collect(p, 行, 得分, 命中位图)。
    // 比较一片的得分时，下一片的乘积已经在算：瓦片乘法在后台走，比较几乎不占时间。
    template <class Bars, class Collect>
    void multiply(const Book &book, int64_t count, const Bars &bars, const Collect &collect) const {
        alignas(64) float scores[2][kAmxRows * kPanel], line[kAmxRows] = {0.0f};
        uint32_t masks[kAmxRows];
        const auto sift = [&](int64_t p, int64_t first, const float *part) {
            const int64_t rows = std::min<int64_t>(kAmxRows, count - first);
            bars(p, first, rows, line);
            unsigned hits = amx_sift(part, line, masks);
            if (rows < kAmxRows) hits &= (1u << rows) - 1;  // 补齐的行是零或上一块留下的，不算数
            for (; hits; hits &= hits - 1) {
                const int r = first_of(hits);
                collect(p, first + r, part + r * kPanel, masks[r]);
            }
        };
        int64_t last_p = -1, last = 0;
        int turn = 0;
        for (int64_t p = 0; p < book.num_panels; ++p)
            for (int64_t first = 0; first < count; first += kAmxRows, turn ^= 1) {
                const uint16_t *panel = static_cast<const uint16_t *>(book.tiles) + p * chunks_ * 2 * kAmxTile;
                const auto tile = count - first > 16 ? amx_tile<2> : amx_tile<1>;
                tile(panel, book.bias + p * kPanel, chunks_, start_ + first / 16 * chunks_ * kAmxTile, scores[turn]);
                if (last_p >= 0) sift(last_p, last, scores[turn ^ 1]);
                last_p = p, last = first;
            }
        if (last_p >= 0) sift(last_p, last, scores[turn ^ 1]);
    }

    int unit() const { return kAmxRows; }

private:
    const int64_t chunks_, width_;
    std::vector<float> spare_;
    std::vector<uint16_t> data_;
    uint16_t *start_;
};

struct Amx {
    static constexpr int kRows = kAmxRows;
    using Float32 = Avx512;
    using Rows = AmxRows;
    using Session = AmxSession;

    static bool supported() { return amx_allowed(); }
    static Rows rows(int64_t width, int64_t capacity) { return AmxRows(width, capacity); }

    // 把 codes 的第 i 行写成第 rows[i] 个码字的 bfloat16 瓦片。
    static void pack(const float *codes, const int64_t *rows, int64_t count, int64_t width, void *target,
                     double *losses) {
        const int64_t panel = amx_chunks(width) * 2 * kAmxTile;
        for (int64_t i = 0; i < count; ++i)
            losses[i] = amx_pack_code(codes + i * width, width, static_cast<int>(rows[i] % kPanel),
                                      static_cast<uint16_t *>(target) + rows[i] / kPanel * panel);
    }
};

}  // namespace
