// A round of LoPA behind the model on the CPU: what each branch is worth, in one pass over its
// window, and the state with the winner's window. Floor: the call and its eight outputs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include "fits.h"
#include "outputs.h"
#include "ranges.h"

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
enum class Rule { mean, lowest, count, log_prob, information_gain, common_mean };

Rule rule_of(c10::string_view name) {
  const char* const NAMES[] = {"mean",     "lowest",           "count",
                               "log_prob", "information_gain", "common_mean"};
  for (int i = 0; i < 6; ++i)
    if (name == NAMES[i]) return static_cast<Rule>(i);
  TORCH_CHECK_VALUE(false, "rule out of range");
}

struct Options {
  int64_t length, rows, window;
  Rule rule;
  double ratio;
  float threshold;
  bool shift, released;
};

// Of one sequence, or of all of them.
struct State {
  int32_t* tokens;
  int32_t* token;
  float *prob, *score;
  int32_t *filled_at, *filled_by;
};

// Rows of all branches of one sequence.
struct Rows {
  const int32_t* tokens;
  const bool* open;
  const int32_t *extra, *token;
  const float *prob, *score;
};

// What is predicted for the positions of a window: where rows are shifted, the first keeps what was
// predicted before.
template <class T>
struct Predicted {
  const T *old, *row;
  bool shift;
  T operator[](int64_t i) const { return i < shift ? *old : row[i - shift]; }
};

// Sums of doubles in four parts, which are added side by side.
struct Sum {
  double part[4] = {};
  void add(int64_t i, double x) { part[i & 3] += x; }
  double total() const { return (part[0] + part[1]) + (part[2] + part[3]); }
};

// The mean of the share of the scores that is lowest; NaN is above all others.
double mean_of_lowest(const Predicted<float>& score, const bool* open, int64_t size, int64_t n,
                      double ratio) {
  c10::SmallVector<float, 512> found;
  for (int64_t i = 0; i < size; ++i)
    if (open[i]) found.push_back(score[i]);
  const int64_t few = std::max<int64_t>(1, static_cast<int64_t>(ratio * n));
  if (few < n)
    std::nth_element(found.begin(), found.begin() + few, found.end(),
                     [](float a, float b) { return a < b || (std::isnan(b) && !std::isnan(a)); });
  Sum sum;
  for (int64_t i = 0; i < few; ++i) sum.add(i, found[i]);
  return sum.total() / few;
}

double worth_of(const Options& o, const Predicted<float>& prob, const Predicted<float>& score,
                const bool* open, const bool* common, int64_t size, float own_prob, float own_score,
                bool lookahead) {
  int64_t n = 0;
  for (int64_t i = 0; i < size; ++i) n += open[i];
  if (!n) return INF;
  Sum sum;
  switch (o.rule) {
    case Rule::lowest:
      return mean_of_lowest(score, open, size, n, o.ratio);
    case Rule::count: {
      int64_t count = lookahead;
      for (int64_t i = 0; i < size; ++i) count += open[i] && prob[i] > o.threshold;
      return static_cast<double>(count);
    }
    case Rule::log_prob:
      for (int64_t i = 0; i < size; ++i)
        if (open[i]) sum.add(i, std::log(static_cast<double>(prob[i])));
      return sum.total() + (lookahead ? std::log(static_cast<double>(own_prob)) : 0);
    case Rule::common_mean:
      n = 0;
      for (int64_t i = 0; i < size; ++i) n += common[i];
      open = common;
      if (!n) return 0;
      [[fallthrough]];
    default:
      for (int64_t i = 0; i < size; ++i) sum.add(i, open[i] ? score[i] : 0.0f);
      return sum.total() / n + (lookahead && o.rule == Rule::information_gain ? own_score : 0.0f);
  }
}

// Makes the sequence's state, which is that before the round, the winner's. Returns the winner.
int64_t commit_one(const Options& o, const State& s, const Rows& in, int32_t step, int64_t start,
                   const float* given, float* worth) {
  const int64_t size = std::min(o.window, o.length - start);
  const auto row_of = [&](const auto* all, int64_t j) { return all + j * o.window; };
  c10::SmallVector<bool, 512> common;
  if (o.rule == Rule::common_mean && !given) {
    common.assign(in.open, in.open + size);
    for (int64_t j = 1; j < o.rows; ++j)
      if (in.extra[j] >= 0)
        for (int64_t i = 0; i < size; ++i) common[i] &= row_of(in.open, j)[i];
  }
  int64_t winner = -1;
  for (int64_t r = 0; r < o.rows; ++r) {
    const int64_t j = o.released ? (r + 1) % o.rows : r;  // the anchor first, or last
    worth[j] = -INF;
    if (j && in.extra[j] < 0) continue;
    const Predicted<float> prob{s.prob + start, row_of(in.prob, j), o.shift};
    const Predicted<float> score{s.score + start, row_of(in.score, j), o.shift};
    const int64_t own = j ? in.extra[j] : 0;
    const float value =
        given ? given[j]
              : static_cast<float>(worth_of(o, prob, score, row_of(in.open, j), common.data(), size,
                                            s.prob[own], s.score[own], j > 0));
    if (!std::isnan(value)) worth[j] = o.released ? float(c10::BFloat16(value)) : value;
    if (winner < 0 || worth[j] > worth[winner]) winner = j;
  }

  const int32_t* branch = row_of(in.tokens, winner);
  const bool* open = row_of(in.open, winner);
  const auto at = [&](auto* all) { return all + start; };
  const int64_t own = winner ? in.extra[winner] - start : -1;
  for (int64_t i = 0; i < size; ++i) {
    if (branch[i] == at(s.tokens)[i]) continue;
    at(s.tokens)[i] = branch[i];
    at(s.filled_at)[i] = step;
    at(s.filled_by)[i] = i == own ? static_cast<int32_t>(winner) : 0;
  }
  const Predicted<int32_t> token{at(s.token), row_of(in.token, winner), o.shift};
  const Predicted<float> prob{at(s.prob), row_of(in.prob, winner), o.shift};
  const Predicted<float> score{at(s.score), row_of(in.score, winner), o.shift};
  for (int64_t i = 0; i < size; ++i) {
    at(s.token)[i] = open[i] ? token[i] : -1;
    at(s.prob)[i] = open[i] ? prob[i] : 0.0f;
    at(s.score)[i] = open[i] ? score[i] : -INF;
  }
  return winner;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor>
commit(const at::Tensor& tokens, const at::Tensor& token, const at::Tensor& prob,
       const at::Tensor& score, const at::Tensor& filled_at, const at::Tensor& filled_by,
       const at::Tensor& step, const at::Tensor& start, const at::Tensor& branch,
       const at::Tensor& is_open, const at::Tensor& extra, const at::Tensor& new_token,
       const at::Tensor& new_prob, const at::Tensor& new_score,
       const std::optional<at::Tensor>& worth, c10::string_view rule, double ratio,
       double threshold, bool shift, bool released) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  TORCH_CHECK_VALUE(tokens.dim() == 2, "tokens must be (batch, positions)");
  TORCH_CHECK_VALUE(branch.dim() == 3, "branches.tokens must be (batch, branches, window)");
  const int64_t batch = tokens.size(0), length = tokens.size(1);
  const int64_t rows = branch.size(1), window = branch.size(2);
  TORCH_CHECK_VALUE(rows && 1 <= window && window <= length,
                    "branches.tokens must be (batch, branches, window) for ", length, " positions");
  TORCH_CHECK_VALUE(0 < ratio && ratio <= 1, "ratio must be above 0 and at most 1");
  const at::IntArrayRef whole = tokens.sizes(), one = whole.slice(0, 1);
  must_fit("tokens", tokens, whole, at::kInt);
  must_fit("predicted.token", token, whole, at::kInt);
  must_fit("predicted.prob", prob, whole, at::kFloat);
  must_fit("predicted.score", score, whole, at::kFloat);
  must_fit("filled_at", filled_at, whole, at::kInt);
  must_fit("filled_by", filled_by, whole, at::kInt);
  must_fit("step", step, one, at::kInt);
  must_fit("start", start, one, at::kInt);
  must_fit("branches.tokens", branch, {batch, rows, window}, at::kInt);
  must_fit("branches.open", is_open, branch.sizes(), at::kBool);
  must_fit("branches.extra", extra, {batch, rows}, at::kInt);
  const int64_t flat[] = {branch.numel()};
  const at::IntArrayRef of_new = new_token.dim() == 1 ? at::IntArrayRef(flat) : branch.sizes();
  must_fit("new.token", new_token, of_new, at::kInt);
  must_fit("new.prob", new_prob, of_new, at::kFloat);
  must_fit("new.score", new_score, of_new, at::kFloat);
  if (worth) must_fit("worth", *worth, {batch, rows}, at::kFloat);
  const Options o{length, rows,    window, rule_of(rule), ratio, static_cast<float>(threshold),
                  shift,  released};

  const auto starts = start.expect_contiguous(), steps = step.expect_contiguous();
  const auto extras = extra.expect_contiguous(), branches = branch.expect_contiguous();
  const auto opens = is_open.expect_contiguous(), t = new_token.expect_contiguous();
  const auto p = new_prob.expect_contiguous(), s = new_score.expect_contiguous();
  must_be_in_range<int32_t>("start", *starts, 0, length, "the positions");
  must_be_in_range<int32_t>("branches.extra", *extras, -1, length - 1, "-1 for no branch");
  const at::Tensor given = worth ? worth->contiguous() : at::Tensor();

  const at::Tensor before[] = {tokens.contiguous(), token.contiguous(),     prob.contiguous(),
                               score.contiguous(),  filled_at.contiguous(), filled_by.contiguous()};
  at::Tensor after[6];
  for (int i = 0; i < 6; ++i) after[i] = empty(whole, before[i].scalar_type());
  at::Tensor winner = empty(one, at::kInt), values = empty({batch, rows}, at::kFloat);
  const void* from[6];
  void* to[6];
  for (int i = 0; i < 6; ++i) {
    from[i] = before[i].const_data_ptr();
    to[i] = after[i].mutable_data_ptr();
  }
  const float* g = worth ? given.const_data_ptr<float>() : nullptr;
  const Rows all{branches->const_data_ptr<int32_t>(), opens->const_data_ptr<bool>(),
                 extras->const_data_ptr<int32_t>(),   t->const_data_ptr<int32_t>(),
                 p->const_data_ptr<float>(),          s->const_data_ptr<float>()};
  const int32_t *at = starts->const_data_ptr<int32_t>(), *number = steps->const_data_ptr<int32_t>();
  int32_t* won = winner.mutable_data_ptr<int32_t>();
  float* v = values.mutable_data_ptr<float>();
  // About 10 microseconds of work for a thread.
  const int64_t grain = std::max<int64_t>(1, 32768 / (2 * length + (rows + 4) * window));
  at::parallel_for(0, batch, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      void* part[6];
      for (int i = 0; i < 6; ++i) {
        part[i] = static_cast<char*>(to[i]) + 4 * b * length;
        std::copy_n(static_cast<const char*>(from[i]) + 4 * b * length, 4 * length,
                    static_cast<char*>(part[i]));
      }
      const auto ints = [&](int i) { return static_cast<int32_t*>(part[i]); };
      const auto floats = [&](int i) { return static_cast<float*>(part[i]); };
      const int64_t row = b * rows * window;
      won[b] = static_cast<int32_t>(
          commit_one(o, {ints(0), ints(1), floats(2), floats(3), ints(4), ints(5)},
                     {all.tokens + row, all.open + row, all.extra + b * rows, all.token + row,
                      all.prob + row, all.score + row},
                     number[b], at[b], g ? g + b * rows : nullptr, v + b * rows));
    }
  });
  return {after[0], after[1], after[2], after[3], after[4], after[5], winner, values};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("commit", commit); }
