// 束搜索的一块行：各行的路径、门槛、候选表与裁决；怎样相乘在 beam_block.h。定义与误差界见 search/beam.py。
#pragma once

#include "shortlist.h"

namespace {

class BeamRows {
protected:
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

    BeamRows(const Beam &beam, const Plain &isa, bool narrow, int64_t capacity)
        : beam_(beam), narrow_(narrow), isa_(isa), width_(beam.width), most_(beam.size + 1),
          kept_(2 * beam.size + (narrow ? 120 : 24)), rows_(capacity), slots_(capacity * most_ * beam.num_levels),
          error_(capacity * most_), reach_(capacity * most_), pull_(capacity * most_), half_(capacity * most_),
          residual_(width_), lows_(capacity * beam.size), list_(capacity * kept_), wide_(width_) {}

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
                f.error = finite(isa_.distance(residual_.data(), level_->weight + f.code * width_, width_));
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
    const Plain &isa_;   // 低精度的乘积用它的 float32 乘积重做候选过多的行
    const int64_t width_, most_, kept_;  // most_：一行至多几条路径；kept_：候选表的容量
    std::vector<State> rows_;
    std::vector<int32_t> slots_;  // (行, 路径, 层) 槽位 = 此前各层码字数之和 + 编号
    std::vector<double> error_, reach_, pull_;  // 误差；误差界里的 W 与 ‖c‖ 的系数
    std::vector<float> half_, residual_;
    const float *z_ = nullptr;
    const BeamLevel *level_ = nullptr;
    const Book *book_ = nullptr;
    int64_t count_ = 0;
    double grain_ = 0.0;  // 定点数的误差系数；不查表的层是 0
    int depth_ = 0;

private:
    std::vector<double> lows_;  // (行, size) 最大的几个得分下界
    std::vector<Hit> list_;
    std::vector<double> wide_;
    std::vector<Found> found_;
    std::vector<int32_t> grown_;
    int32_t heir_ = 0;
};

}  // namespace
