// 最近码字搜索的编译路径：与 search/definition.py 同一定义、同一误差界，逐位相同的结果，只是更快。
//
// 做法：码本按 32 个码字一组打包成 [d][32] 的面板（驻留 L1），若干行打包成 [d][R] 的瓦片（一块行驻留 L2）；
// R×32 个得分整个留在寄存器里累加，乘完当场与该行的门槛比较，只有少数够得着的得分才离开寄存器进入候选表。
// 得分 h = −‖c‖²/2 + x·c 只负责提名，裁决按 search/definition.py 开头的 float64 定义：16 路、折半相加、不许 FMA。
// 因此必须以 -ffp-contract=off 编译；提名用的 FMA 都是显式的 intrinsics，不受它影响。
//
// 得分只负责提名，所以可以更粗而更快：int16 定点数（`int16.h`，AVX2 与 AVX-512 VNNI，约两倍），或 bfloat16 的
// 瓦片乘法（`amx.h`，十几倍）。误差界随之放宽，候选多一些，裁决的定义不变，所以编号逐位相同。
//
// 指令集在运行时挑选，同一个二进制到处能用。一种指令集是一个特征（trait，如 generic.h）加末尾表里的一行。没有 OpenMP：线程由 Python 一侧开，每个线程各算各的行块。
// 假定输入有限（由 Python 的门口负责）；违反时答案无意义，但不会越界。

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "beam_block.h"
#include "generic.h"
#include "nearest.h"
#ifdef SEMID_X86
#include "avx2.h"
#include "avx512.h"
#include "int16.h"
#endif
#ifdef SEMID_AMX
#include "amx.h"
#endif

namespace {

// ---- 一种特征的三件事：打包码字、最近码字、束搜索 ----

// 把 codes 的第 i 行写进面板的第 rows[i] 个码字；float32 不丢精度。
void pack_panels(const float *codes, const int64_t *rows, int64_t count, int64_t width, void *target, double *losses) {
    for (int64_t i = 0; i < count; ++i) {
        float *word = static_cast<float *>(target) + rows[i] / kPanel * kPanel * width + rows[i] % kPanel;
        for (int64_t d = 0; d < width; ++d) word[d * kPanel] = codes[i * width + d];
        losses[i] = 0.0;
    }
}

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

template <class Trait>
void nearest_of(const Book &book, const float *x, int64_t row_stride, int64_t column_stride, int64_t count,
                int64_t *out) {
    const Plain &plain = plain_of<typename Trait::Float32>();
    if constexpr (Trait::Rows::kNarrow) {
        const int64_t capacity = capacity_of(count, Trait::kRows, 2 * book.width);
        const typename Trait::Session session;
        NarrowBlock<typename Trait::Rows> block(book, plain, capacity, Trait::rows(book.width, capacity));
        in_blocks(block, capacity, x, row_stride, column_stride, count, out);
    } else {
        const int64_t capacity = capacity_of(count, Trait::kRows, 4 * book.width);
        Block block(book, plain, capacity);
        in_blocks(block, capacity, x, row_stride, column_stride, count, out);
    }
}

template <class Trait>
void beam_of(const Beam &beam, const float *z, int64_t count, int64_t *codes, double *errors) {
    using Rows = typename Trait::Rows;
    const Plain &plain = plain_of<typename Trait::Float32>();
    // 行越多，一片内积表用得越值；从不查表的，各路径的残差能留在 L2 就好
    const int64_t bytes = 4 * beam.width + (64 + 4 * beam.num_levels) * (beam.size + 1) + 512;
    const int64_t most = Rows::kAlways ? kBlockBytes / (2 * beam.width * (beam.size + 1)) : kBeamBytes / bytes;
    const int64_t unit = Rows::kAlways ? kMaxRows : plain.rows, fit = std::min<int64_t>(most, kBeamRows);
    const int64_t capacity = std::min(count, std::max<int64_t>(1, fit / unit) * unit);
    if (capacity == 0) return;
    const typename Trait::Session session;
    typename BeamBlock<Rows>::Make make = nullptr;
    if constexpr (Rows::kNarrow) make = Trait::rows;
    BeamBlock<Rows> block(beam, plain, capacity, make);
    for (int64_t start = 0; start < count; start += capacity)
        block.run(z + start * beam.width, std::min(capacity, count - start),
                  codes + start * beam.size * beam.num_levels, errors + start * beam.size);
}

// ---- 指令集的表：下标就是 search/isa.py 里的 id ----

struct Isa {
    bool (*supported)();
    void (*pack)(const float *, const int64_t *, int64_t, int64_t, void *, double *);
    void (*nearest)(const Book &, const float *, int64_t, int64_t, int64_t, int64_t *);
    void (*beam)(const Beam &, const float *, int64_t, int64_t *, double *);
};

template <class Trait>
Isa isa_of() {
    if constexpr (Trait::Rows::kNarrow)
        return {Trait::supported, Trait::pack, nearest_of<Trait>, beam_of<Trait>};
    else
        return {Trait::supported, pack_panels, nearest_of<Trait>, beam_of<Trait>};
}

const Isa kIsas[] = {
    isa_of<Generic>(),
#ifdef SEMID_X86
    isa_of<Avx2>(),
    isa_of<Avx512>(),
    isa_of<Avx2Int16>(),
    isa_of<Avx512Int16>(),
#endif
#ifdef SEMID_AMX
    isa_of<Amx>(),
#endif
};

// 默认舍入、保留次正规数：调用方若改过浮点模式，不许影响 ID。
class FloatMode {
public:
#ifdef SEMID_X86
    FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatMode() { _mm_setcsr(saved_); }

private:
    const unsigned saved_;
#else
    FloatMode() {}
#endif
};

// 返回 0 成功，1 内存不足。
template <class Work>
int guarded(const Work &work) {
    const FloatMode mode;
    try {
        work();
    } catch (const std::bad_alloc &) {
        return 1;
    }
    return 0;
}

}  // namespace

SEMID_API int semid_version() { return 6; }

// 本机可用的指令集，一位一种。
SEMID_API int semid_isas() {
#ifdef SEMID_X86
    __builtin_cpu_init();
#endif
    int found = 0, bit = 0;
    for (const Isa &isa : kIsas) found |= static_cast<int>(isa.supported()) << bit++;
    return found;
}

// 把 codes 的第 i 行写成 target 里第 rows[i] 个码字；losses[i] 是 ‖c − c̃‖ / ‖c‖ 的上界。
SEMID_API int semid_pack(int isa, const float *codes, const int64_t *rows, int64_t count, int64_t width, void *target,
                         double *losses) {
    return guarded([&] { kIsas[isa].pack(codes, rows, count, width, target, losses); });
}

// count 行的最近码字；步长以元素计。
SEMID_API int semid_nearest(const Book *book, int isa, const float *x, int64_t row_stride, int64_t column_stride,
                            int64_t count, int64_t *out) {
    return guarded([&] { kIsas[isa].nearest(*book, x, row_stride, column_stride, count, out); });
}

// count 行（连续存放）的路径与误差；codes (count, size, L)、errors (count, size)，空位不写。
SEMID_API int semid_beam(const Beam *beam, int isa, const float *z, int64_t count, int64_t *codes, double *errors) {
    return guarded([&] { kIsas[isa].beam(*beam, z, count, codes, errors); });
}

static PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

// 空模块：只为让 setuptools 按扩展模块构建与安装；函数经 ctypes 调用，调用期间不持有 GIL。
PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&kModule); }
