// 最近码字：一块行走完整个码本，提名，再按定义裁决。
#pragma once

#include "distance.h"
#include "shortlist.h"

namespace {

// ---- float32 的乘积 ----

class Block : private Shortlist {
public:
    Block(const Book &book, const Plain &isa, int64_t capacity)
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

    // 候选过多的行与全部码字按定义比较；面板在外层，几百行一起时码本只读一遍。
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

    const Plain &isa_;
    std::vector<float> packed_;
    std::vector<double> wide_;
    Panels panel_;
};

// ---- 低精度的乘积：Rows 负责打包与相乘 ----

template <class Rows>
class NarrowBlock : private Shortlist {
public:
    NarrowBlock(const Book &book, const Plain &plain, int64_t capacity, Rows rows)
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
            const double far = plain_.distance(row, book_.table + candidates[m].code * book_.width, book_.width);
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
        Block(plain, plain_, count).run(rows.data(), book_.width, 1, count, codes.data());
        for (int64_t n = 0; n < count; ++n) out[crowded[n]] = codes[n];
    }

    const Plain &plain_;
    Rows packed_;
    std::vector<float> wide_;
};

}  // namespace
