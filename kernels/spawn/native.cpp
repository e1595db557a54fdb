// A round of LoPA up to the model on the CPU: each sequence in a few passes over its window, and
// one over its tokens, which looks for the end of text. Floor: the call and its seven outputs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>
#include <torch/library.h>

#include "fits.h"
#include "outputs.h"
#include "ranges.h"

namespace {

constexpr int32_t FAR = 1 << 30;

struct Options {
  int64_t length, block, window, lookaheads;
  int32_t mask, eos;
  float factor;
  bool by_rank;
  int64_t add_at, activate_at;
  bool bidirectional, full, shift;
};

struct Sequence {
  const int32_t *tokens, *token;
  const float *prob, *score;
  float threshold;
};

// Of one sequence; `tokens`, `open` and `asked` have a row for each branch.
struct Outputs {
  int32_t* tokens;
  bool *open, *asked;
  int32_t *extra, *level;
};

// The first of `count` positions that holds `value`, or `count`. It looks at all of them: that is
// what the compiler can do several at a time.
int64_t first_of(const int32_t* x, int64_t count, int32_t value) {
  int32_t found = static_cast<int32_t>(count);
  for (int32_t i = 0; i < static_cast<int32_t>(count); ++i)
    found = std::min(found, x[i] == value ? i : found);
  return found;
}

// Fast-dLLM's rule for a block: of its candidates, the most probable first, the n-th is taken if
// (n + 1) * (1 - prob) < factor. One that would not be as the first is not as a later one.
void take_by_rank(const Options& o, const Sequence& s, int64_t from, int64_t to, int64_t window,
                  int32_t* anchor, bool* any) {
  c10::SmallVector<int32_t, 64> candidates;
  for (int64_t i = from; i < to; ++i)
    if (s.tokens[i] == o.mask && s.token[i] >= 0 && 2.0f * (1.0f - s.prob[i]) < o.factor)
      candidates.push_back(static_cast<int32_t>(i));
  std::sort(candidates.begin(), candidates.end(), [&](int32_t a, int32_t b) {
    return s.prob[a] != s.prob[b] ? s.prob[a] > s.prob[b] : a < b;
  });
  float n = 2.0f;
  for (const int32_t i : candidates) {
    if (!(n++ * (1.0f - s.prob[i]) < o.factor)) break;
    anchor[i - window] = s.token[i];
    *any = true;
  }
}

// Fills the anchor's window, which holds the sequence's tokens, up to position `end`.
void fill_anchor(const Options& o, const Sequence& s, int64_t start, int64_t end, int64_t limit,
                 int32_t* anchor) {
  int64_t filled_before = start ? o.block : std::numeric_limits<int64_t>::max();
  for (int64_t from = start; from < end; from += o.block) {
    const int64_t to = std::min(from + o.block, limit);  // behind it nothing is open
    int64_t open = 0, best = -1;
    bool any = false;
    for (int64_t i = from; i < to; ++i) {
      if (s.tokens[i] != o.mask) continue;
      ++open;
      if (s.token[i] < 0) continue;
      if (!o.by_rank && s.prob[i] > s.threshold) {
        anchor[i - start] = s.token[i];
        any = true;
      }
      // NaN counts as -inf: neither is better than what was found.
      if (best < 0 || s.score[i] > s.score[best] ||
          (std::isnan(s.score[best]) && s.score[i] > -std::numeric_limits<float>::infinity()))
        best = i;
    }
    if (o.by_rank) take_by_rank(o, s, from, to, start, anchor, &any);
    if (best >= 0 && !any && filled_before >= o.activate_at) anchor[best - start] = s.token[best];
    filled_before = o.block - open;
  }
}

// Puts position i among the best of those before it, if it is: `best` descends by score, and of
// equal ones the lower position is first.
int64_t insert(const float* score, int32_t i, int32_t* best, int64_t count, int64_t most) {
  if (!(score[i] > -std::numeric_limits<float>::infinity())) return count;
  if (count == most) {
    if (!most || score[i] <= score[best[most - 1]]) return count;
    --count;
  }
  int64_t at = count;
  for (; at && score[best[at - 1]] < score[i]; --at) best[at] = best[at - 1];
  best[at] = i;
  return count + 1;
}

// Returns where the next window begins; `added` becomes how many blocks there are then.
int64_t spawn_one(const Options& o, const Sequence& s, int64_t start, int64_t* added,
                  const Outputs& out) {
  const int64_t here = std::min(o.window, o.length - start);
  int64_t limit = first_of(s.tokens, o.length, o.eos);
  const int64_t end = std::min(*added * o.block, start + here);
  int32_t* anchor = out.tokens;
  std::copy_n(s.tokens + start, here, anchor);
  std::fill(anchor + here, anchor + o.window, o.mask);
  fill_anchor(o, s, start, end, limit, anchor);
  for (int64_t i = start; i < std::min(end, limit); ++i)
    if (anchor[i - start] == o.eos) limit = i;

  // Lookaheads, and how many are open in the last block.
  int64_t spawned = 0, open = 0, of_last = 0;
  const int64_t last = (*added - 1) * o.block;
  for (int64_t i = start; i < std::min(end, limit); ++i) {
    if (anchor[i - start] != o.mask) continue;
    ++open;
    of_last += i >= last;
    if (s.token[i] >= 0)
      spawned = insert(s.score, static_cast<int32_t>(i), out.extra + 1, spawned, o.lookaheads);
  }
  out.extra[0] = -1;
  std::fill(out.extra + 1 + spawned, out.extra + 1 + o.lookaheads, -1);

  const int64_t cut = start + o.window;
  const int64_t room = open && cut < o.length ? cut - o.block : cut;
  const bool more = (*added + 1) * o.block <= std::min(o.length, room) && limit == o.length &&
                    o.block - of_last >= o.add_at;
  *added += more;

  // What is open in the anchor, now that there may be one block more.
  const int64_t reach = *added * o.block;
  const int64_t stop = std::max(std::min({reach, limit, start + here}), start) - start;
  int64_t unfinished = stop, left = 0;
  for (int64_t i = stop; i-- > 0;) {
    out.open[i] = anchor[i] == o.mask;
    if (out.open[i]) unfinished = i, ++left;
  }
  std::fill(out.open + stop, out.open + o.window, false);
  if (left == 1 && reach < o.length && limit == o.length) {
    std::fill_n(out.extra + 1, spawned, -1);
    spawned = 0;
  }
  int64_t next = start;
  if (!o.bidirectional)
    next +=
        unfinished < stop ? unfinished / o.block * o.block : std::max<int64_t>(reach - start, 0);

  for (int64_t from = 0; from < o.window; from += o.block) {
    const int64_t at = start + from;
    int64_t level = FAR;
    if (from < here && o.bidirectional)
      level = 0;
    else if (from < here && at < reach)
      level = (o.full ? std::min(at, next) : at) / o.block + 1;
    std::fill_n(out.level + from, o.block, static_cast<int32_t>(level));
  }

  for (int64_t j = 0; j <= o.lookaheads; ++j) {
    int32_t* x = out.tokens + j * o.window;
    bool *some = out.open + j * o.window, *asked = out.asked + j * o.window;
    if (j) std::copy_n(anchor, o.window, x);
    if (j > spawned) {
      std::fill_n(some, o.window, false);
    } else if (j) {
      const int64_t own = out.extra[j] - start;
      x[own] = s.token[out.extra[j]];
      const int64_t ends = x[own] == o.eos ? own : o.window;
      std::copy_n(out.open, ends, some);
      std::fill(some + ends, some + o.window, false);
      some[own] = x[own] == o.mask;
    }
    std::copy_n(some + o.shift, o.window - o.shift, asked);
    if (o.shift) asked[o.window - 1] = false;
  }
  return next;
}

void check_values(const Options& o, const at::Tensor& added, const at::Tensor& start) {
  const int32_t *a = added.const_data_ptr<int32_t>(), *s = start.const_data_ptr<int32_t>();
  const int64_t blocks = o.length / o.block;
  for (int64_t b = 0; b < added.numel(); ++b) {
    if (outside(a[b], 0, blocks)) out_of_range("added", added, 0, blocks, "the blocks");
    if (outside(s[b], 0, o.length)) out_of_range("start", start, 0, o.length, "the positions");
    TORCH_CHECK_VALUE(s[b] % o.block == 0, "start must be a multiple of block_length, ", o.block,
                      ", got ", s[b]);
    TORCH_CHECK_VALUE(a[b] * o.block <= s[b] + o.window, "added must end in the window, got ", a[b],
                      " blocks of ", o.block, " and a window from ", s[b], " to ", s[b] + o.window);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
spawn(const at::Tensor& tokens, const at::Tensor& token, const at::Tensor& prob,
      const at::Tensor& score, const at::Tensor& added, const at::Tensor& start,
      const std::optional<at::Tensor>& thresholds, int64_t block_length, int64_t window,
      int64_t num_lookaheads, int64_t mask_token, int64_t eos_token, double threshold,
      double factor, int64_t add_at, int64_t activate_at, c10::string_view attention, bool shift) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  constexpr int64_t LARGEST = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(tokens.dim() == 2 && tokens.size(1) <= LARGEST,
                    "tokens must be (batch, positions)");
  const int64_t batch = tokens.size(0), length = tokens.size(1), rows = num_lookaheads + 1;
  must_fit("tokens", tokens, {batch, length}, at::kInt);
  must_fit("predicted.token", token, {batch, length}, at::kInt);
  must_fit("predicted.prob", prob, {batch, length}, at::kFloat);
  must_fit("predicted.score", score, {batch, length}, at::kFloat);
  must_fit("added", added, {batch}, at::kInt);
  must_fit("start", start, {batch}, at::kInt);
  if (thresholds) must_fit("threshold", *thresholds, {batch}, at::kFloat);
  TORCH_CHECK_VALUE(1 <= block_length && block_length <= window && window <= length &&
                        window % block_length == 0 && length % block_length == 0,
                    "block_length and window must divide the positions into blocks");
  TORCH_CHECK_VALUE(0 <= num_lookaheads && num_lookaheads < LARGEST, "num_lookaheads out of range");
  TORCH_CHECK_VALUE(0 <= mask_token && mask_token <= LARGEST, "mask_token out of range");
  TORCH_CHECK_VALUE(-1 <= eos_token && eos_token <= LARGEST, "eos_token out of range");
  const Options o{length,
                  block_length,
                  window,
                  num_lookaheads,
                  static_cast<int32_t>(mask_token),
                  static_cast<int32_t>(eos_token),
                  static_cast<float>(factor),
                  factor > 0,
                  add_at,
                  activate_at,
                  attention == "bidirectional",
                  attention == "full",
                  shift};
  TORCH_CHECK_VALUE(o.bidirectional || o.full || attention == "block_causal",
                    "attention out of range");
  const auto x = tokens.expect_contiguous(), t = token.expect_contiguous();
  const auto p = prob.expect_contiguous(), s = score.expect_contiguous();
  const auto blocks = added.expect_contiguous(), starts = start.expect_contiguous();
  check_values(o, *blocks, *starts);
  std::vector<float> bounds(batch, static_cast<float>(threshold));
  for (int64_t b = 0; thresholds && b < batch; ++b) {
    bounds[b] = thresholds->const_data_ptr<float>()[b * thresholds->stride(0)];
    TORCH_CHECK_VALUE(0 <= bounds[b] && bounds[b] <= 1, "threshold must be between 0 and 1, got ",
                      bounds[b]);
  }

  at::Tensor branch = empty({batch, rows, window}, at::kInt);
  at::Tensor open = empty({batch, rows, window}, at::kBool);
  at::Tensor asked = empty({batch, rows, window}, at::kBool);
  at::Tensor extra = empty({batch, rows}, at::kInt), level = empty({batch, window}, at::kInt);
  at::Tensor added_next = empty({batch}, at::kInt), start_next = empty({batch}, at::kInt);
  const Sequence all{x->const_data_ptr<int32_t>(), t->const_data_ptr<int32_t>(),
                     p->const_data_ptr<float>(), s->const_data_ptr<float>(), 0};
  const Outputs out{branch.mutable_data_ptr<int32_t>(), open.mutable_data_ptr<bool>(),
                    asked.mutable_data_ptr<bool>(), extra.mutable_data_ptr<int32_t>(),
                    level.mutable_data_ptr<int32_t>()};
  const int32_t *a = blocks->const_data_ptr<int32_t>(), *from = starts->const_data_ptr<int32_t>();
  int32_t *a_next = added_next.mutable_data_ptr<int32_t>(),
          *from_next = start_next.mutable_data_ptr<int32_t>();
  // About 10 microseconds of work for a thread.
  const int64_t grain = std::max<int64_t>(1, 32768 / (length + (rows + 4) * window));
  at::parallel_for(0, batch, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t in = b * length, row = b * rows * window;
      int64_t count = a[b];
      from_next[b] = static_cast<int32_t>(
          spawn_one(o, {all.tokens + in, all.token + in, all.prob + in, all.score + in, bounds[b]},
                    from[b], &count,
                    {out.tokens + row, out.open + row, out.asked + row, out.extra + b * rows,
                     out.level + b * window}));
      a_next[b] = static_cast<int32_t>(count);
    }
  });
  return {branch, open, asked, extra, level, added_next, start_next};
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("spawn", spawn); }
