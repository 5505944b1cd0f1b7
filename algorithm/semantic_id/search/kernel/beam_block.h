// 束搜索的一块行：怎样相乘；路径与裁决在 beam_rows.h。定义与误差界见 search/beam.py。
//
// 做法：一块行（几千行）打包一次，每层的 z·c 只乘一遍；瓦片的得分落在 L1，各路径当场减去自己的内积表再与门槛比较。
// 内积表按面板最外排列，一个面板的一片（默认规模 320 KB）由整块行轮流使用。它是 int16 定点数：内存与带宽省一半，而
// 单位取 ‖q‖·max‖c‖ / 32766（max 只在这个面板的 32 个码字里取），半个单位的误差与 float32 乘积自身的误差界相当。
// 没有表的层把各路径的残差当作行来乘；AMX 的乘积便宜到每一层都这样做，不用表。够得着门槛的得分进候选表，一层结束后逐行按
// 定义裁决，所以两种走法答案相同。低精度的乘积（AMX、int16）候选过多的行，用 float32 的乘积重做这一层。

#pragma once

#include <memory>

#include "beam_rows.h"

namespace {

constexpr int64_t kManyTiles = 18;    // 瓦片少于它时，一片表只用得着一小部分，不值得整片引进
constexpr int64_t kBeamRows = 4200;   // 一块至多几行：再多不会更快，内存却更多；是各指令集瓦片行数的公倍数
constexpr int64_t kBeamBytes = 1 << 24;
constexpr float kLargest = 32766.0f, kTiny = 1e-37f;  // 定点数的最大值；单位的下限。与 search/beam.py 的 _table 一致

// Rows：低精度的特征怎样打包与相乘；float32 的特征是 NoRows。
template <class Rows>
class BeamBlock : private BeamRows {
public:
    using Make = Rows (*)(int64_t width, int64_t capacity);

    BeamBlock(const Beam &beam, const Plain &isa, int64_t capacity, Make make)
        : BeamRows(beam, isa, Rows::kNarrow, capacity), paths_at_once_(std::max(most_, kBlockBytes / (2 * width_))),
          packed_(Rows::kNarrow ? 0 : capacity * width_), scores_(kMaxRows * kPanel), which_(most_), masks_(most_),
          out_(most_ * kPanel) {
        if constexpr (kWhole) narrow_rows_ = std::make_unique<Rows>(make(width_, capacity));
        if constexpr (Rows::kNarrow) narrow_paths_ = std::make_unique<Rows>(make(width_, paths_at_once_));
    }

    void run(const float *z, int64_t count, int64_t *codes, double *errors) {
        z_ = z, count_ = count;
        start();
        for (int64_t l = 0; l < beam_.num_levels; ++l) {
            level_ = &beam_.levels[l], book_ = level_->book, depth_ = static_cast<int>(l);
            const bool direct = Rows::kAlways || (l > 0 && !level_->table);
            grain_ = direct || l == 0 ? 0.0 : beam_.grain;
            if (!direct) {
                for (int64_t i = 0; i < count; ++i) open(i, false);
                if constexpr (!Rows::kAlways) multiply_rows();
            }
            if constexpr (Rows::kNarrow)
                if (direct) multiply_narrow();
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
    static constexpr bool kWhole = Rows::kNarrow && !Rows::kAlways;  // z 也有低精度的副本，供查表的层用

    int64_t rows_in(int64_t t, int64_t count) const { return std::min<int64_t>(isa_.rows, count - t * isa_.rows); }

    // 打包 z，每行从一条空路径开始。
    void start() {
        for (int64_t i = 0; i < count_; ++i) {
            State &row = rows_[i];
            row.loss_z = 0.0;
            if constexpr (!Rows::kNarrow) pack(z_ + i * width_, i, count_, packed_.data());
            if constexpr (kWhole) {
                double ignored;
                narrow_rows_->pack(z_ + i * width_, 1, i, count_, &ignored, &row.loss_z);
            }
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

    // ---- 提名：每行乘一次，各路径减表 ----

    void multiply_rows() {
        float open_bar[kMaxRows];
        uint32_t ignored[kMaxRows];
        std::fill_n(open_bar, kMaxRows, -std::numeric_limits<float>::infinity());  // 所有得分都写出来
        Panels panel(*book_);
        const int64_t slice = level_->first * kPanel, tiles = (count_ + isa_.rows - 1) / isa_.rows;
        const auto multiply = [&](int64_t p, int64_t t) {
            if constexpr (kWhole)
                narrow_rows_->tile(*book_, p, t, count_, open_bar, scores_.data(), ignored);
            else
                isa_.tiles[rows_in(t, count_) - 1](panel(p), book_->bias + p * kPanel, width_,
                                                   packed_.data() + t * isa_.rows * width_, open_bar, scores_.data(),
                                                   ignored);
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
        const int found = isa_.sift(task);
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

    // 各路径的残差打包成低精度的行来乘，一次若干行；候选不齐的行由调用方重做。
    void multiply_narrow() {
        Rows &packed = *narrow_paths_;
        std::vector<std::pair<int64_t, int32_t>> entries;  // （行，路径）
        std::vector<double> losses(most_);
        for (int64_t i = 0; i < count_;) {
            int64_t stop = i, total = 0;
            for (; stop < count_ && total + rows_[stop].paths <= paths_at_once_; ++stop) total += rows_[stop].paths;
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

    const int64_t paths_at_once_;  // 一次打包至多几条路径的残差
    std::vector<float> packed_, scores_;
    std::vector<int> which_;
    std::vector<uint32_t> masks_;
    std::vector<float> out_;
    std::unique_ptr<Rows> narrow_rows_, narrow_paths_;  // z；一批路径的残差
};

}  // namespace
