// Attention over some of the cached tokens on the CPU: pieces of the work, and what they add up to.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include "floats.h"
#include "isa.h"
#include "logits.h"  // scores.h names its Scoring
#include "native.h"
#include "outputs.h"

#define KERNEL "../gather_attention/native_kernel.h"
#include "per_isa.h"

namespace {

using Result = std::tuple<at::Tensor, at::Tensor>;
using Optional = std::optional<at::Tensor>;

constexpr int64_t TOGETHER = 16;  // rows per head up to which a piece has all heads of its tokens
constexpr int64_t ROWS = 128;     // rows of a piece otherwise
constexpr int64_t PIECES = 16;    // of a sequence, about; never of fewer tokens than LEAST
constexpr int64_t LEAST = 256;

// Caches are read where they are; only the numbers of a row must lie side by side.
at::Tensor readable(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

// Pieces of a sequence's tokens, the same however many threads there are. Far ones, which are
// slower to read, and window ones take turns, so that threads get as much of both.
void cut(std::vector<Piece>& pieces, Piece p, int64_t far, int64_t begin, int64_t end,
         int64_t piece) {
  const int64_t window = std::max<int64_t>(0, end - begin);
  for (int64_t f = 0, w = 0; f < far || w < window;) {
    p.far = w >= window || (f < far && f * window <= w * far);
    int64_t& at = p.far ? f : w;
    p.first = at + (p.far ? 0 : begin);
    at = std::min(at + piece, p.far ? far : window);
    p.last = at + (p.far ? 0 : begin);
    pieces.push_back(p);
  }
}

template <class T>
Result run(Step<T>& s, const at::Tensor& like) {
  const int64_t batch = like.size(0), rows = s.queries * s.shared, heads = like.size(2);
  at::Tensor out = empty(like.sizes(), like.scalar_type());
  at::Tensor lse = empty({batch, s.queries, heads}, at::kFloat);
  const bool together = rows <= TOGETHER;
  const int64_t take = together ? std::max<int64_t>(1, rows) : ROWS;
  const int64_t group_step = together ? s.groups : 1;
  std::vector<Piece> pieces;
  struct Target {
    int64_t b, group, row, first, parts;
  };
  std::vector<Target> targets;  // what pieces belong together
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t far = s.index ? s.initial + s.listed : 0;
    const int64_t begin = s.ranges.start[b], end = s.q ? s.ranges.end[b] : begin;
    const int64_t blocks = s.groups / group_step * ((rows + take - 1) / take);
    const int64_t wanted = std::max<int64_t>(1, PIECES / std::max<int64_t>(1, blocks));
    int64_t piece = std::max(LEAST, (far + end - begin + wanted - 1) / wanted);
    piece = (piece + BLOCK - 1) / BLOCK * BLOCK;
    for (int64_t g = 0; g < s.groups; g += group_step)
      for (int64_t r = 0; r < rows; r += take) {
        Piece p{};
        p.b = b, p.group = g, p.group_end = g + group_step;
        p.row = r, p.row_end = std::min(r + take, rows);
        const int64_t before = pieces.size();
        // No row of the piece stands behind its last query.
        const int64_t stands = s.ranges.end[b] - s.queries + (p.row_end - 1) / s.shared;
        cut(pieces, p, far, begin, std::min(end, stands + 1), piece);
        targets.push_back({b, g, r, before, (int64_t)pieces.size() - before});
      }
  }
  const int64_t each = group_step * std::min(take, rows);
  const at::Tensor memory = empty({(int64_t)pieces.size() * each * (s.dim + 2)}, at::kFloat);
  float* outs = memory.mutable_data_ptr<float>();
  float* bests = outs + pieces.size() * each * s.dim;
  at::parallel_for(0, pieces.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      pieces[i].out = outs + i * each * s.dim;
      pieces[i].best = bests + 2 * i * each;
      ON_BEST_ISA(attend(s, pieces[i]));
    }
  });
  T* o = out.mutable_data_ptr<T>();
  float* l = lse.mutable_data_ptr<float>();
  at::parallel_for(0, targets.size() * each, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Target& t = targets[i / each];
      const int64_t n = std::min(take, rows - t.row), g = i % each / n, row = t.row + i % each % n;
      if (g >= group_step) continue;  // fewer rows than others have
      const int64_t from = t.first * each + i % each;
      const int64_t to =
          (t.b * s.queries + row / s.shared) * heads + (t.group + g) * s.shared + row % s.shared;
      ON_BEST_ISA(combine(outs + from * s.dim, bests + 2 * from, t.parts, each, s.dim,
                          o + to * s.dim, l + to));
    }
  });
  return {out, lse};
}

struct Arguments {
  const at::Tensor *far_q, *q;  // either may be null
  const at::Tensor &k, &v;
  const at::Tensor* index;
  int64_t initial;
  const Optional &start, &end;
  const Optional& far_end;
  const Optional &cos, &sin, &block_table;
  double scale;
};

void must_ascend(const Integers& index, int64_t batch, int64_t listed) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 1; i < listed; ++i) {
      const int64_t before = index[b * listed + i - 1], now = index[b * listed + i];
      TORCH_CHECK_VALUE(now < 0 || (before >= 0 && before <= now),
                        "index must ascend in every row, with padding behind the tokens");
    }
}

Result attention(const Arguments& a) {
  const at::Tensor& like = a.q ? *a.q : *a.far_q;
  const int64_t batch = like.size(0), dim = like.size(3);
  const at::Tensor k = readable(a.k), v = readable(a.v);
  const Pages pages(k, a.block_table, batch);
  const int64_t tokens = pages.tokens();
  const Ranges ranges(a.start, a.end, batch, tokens);
  // Beside a window, what is not before it is the window's.
  const PerSequence far_end("end", a.far_end, a.q ? 0 : tokens, batch, tokens,
                            "the tokens of the cache");
  Integers index;
  if (a.index) {
    index = Integers("index", *a.index);
    index.must_be_between("index", -1, tokens - 1, "-1 for padding");
    must_ascend(index, batch, a.index->size(1));
  }
  at::Tensor cos, sin;
  if (a.cos) {
    cos = a.cos->contiguous(), sin = a.sin->contiguous();
    for (int64_t b = 0; b < batch; ++b)
      TORCH_CHECK_VALUE(ranges.end[b] - ranges.start[b] <= cos.size(0),
                        "cos must have a row for each of ", ranges.end[b] - ranges.start[b],
                        " places, got ", cos.size(0));
  }
  // Both kinds of queries are read by the same strides.
  at::Tensor q = a.q ? readable(*a.q) : at::Tensor(), far_q = a.far_q ? readable(*a.far_q) : q;
  if (!a.q) q = far_q;
  if (q.strides() != far_q.strides()) q = q.contiguous(), far_q = far_q.contiguous();
  Result result;
  with_floats("q", q, [&](auto* q_data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(q_data)>>;
    Step<T> s{far_q.const_data_ptr<T>(),
              a.q ? q_data : nullptr,
              k.const_data_ptr<T>(),
              v.const_data_ptr<T>(),
              {q.stride(0), q.stride(1), q.stride(2)},
              {k.stride(0), k.stride(1), k.stride(2)},
              {v.stride(0), v.stride(1), v.stride(2)},
              q.size(1),
              k.size(2),
              q.size(2) / std::max<int64_t>(1, k.size(2)),
              dim,
              pages,
              ranges,
              a.index ? &index : nullptr,
              a.index ? a.index->size(1) : 0,
              a.initial,
              &far_end,
              a.cos ? cos.const_data_ptr<float>() : nullptr,
              a.cos ? sin.const_data_ptr<float>() : nullptr,
              static_cast<float>(a.scale)};
    result = run(s, q);
  });
  return result;
}

Result gather_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& index, int64_t initial, const Optional& end,
                        const Optional& block_table, double scale) {
  return attention({&q, nullptr, k, v, &index, initial, {}, {}, end, {}, {}, block_table, scale});
}

Result window_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const Optional& start, const Optional& end, const Optional& cos,
                        const Optional& sin, const Optional& block_table, double scale) {
  return attention({nullptr, &q, k, v, nullptr, 0, start, end, {}, cos, sin, block_table, scale});
}

Result selected_attention(const at::Tensor& far_q, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& index, int64_t initial,
                          const Optional& start, const Optional& end, const Optional& cos,
                          const Optional& sin, const Optional& block_table, double scale) {
  return attention(
      {&far_q, &q, k, v, &index, initial, start, end, start, cos, sin, block_table, scale});
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) {
  m.impl("gather_attention", gather_attention);
  m.impl("window_attention", window_attention);
  m.impl("selected_attention", selected_attention);
}
