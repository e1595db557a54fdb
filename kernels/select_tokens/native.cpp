// Selection of tokens on the CPU: native_kernel.h selects from a row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cache.h"
#include "floats.h"
#include "isa.h"
#include "outputs.h"

namespace {

// Tokens whose windows are made wider together: many for each that two pieces both read.
inline int64_t sliding_piece(int64_t reach) { return std::max<int64_t>(2048, 4 * reach); }

// Where a row is selected. What stands here has room for all n tokens, whatever their scores.
struct Room {
  float *pooled, *window;  // n; a piece and what its windows reach
  int32_t *best, *blocks;  // n / 4, as blocks have 4 tokens or more
  int32_t *keys, *where;   // n
  int32_t* index;          // k
};

// Per thread, grown by half at least: a cache gets longer token by token.
Room room_for(int64_t n, int64_t k, int64_t reach) {
  static thread_local std::unique_ptr<int32_t[]> memory;
  static thread_local int64_t size = 0;
  constexpr int64_t SPARE = 128;  // vectors past the end
  const int64_t pooled = reach ? n + SPARE : 0;
  const int64_t window = reach ? std::min(sliding_piece(reach), n) + 2 * reach + SPARE : 0;
  const int64_t quarter = n / 4 + SPARE, whole = n + SPARE;
  const int64_t need = pooled + window + 2 * quarter + 2 * whole + k + SPARE;
  if (size < need) {
    memory.reset();
    memory.reset(new int32_t[size = need + need / 2]);
  }
  int32_t* next = memory.get();
  const auto take = [&](int64_t numbers) { return std::exchange(next, next + numbers); };
  Room room;
  room.pooled = reinterpret_cast<float*>(take(pooled));
  room.window = reinterpret_cast<float*>(take(window));
  room.best = take(quarter);
  room.blocks = take(quarter);
  room.keys = take(whole);
  room.where = take(whole);
  room.index = take(k + SPARE);
  return room;
}

#define KERNEL "../select_tokens/native_kernel.h"
#include "per_isa.h"

template <class T>
void select_rows(const T* scores, int64_t stride, int64_t batch, int64_t tokens, int64_t k,
                 int64_t proximity, const Ranges& range, int32_t* index) {
  // About 10 microseconds of work for a thread.
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, tokens));
  at::parallel_for(0, batch, grain, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const int64_t first = range.start[b], n = range.end[b] - first;
      const int64_t count = std::min(k, n), reach = std::min(proximity, n);
      int32_t* row = index + b * k;
      if (count) {
        const Room room = room_for(n, count, reach);
        const int32_t offset = static_cast<int32_t>(first);
        ON_BEST_ISA(select_row(scores + b * stride + first, n, count, reach, offset, room));
        std::copy_n(room.index, count, row);
      }
      std::fill(row + count, row + k, -1);
    }
  });
}

at::Tensor select_tokens(const at::Tensor& scores, int64_t k, int64_t proximity,
                         const std::optional<at::Tensor>& start,
                         const std::optional<at::Tensor>& end) {
  // The public function says all of this in words; here it keeps a direct call inside its memory.
  constexpr int64_t LARGEST = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(scores.dim() == 2 && scores.size(1) <= LARGEST,
                    "scores must be (batch, tokens)");
  TORCH_CHECK_VALUE(1 <= k && k <= LARGEST, "k out of range");
  TORCH_CHECK_VALUE(0 <= proximity && proximity <= LARGEST, "proximity out of range");
  const int64_t batch = scores.size(0), tokens = scores.size(1);
  const Ranges range(start, end, batch, tokens);
  const at::Tensor rows = tokens <= 1 || scores.stride(1) == 1 ? scores : scores.contiguous();

  at::Tensor index = empty({batch, k}, at::kInt);
  int32_t* out = index.mutable_data_ptr<int32_t>();
  with_floats("scores", rows, [&](const auto* data) {
    select_rows(data, rows.stride(0), batch, tokens, k, proximity, range, out);
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(triselect, CPU, m) { m.impl("select_tokens", select_tokens); }
