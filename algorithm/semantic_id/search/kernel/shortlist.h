// 候选表：一块行的门槛与候选；够不够得着、留下谁都在这里。误差界见 search/definition.py。
#pragma once

#include "book.h"

namespace {

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

}  // namespace
