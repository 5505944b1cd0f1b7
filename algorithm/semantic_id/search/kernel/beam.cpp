// 束搜索的编译路径；由 native.cpp 包含（同一翻译单元，共用瓦片乘积与定义里的距离）。定义与误差界见 search/beam.py。
//
// 做法：一块行（几千行）打包一次，每层的 z·c 只乘一遍；瓦片的得分落在 L1，各路径当场减去自己的内积表再与门槛比较。
// 内积表按面板最外排列，一个面板的一片（默认规模 320 KB）由整块行轮流使用。它是 int16 定点数：内存与带宽省一半，而
// 单位取 ‖q‖·max‖c‖ / 32766（max 只在这个面板的 32 个码字里取），半个单位的误差与 float32 乘积自身的误差界相当。
// 没有表的层把各路径的残差当作行来乘；AMX 的乘积便宜到每一层都这样做，不用表。够得着门槛的得分进候选表，一层结束后逐行按
// 定义裁决，所以两种走法答案相同。低精度的乘积（AMX、int16）挤爆的行，用 float32 的乘积重做这一层。

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

constexpr int64_t kManyTiles = 18;    // 瓦片少于它时，一片表只用得着一小部分，不值得整片引进
constexpr int64_t kBeamRows = 4200;   // 一块至多几行：再多不会更快，内存却更多；是各指令集瓦片行数的公倍数
constexpr int64_t kBeamBytes = 1 << 24;
constexpr float kLargest = 32766.0f, kTiny = 1e-37f;  // 定点数的最大值；单位的下限。与 search/beam.py 的 _table 一致

// ---- 一行的全部路径 × 一个面板：得分减表，与门槛比较，够得着的写出 ----

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

int sift_generic(const Sift &s) {
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

#ifdef SEMID_X86
__attribute__((target("avx512f"))) int sift_avx512(const Sift &s) {
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

__attribute__((target("avx2,fma"))) int sift_avx2(const Sift &s) {
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

const SiftFn kSifts[] = {sift_generic, sift_avx2, sift_avx512};
#else
const SiftFn kSifts[] = {sift_generic};
#endif

// 低精度的指令集用哪一种 float32 的乘积重做。
SEMID_INLINE int plain_of(int isa) {
#ifdef SEMID_X86
    if (isa >= kInt16Isa) return kInt16Isas[isa - kInt16Isa].plain;
    if (isa == kAmxIsa) return kAvx512Isa;
#endif
    return isa;
}

// ---- 一块行 ----

class BeamBlock {
public:
    BeamBlock(const Beam &beam, int isa, int64_t capacity)
        : beam_(beam), narrow_(isa != plain_of(isa)), isa_(kIsas[plain_of(isa)]), sift_(kSifts[plain_of(isa)]),
          distance_(kDistances[plain_of(isa)]), width_(beam.width), most_(beam.size + 1),
          kept_(2 * beam.size + (narrow_ ? 120 : 24)), packed_(narrow_ ? 0 : capacity * width_), rows_(capacity),
          slots_(capacity * most_ * beam.num_levels), error_(capacity * most_), reach_(capacity * most_),
          pull_(capacity * most_), half_(capacity * most_), lows_(capacity * beam.size), list_(capacity * kept_),
          scores_(kMaxRows * kPanel), which_(most_), masks_(most_), out_(most_ * kPanel), residual_(width_),
          wide_(width_) {
#ifdef SEMID_AMX
        if (isa == kAmxIsa) amx_ = std::make_unique<AmxRows>(width_, capacity * most_);
#endif
#ifdef SEMID_X86
        if (isa >= kInt16Isa) {
            int16_ = std::make_unique<Int16Rows>(kInt16Isas[isa - kInt16Isa], width_, capacity);
            int16_paths_ = std::make_unique<Int16Rows>(kInt16Isas[isa - kInt16Isa], width_, paths_at_once());
        }
#endif
    }

    void run(const float *z, int64_t count, int64_t *codes, double *errors) {
        z_ = z, count_ = count;
        start();
        for (int64_t l = 0; l < beam_.num_levels; ++l) {
            level_ = &beam_.levels[l], book_ = level_->book, depth_ = static_cast<int>(l);
            const bool direct = amx_ || (l > 0 && !level_->table);
            grain_ = direct || l == 0 ? 0.0 : beam_.grain;
            if (!direct) {
                for (int64_t i = 0; i < count; ++i) open(i, false);
                multiply_rows();
            }
#ifdef SEMID_AMX
            if (amx_) multiply_narrow(*amx_);
#endif
#ifdef SEMID_X86
            if (direct && int16_) multiply_narrow(*int16_paths_);
#endif
            if (direct || narrow_) {
                std::vector<int64_t> rows;
                for (int64_t i = 0; i < count; ++i)
                    if (!narrow_ || !complete(i)) rows.push_back(i);
                grain_ = 0.0;
                for (const int64_t i : rows) open(i, true);
                if (!rows.empty()) multiply_paths(rows);
            }
            for (int64_t i = 0; i < count; ++i) settle(i);
        }
        for (int64_t i = 0; i < count; ++i) write(i, codes, errors);
    }

private:
    struct Hit {
        double high;  // 得分 + 误差界
        int32_t path, code;
    };
    struct Found {
        double error;
        int32_t path, code;
    };
    struct State {
        float base, pull;         // 门槛：low − rest 向下舍入；误差界里 ‖c‖ 的系数，各路径的最大值
        int32_t paths, greedy, count;
        bool brute, raised;
        double rest, norm_z;      // 误差界里与码字无关的部分的最大值；‖z‖ 的上界
        double loss_z;            // z 的低精度副本丢掉的 ‖z − z̃‖；没有副本为 0
        double low, low_greedy;   // 第 size 大的得分下界；贪心路径自己的最大下界
        double lost, lost_greedy; // 因候选表满而丢掉的最大 high
    };

    static constexpr double kNone = -std::numeric_limits<double>::infinity();
    static constexpr double kHuge = std::numeric_limits<double>::infinity();

    int32_t *slots(int64_t i, int64_t k) { return slots_.data() + (i * most_ + k) * beam_.num_levels; }
    int64_t rows_in(int64_t t, int64_t count) const { return std::min<int64_t>(isa_.rows, count - t * isa_.rows); }

    // 打包 z，每行从一条空路径开始。
    void start() {
        for (int64_t i = 0; i < count_; ++i) {
            State &row = rows_[i];
            row.loss_z = 0.0;
            if (!narrow_) pack(z_ + i * width_, i, count_, packed_.data());
#ifdef SEMID_X86
            double ignored;
            if (int16_) int16_->pack(z_ + i * width_, 1, i, count_, &ignored, &row.loss_z);
#endif
            row.norm_z = reach_[i * most_] = upper_norm(z_ + i * width_);
            row.paths = 1, row.greedy = 0;
            error_[i * most_] = 0.0;
        }
    }

    void pack(const float *x, int64_t i, int64_t count, float *packed) const {
        const int64_t t = i / isa_.rows, rows = rows_in(t, count);
        float *target = packed + t * isa_.rows * width_ + i % isa_.rows;
        for (int64_t d = 0; d < width_; ++d) target[d * rows] = x[d];
    }

    double upper_norm(const float *x) const {
        double part[8] = {0.0};
        int64_t d = 0;
        for (; d + 8 <= width_; d += 8)
            for (int j = 0; j < 8; ++j) part[j] += static_cast<double>(x[d + j]) * x[d + j];
        for (; d < width_; ++d) part[0] += static_cast<double>(x[d]) * x[d];
        for (int j = 1; j < 8; ++j) part[0] += part[j];
        return std::sqrt(part[0]) * (1 + 1e-6);
    }

    double rest(double reach, double error) const {
        return beam_.eta * reach * reach + beam_.drift * error + beam_.tau * (1 + reach + book_->top_norm) +
               kVanishing * reach;
    }

    // 一层开始时的门槛。reach 是误差界里的 W：查表时 ‖z‖ + Σ‖q‖，直接乘时 ‖r‖，后者由误差得来。losses 是各路径的残差在
    // 低精度副本里的误差；float32 的乘积没有它。
    void open(int64_t i, bool direct, const double *losses = nullptr) {
        State &row = rows_[i];
        double reach = 0.0, error = 0.0, pull = 0.0;
        for (int64_t k = 0; k < row.paths; ++k) {
            double &own = reach_[i * most_ + k];
            if (depth_ > 0 && direct) {
                own = std::sqrt(error_[i * most_ + k]) * (1 + 1e-6);
            } else if (depth_ > 0) {
                own = row.norm_z;
                for (int j = 0; j < depth_; ++j)
                    own += beam_.levels[j].book->norm[slots(i, k)[j] - beam_.levels[j].first];
            }
            double &slope = pull_[i * most_ + k];
            slope = beam_.slope * own;
            if (losses) slope += narrow_slope(*book_, own, losses[k]);
            if (narrow_ && !direct) slope += narrow_slope(*book_, row.norm_z, row.loss_z);
            reach = std::max(reach, own);
            error = std::max(error, error_[i * most_ + k]);
            pull = std::max(pull, slope);
        }
        row.rest = rest(reach, error);
        row.pull = std::nextafter(static_cast<float>(pull + grain_ * (reach - row.norm_z)), FLT_MAX);
        row.brute = !(reach <= beam_.limit && book_->top_norm <= beam_.limit);
        row.base = row.brute ? FLT_MAX : -FLT_MAX;
        row.low = row.low_greedy = row.lost = row.lost_greedy = kNone;
        row.count = 0;
        row.raised = false;
        for (int64_t k = 0; k < row.paths; ++k) half_[i * most_ + k] = shrunk(0.5 * error_[i * most_ + k]);
        std::fill_n(lows_.data() + i * beam_.size, beam_.size, kNone);
    }

    // 门槛只许偏低：让出的 2⁻²⁰ 倍盖住 float32 的舍入。
    static float shrunk(double value) { return static_cast<float>(value - std::fabs(value) * 0x1p-20); }

    float bar(const State &row, int64_t p) const {
        const float top = book_->panel_norm[p];
        const float value = row.base - (static_cast<float>(beam_.curve) * top + row.pull) * top;
        return std::max(value - std::fabs(value) * 0x1p-20f, -FLT_MAX);
    }

    // ---- 提名：每行乘一次，各路径减表 ----

    void multiply_rows() {
        float open_bar[kMaxRows];
        uint32_t ignored[kMaxRows];
        std::fill_n(open_bar, kMaxRows, -std::numeric_limits<float>::infinity());  // 所有得分都写出来
        Panels panel(*book_);
        const int64_t slice = level_->first * kPanel, tiles = (count_ + isa_.rows - 1) / isa_.rows;
        const auto multiply = [&](int64_t p, int64_t t) {
#ifdef SEMID_X86
            if (int16_) {
                int16_->tile(*book_, p, t, count_, open_bar, scores_.data(), ignored);
                return;
            }
#endif
            isa_.tiles[rows_in(t, count_) - 1](panel(p), book_->bias + p * kPanel, width_,
                                               packed_.data() + t * isa_.rows * width_, open_bar, scores_.data(), ignored);
        };
        for (int64_t p = 0; p < book_->num_panels; ++p) {
            const int16_t *table = depth_ > 0 ? level_->table + p * slice : nullptr;
            const int16_t *next = depth_ > 0 && p + 1 < book_->num_panels ? table + slice : nullptr;
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t rows = rows_in(t, count_), first = t * isa_.rows;
                if (next && tiles >= kManyTiles) stream(next, slice * t / tiles, slice * (t + 1) / tiles);
                if (depth_ > 0) fetch(table, first, rows, false);
                multiply(p, t);
                for (int64_t r = 0; r < rows; ++r) {
                    if (depth_ > 0 && r + 1 < rows) fetch(table, first + r + 1, 1, true);
                    sift(p, first + r, scores_.data() + r * kPanel, table);
                }
            }
        }
    }

    // 内积表在主存里，用到才去取比算它还久，所以分三步提前取：乘这一面板时，把下一面板的那片表按次序引进 L3；乘一片瓦片
    // 之前，把它的路径要减的表行引进 L2；减这一行时，把下一行的引进 L1。
    static void stream(const int16_t *table, int64_t start, int64_t stop) {
#ifdef SEMID_X86
        for (int64_t i = start / kPanel * kPanel; i < stop; i += kPanel)
            _mm_prefetch(reinterpret_cast<const char *>(table + i), _MM_HINT_T2);
#else
        (void)table, (void)start, (void)stop;
#endif
    }

    void fetch(const int16_t *table, int64_t first, int64_t rows, bool soon) {
#ifdef SEMID_X86
        for (int64_t i = first; i < first + rows; ++i)
            for (int64_t k = 0; k < rows_[i].paths; ++k)
                for (int j = 0; j < depth_; ++j) {
                    const char *line = reinterpret_cast<const char *>(table + int64_t{slots(i, k)[j]} * kPanel);
                    soon ? _mm_prefetch(line, _MM_HINT_T0) : _mm_prefetch(line, _MM_HINT_T1);
                }
#else
        (void)table, (void)first, (void)rows, (void)soon;
#endif
    }

    void sift(int64_t p, int64_t i, const float *scores, const int16_t *table) {
        const State &row = rows_[i];
        const float step = std::max(book_->panel_norm[p] / kLargest, kTiny);
        const Sift task = {scores,    table,     beam_.gain,   slots(i, 0),   half_.data() + i * most_, beam_.num_levels,
                           depth_,    row.paths, bar(row, p),  step,          which_.data(),            masks_.data(),
                           out_.data()};
        const int found = sift_(task);
        for (int f = 0; f < found; ++f) collect(p, i, which_[f], out_.data() + f * kPanel, masks_[f]);
    }

    // ---- 提名：没有表，每条路径乘一次 ----

    void multiply_paths(const std::vector<int64_t> &rows) {
        Panels panel(*book_);
        const int64_t unit = isa_.rows, fit = std::max<int64_t>(1, kBlockBytes / (4 * width_) / unit) * unit;
        std::vector<std::pair<int64_t, int32_t>> entries;  // （行，路径）
        std::vector<float> packed(fit * width_);
        const auto flush = [&] {
            const int64_t count = static_cast<int64_t>(entries.size());
            for (int64_t e = 0; e < count; ++e) {
                form_residual(entries[e].first, entries[e].second);
                pack(residual_.data(), e, count, packed.data());
            }
            for (int64_t p = 0; p < book_->num_panels; ++p)
                for (int64_t t = 0; t * unit < count; ++t)
                    multiply_tile(p, panel(p), entries.data() + t * unit, rows_in(t, count),
                                  packed.data() + t * unit * width_);
            entries.clear();
        };
        for (const int64_t i : rows)
            for (int32_t k = 0; k < rows_[i].paths; ++k) {
                entries.emplace_back(i, k);
                if (static_cast<int64_t>(entries.size()) == fit) flush();
            }
        if (!entries.empty()) flush();
    }

    void set_bars(int64_t p, const std::pair<int64_t, int32_t> *entries, int64_t rows, float *bars) const {
        for (int64_t r = 0; r < rows; ++r) {
            const auto [i, k] = entries[r];
            bars[r] = std::max(bar(rows_[i], p) + half_[i * most_ + k], -FLT_MAX);
        }
    }

    void multiply_tile(int64_t p, const float *panel, const std::pair<int64_t, int32_t> *entries, int64_t rows,
                       const float *packed) {
        float bars[kMaxRows];
        uint32_t masks[kMaxRows];
        set_bars(p, entries, rows, bars);
        unsigned hits = isa_.tiles[rows - 1](panel, book_->bias + p * kPanel, width_, packed, bars, scores_.data(),
                                             masks);
        for (int r = 0; hits; ++r, hits >>= 1)
            if (hits & 1) collect(p, entries[r].first, entries[r].second, scores_.data() + r * kPanel, masks[r]);
    }

    int64_t paths_at_once() const { return std::max<int64_t>(most_, kBlockBytes / (2 * width_)); }

    // 各路径的残差打包成低精度的行来乘，一次若干行；候选不齐的行由调用方重做。
    template <class Rows>
    void multiply_narrow(Rows &packed) {
        std::vector<std::pair<int64_t, int32_t>> entries;  // （行，路径）
        std::vector<double> losses(most_);
        for (int64_t i = 0; i < count_;) {
            int64_t stop = i, total = 0;
            for (; stop < count_ && total + rows_[stop].paths <= paths_at_once(); ++stop) total += rows_[stop].paths;
            entries.clear();
            for (; i < stop; ++i) {
                for (int32_t k = 0; k < rows_[i].paths; ++k) {
                    double ignored;
                    form_residual(i, k);
                    packed.pack(residual_.data(), 1, static_cast<int64_t>(entries.size()), total, &ignored, &losses[k]);
                    entries.emplace_back(i, k);
                }
                open(i, true, losses.data());
            }
            const auto bars = [&](int64_t p, int64_t first, int64_t rows, float *line) {
                set_bars(p, entries.data() + first, rows, line);
            };
            packed.multiply(*book_, total, bars, [&](int64_t p, int64_t e, const float *scores, uint32_t mask) {
                collect(p, entries[e].first, entries[e].second, scores, mask);
            });
        }
    }

    // ---- 候选 ----

    // 够得着面板门槛的得分按各自码字的界细看；每收一个就抬高第 size 大的下界。
    void collect(int64_t p, int64_t i, int32_t k, const float *scores, uint32_t mask) {
        State &row = rows_[i];
        if (row.brute) return;
        const double reach = reach_[i * most_ + k], pull = pull_[i * most_ + k], half = 0.5 * error_[i * most_ + k];
        const double fixed = rest(reach, 2 * half) + grain_ * (reach - row.norm_z) * book_->panel_norm[p];
        for (int m = 0; mask; ++m, mask >>= 1) {
            if (!(mask & 1)) continue;
            const double norm = book_->norm[p * kPanel + m];
            const double margin = (beam_.curve * norm + pull) * norm + fixed;
            const double score = scores[m] - half, high = score + margin;
            if (!(high >= row.low || (k == row.greedy && high >= row.low_greedy))) continue;
            raise(i, k, score - margin);
            if (row.count == kept_ && row.raised) compact(i);
            if (row.count == kept_) {
                row.lost = std::max(row.lost, high);
                if (k == row.greedy) row.lost_greedy = std::max(row.lost_greedy, high);
            } else {
                list_[i * kept_ + row.count++] = {high, k, static_cast<int32_t>(p * kPanel + m)};
            }
        }
    }

    void raise(int64_t i, int32_t k, double low) {
        State &row = rows_[i];
        double *lows = lows_.data() + i * beam_.size;  // 最小堆
        const bool better = low > lows[0], own = k == row.greedy && low > row.low_greedy;
        if (better) {
            std::pop_heap(lows, lows + beam_.size, std::greater<double>());
            lows[beam_.size - 1] = low;
            std::push_heap(lows, lows + beam_.size, std::greater<double>());
            row.low = lows[0];
        }
        if (own) row.low_greedy = low;
        if (!(better || own) || row.low == kNone) return;
        row.raised = true;
        row.base = std::nextafter(static_cast<float>(row.low - row.rest), -FLT_MAX);
        // 贪心路径的门槛再低一些：它自己最近的码字必须留住
        const double gap = std::max(0.0, row.low - row.low_greedy);
        half_[i * most_ + row.greedy] = gap == kHuge ? -FLT_MAX : shrunk(0.5 * error_[i * most_ + row.greedy] - gap);
    }

    bool reachable(const State &row, const Hit &hit) const {
        return hit.high >= row.low || (hit.path == row.greedy && hit.high >= row.low_greedy);
    }

    void compact(int64_t i) {
        State &row = rows_[i];
        Hit *list = list_.data() + i * kept_;
        int kept = 0;
        for (int h = 0; h < row.count; ++h)
            if (reachable(row, list[h])) list[kept++] = list[h];
        row.count = kept;
        row.raised = false;
    }

    // ---- 裁决 ----

    // 一条路径的残差：与 rq_vae.residuals 同样的 float32 逐层相减。
    void form_residual(int64_t i, int64_t k) {
        std::copy_n(z_ + i * width_, width_, residual_.data());
        for (int j = 0; j < depth_; ++j) {
            const BeamLevel &level = beam_.levels[j];
            const float *code = level.weight + (slots(i, k)[j] - level.first) * width_;
            for (int64_t d = 0; d < width_; ++d) residual_[d] -= code[d];
        }
    }

    static double finite(double error) { return error <= DBL_MAX ? error : kHuge; }  // NaN 当作 inf，排序才有定义

    static bool by_error(const Found &a, const Found &b) {
        if (a.error != b.error) return a.error < b.error;
        return by_codes(a, b);
    }

    static bool by_codes(const Found &a, const Found &b) {  // 路径按字典序存放，所以这就是编号字典序
        return a.path != b.path ? a.path < b.path : a.code < b.code;
    }

    bool complete(int64_t i) {
        compact(i);
        const State &row = rows_[i];
        return !row.brute && row.count > 0 && row.lost < row.low && row.lost_greedy < row.low_greedy;
    }

    void settle(int64_t i) {
        State &row = rows_[i];
        found_.clear();
        if (!complete(i)) {
            compare_all(i);
        } else {
            const Hit *list = list_.data() + i * kept_;
            for (int h = 0; h < row.count; ++h) found_.push_back({0.0, list[h].path, list[h].code});
            std::sort(found_.begin(), found_.end(), by_codes);
            int32_t formed = -1;
            for (Found &f : found_) {
                if (f.path != formed) form_residual(i, formed = f.path);
                f.error = finite(distance_(residual_.data(), level_->weight + f.code * width_, width_));
            }
        }
        choose(i);
    }

    // 全部路径与全部码字按定义比较；只留前 size 名（最大堆）与贪心的最近码字。
    void compare_all(int64_t i) {
        State &row = rows_[i];
        Panels panel(*book_);
        Found nearest = {kHuge, row.greedy, -1};
        double far[kPanel];
        for (int32_t k = 0; k < row.paths; ++k) {
            form_residual(i, k);
            std::copy_n(residual_.data(), width_, wide_.data());
            for (int64_t p = 0; p < book_->num_panels; ++p) {
                isa_.brute(panel(p), width_, wide_.data(), far);
                for (int m = 0; m < kPanel; ++m) {
                    if (level_->twin[p * kPanel + m]) continue;
                    const Found item = {finite(far[m]), k, static_cast<int32_t>(p * kPanel + m)};
                    if (k == row.greedy && (nearest.code < 0 || item.error < nearest.error)) nearest = item;
                    if (static_cast<int64_t>(found_.size()) < beam_.size) {
                        found_.push_back(item);
                        std::push_heap(found_.begin(), found_.end(), by_error);
                    } else if (by_error(item, found_.front())) {
                        std::pop_heap(found_.begin(), found_.end(), by_error);
                        found_.back() = item;
                        std::push_heap(found_.begin(), found_.end(), by_error);
                    }
                }
            }
        }
        const auto same = [&](const Found &f) { return f.path == nearest.path && f.code == nearest.code; };
        if (std::none_of(found_.begin(), found_.end(), same)) found_.push_back(nearest);
    }

    // 前 size 名与贪心路径成为这一行的新路径，按编号字典序存放。
    void choose(int64_t i) {
        State &row = rows_[i];
        std::sort(found_.begin(), found_.end(), by_error);
        const auto heir = std::find_if(found_.begin(), found_.end(), [&](const Found &f) { return f.path == row.greedy; });
        const Found greedy = *heir;
        const int64_t best = std::min<int64_t>(beam_.size, found_.size());
        if (heir - found_.begin() >= best) found_[best] = greedy, found_.resize(best + 1);
        else found_.resize(best);
        std::sort(found_.begin(), found_.end(), by_codes);
        grown_.clear();
        for (size_t n = 0; n < found_.size(); ++n) {
            const int32_t *old = slots(i, found_[n].path);
            grown_.insert(grown_.end(), old, old + depth_);
            grown_.push_back(static_cast<int32_t>(level_->first + found_[n].code));
            if (found_[n].path == greedy.path && found_[n].code == greedy.code) heir_ = static_cast<int32_t>(n);
        }
        row.paths = static_cast<int32_t>(found_.size());
        row.greedy = heir_;
        for (size_t n = 0; n < found_.size(); ++n) {
            std::copy_n(grown_.data() + n * (depth_ + 1), depth_ + 1, slots(i, n));
            error_[i * most_ + n] = found_[n].error;
        }
    }

    // 按误差排序写出；贪心路径是多带的那一条（排在最后）时顶替最后一名。
    void write(int64_t i, int64_t *codes, double *errors) {
        const State &row = rows_[i];
        found_.clear();
        for (int32_t k = 0; k < row.paths; ++k) found_.push_back({error_[i * most_ + k], k, 0});
        std::sort(found_.begin(), found_.end(), by_error);
        if (row.paths > beam_.size) found_[beam_.size - 1] = found_[beam_.size];
        const int64_t count = std::min<int64_t>(row.paths, beam_.size);
        for (int64_t n = 0; n < count; ++n) {
            errors[i * beam_.size + n] = found_[n].error;
            for (int64_t l = 0; l < beam_.num_levels; ++l)
                codes[(i * beam_.size + n) * beam_.num_levels + l] =
                    slots(i, found_[n].path)[l] - beam_.levels[l].first;
        }
    }

    const Beam &beam_;
    const bool narrow_;  // 乘积是低精度的
    const Isa &isa_;     // 低精度的乘积用它的 float32 乘积重做候选挤爆的行
    const SiftFn sift_;
    const DistanceFn distance_;
    const int64_t width_, most_, kept_;  // most_：一行至多几条路径；kept_：候选表的容量
    std::vector<float> packed_;
    std::vector<State> rows_;
    std::vector<int32_t> slots_;  // (行, 路径, 层) 槽位 = 此前各层码字数之和 + 编号
    std::vector<double> error_, reach_, pull_;  // 误差；误差界里的 W 与 ‖c‖ 的系数
    std::vector<float> half_;
    std::vector<double> lows_;  // (行, size) 最大的几个得分下界
    std::vector<Hit> list_;
    std::vector<float> scores_;
    std::vector<int> which_;
    std::vector<uint32_t> masks_;
    std::vector<float> out_, residual_;
    std::vector<double> wide_;
    std::vector<Found> found_;
    std::vector<int32_t> grown_;
#ifdef SEMID_AMX
    std::unique_ptr<AmxRows> amx_;
#else
    static constexpr bool amx_ = false;
#endif
#ifdef SEMID_X86
    std::unique_ptr<Int16Rows> int16_, int16_paths_;  // z；一批路径的残差
#endif
    const float *z_ = nullptr;
    const BeamLevel *level_ = nullptr;
    const Book *book_ = nullptr;
    int64_t count_ = 0;
    double grain_ = 0.0;  // 定点数的误差系数；不查表的层是 0
    int depth_ = 0;
    int32_t heir_ = 0;
};

}  // namespace

// count 行（连续存放）的路径与误差；codes (count, size, L)、errors (count, size)，空位不写。返回 0 成功，1 内存不足。
SEMID_API int semid_beam(const Beam *beam, int isa, const float *z, int64_t count, int64_t *codes, double *errors) {
#ifdef SEMID_X86
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80);  // 同 semid_nearest
#endif
    int status = 0;
    try {
        // 行越多，一片内积表用得越值；AMX 没有表，各路径的残差能留在 L2 就好
#ifdef SEMID_AMX
        const bool amx = isa == kAmxIsa;
#else
        constexpr bool amx = false;
#endif
        const int64_t bytes = 4 * beam->width + (64 + 4 * beam->num_levels) * (beam->size + 1) + 512;
        const int64_t most = amx ? kBlockBytes / (2 * beam->width * (beam->size + 1)) : kBeamBytes / bytes;
        const int64_t unit = amx ? kMaxRows : kIsas[plain_of(isa)].rows, fit = std::min<int64_t>(most, kBeamRows);
        const int64_t capacity = std::min(count, std::max<int64_t>(1, fit / unit) * unit);
        if (capacity > 0) {
#ifdef SEMID_AMX
            std::unique_ptr<AmxSession> session;
            if (amx) session = std::make_unique<AmxSession>();
#endif
            BeamBlock block(*beam, isa, capacity);
            for (int64_t start = 0; start < count; start += capacity)
                block.run(z + start * beam->width, std::min(capacity, count - start),
                          codes + start * beam->size * beam->num_levels, errors + start * beam->size);
        }
    } catch (const std::bad_alloc &) {
        status = 1;
    }
#ifdef SEMID_X86
    _mm_setcsr(saved);
#endif
    return status;
}
